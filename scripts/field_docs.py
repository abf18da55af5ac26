"""The documentation of dataclass fields: the ``#:`` comment on a field's line, or on the lines above it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
from typing import Any

__all__ = ["field_docs"]


def field_docs(cls: type[Any]) -> dict[str, str]:
    """Return the documentation of each documented field of a dataclass and its bases.

    A class may carry its own in ``__field_docs__``, as those do that have no source.
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        own = vars(base).get("__field_docs__")
        docs.update(own if own is not None else _from_source(base))
    return docs


def _from_source(cls: type[Any]) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # made at run time, or its source is not installed
        return {}
    comments: dict[int, str] = {}
    alone: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.string.startswith("#:"):
            comments[token.start[0]] = token.string[2:].strip()
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    docs = {}
    body = ast.parse(source).body[0]
    for node in body.body if isinstance(body, ast.ClassDef) else []:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        first = node.lineno
        while first - 1 in alone:
            first -= 1
        lines = range(first, (node.end_lineno or node.lineno) + 1)
        docs[node.target.id] = " ".join(comments[line] for line in lines if line in comments)
    return docs

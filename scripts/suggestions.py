"""Names that come near to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from steerdiff.errors import require

__all__ = ["check_keys", "closest"]


def closest(word: str, known: Iterable[str]) -> str:
    """Return a question that names the known words nearest to ``word``, or a list of all of them."""
    words = list(known)
    near = difflib.get_close_matches(word, words, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(words)}"


def check_keys(values: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise ``UserError`` for the first of ``values`` that is not known, and name the nearest known ones."""
    names = list(known)
    for name in values:
        require(name in names, f"{where} sets {name!r}, which does not exist; {closest(name, names)}")

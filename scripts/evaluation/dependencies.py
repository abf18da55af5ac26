"""Which definitions of the source a function or a class depends on, found without running anything, and their hashes.

A definition is what a module binds at its top: a function, a class, a table. From a root, every name that its text
reads is followed to where it is bound, through imports (inside functions too) and through packages' ``__init__``. So
``from steerdiff.samplers import DDIM`` reaches ``samplers.ddim`` and not the other solvers, and a method does not
depend on the other methods beside it in a table that it does not read.

Docstrings, comments, formatting and the annotations of functions count for nothing. The hash is made from the syntax
tree without the parts that Python versions write differently, so one version finds what another has stored.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

__all__ = ["Read", "Root", "hashes", "reached", "read_source"]

#: Module and a name in it.
Root = tuple[str, str]
#: Text of a module and whether it is a package; None if there is no such module.
Read = Callable[[str], tuple[str, bool] | None]

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = (ast.If, ast.Try, ast.With, ast.For, ast.While)
_IGNORED = ("ctx", "kind", "type_comment", "returns")  # fields of the tree that change no result
_EFFECTS, _ALL = "(effects)", "(all)"  # statements that bind nothing; a module as a whole
_DIGITS = 12


@cache
def read_source(module: str) -> tuple[str, bool] | None:
    """Return the text of an installed module and whether it is a package; None if there is none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ValueError, ModuleNotFoundError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin).read_text(encoding="utf-8"), spec.submodule_search_locations is not None


def hashes(roots: Iterable[Root], *, read: Read = read_source, without: Iterable[str] = ()) -> dict[str, str]:
    """Return a hash for each module that the roots depend on, over the definitions in it that they reach.

    Args:
        roots: Where to start. Imports are followed inside the roots' own top packages.
        read: Gives the text of a module.
        without: Packages that are not entered.

    Returns:
        12 hexadecimal digits by the module's full name, sorted by name.
    """
    found = reached(roots, read=read, without=without)
    return {module: _digest(texts) for module, texts in sorted(found.items()) if any(texts.values())}


def reached(
    roots: Iterable[Root], *, read: Read = read_source, without: Iterable[str] = ()
) -> dict[str, dict[str, str]]:
    """Return the definitions that the roots depend on: by module, by name, their text as it is hashed.

    Arguments as for `hashes`.
    """
    parse = _parser(read)
    queue = list(roots)
    tops, left_out = {module.split(".")[0] for module, _ in queue}, tuple(without)
    found: dict[str, dict[str, str]] = {}
    while queue:
        module, name = queue.pop()
        outside = module.split(".")[0] not in tops or any(f"{module}.".startswith(f"{part}.") for part in left_out)
        parsed = None if outside or name in found.get(module, ()) else parse(module)
        if parsed is None:
            continue
        text, targets = parsed.follow(module, name, lambda inner: parse(inner) is not None)
        found.setdefault(module, {})[name] = text
        queue += [*targets, (module, _EFFECTS)]
    return found


def _digest(texts: dict[str, str]) -> str:
    lines = "\n".join(f"{name}: {text}" for name, text in sorted(texts.items()) if text)
    return hashlib.sha256(lines.encode()).hexdigest()[:_DIGITS]


def _parser(read: Read) -> Callable[[str], _Module | None]:
    known: dict[str, _Module | None] = {}

    def parse(module: str) -> _Module | None:
        if module not in known:
            found = _parse_installed(module) if read is read_source else _parsed(module, read)
            known[module] = found
        return known[module]

    return parse


@cache
def _parse_installed(module: str) -> _Module | None:
    return _parsed(module, read_source)


def _parsed(module: str, read: Read) -> _Module | None:
    source = read(module)
    if source is None:
        return None
    text, is_package = source
    result = _Module(package=module if is_package else module.rpartition(".")[0])
    result.take(ast.parse(text).body)
    return result


@dataclass
class _Module:
    """What a module binds."""

    package: str  #: where its relative imports start
    names: dict[str, list[ast.stmt]] = field(default_factory=dict)  #: statements that bind a name
    imports: dict[str, list[Root]] = field(default_factory=dict)  #: what an imported name stands for
    effects: list[ast.stmt] = field(default_factory=list)  #: statements that bind nothing

    def take(self, body: Iterable[ast.stmt]) -> None:
        """Sort the statements at the top of a module."""
        for statement in body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                for name, target in self.imported(statement):
                    self.imports.setdefault(name, []).append(target)
            elif isinstance(statement, _BLOCKS):
                inner = [node for node in ast.iter_child_nodes(statement) if isinstance(node, ast.stmt)]
                handled = [part for node in getattr(statement, "handlers", []) for part in node.body]
                self.take([*inner, *handled])
                self._bind(_stored(statement), statement)
            else:
                self._bind(_bound(statement), statement)

    def _bind(self, names: Iterable[str], statement: ast.stmt) -> None:
        found = set(names)
        for name in found:
            self.names.setdefault(name, []).append(statement)
        if not found and not _is_remark(statement) and not _only_imports(statement):
            self.effects.append(statement)

    def imported(self, statement: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Root]]:
        """Yield each name that an import binds with the module and the name that it stands for."""
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield alias.asname or alias.name.split(".")[0], (alias.name, _ALL)
            return
        base = statement.module or ""
        if statement.level:
            parents = self.package.split(".")
            start = ".".join(parents[: len(parents) - statement.level + 1])
            base = f"{start}.{base}" if base else start
        for alias in statement.names:
            name = _ALL if alias.name == "*" else alias.name
            yield alias.asname or alias.name, (base, name)

    def follow(self, module: str, name: str, exists: Callable[[str], bool]) -> tuple[str, list[Root]]:
        """Return the text of what binds a name, and all that it reads."""
        if name == _ALL:
            everything = {*self.names, *self.imports} - {"__all__"}
            return "", [(module, inner) for inner in everything]
        if name == _EFFECTS:
            stars = self.imports.get("*", [])
            text, targets = self._texts(module, self.effects)
            return text, [*stars, *targets]
        if name in self.imports or name in self.names:
            imported = self.imports.get(name, [])
            text, targets = self._texts(module, self.names.get(name, []))
            stands_for = [f"import {base}.{inner}" for base, inner in imported]
            return ";".join([*stands_for, *filter(None, [text])]), [*imported, *targets]
        inner = f"{module}.{name}"
        return "", [(inner, _ALL)] if exists(inner) else []

    def _texts(self, module: str, statements: list[ast.stmt]) -> tuple[str, list[Root]]:
        reader = _Reader()
        text = ";".join(reader.text(statement) for statement in statements)
        own: list[Root] = [(module, name) for name in reader.names if name in self.names or name in self.imports]
        inner = [target for statement in reader.imports for _, target in self.imported(statement)]
        return text, [*own, *inner]


class _Reader:
    """Writes a syntax tree as text without what changes no result, and notes the names and imports in it."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.imports: list[ast.Import | ast.ImportFrom] = []

    def text(self, node: object, in_function: bool = False) -> str:
        """Return the text of a node, of a list of nodes or of a constant."""
        if isinstance(node, list):
            return f"[{','.join(self.text(item, in_function) for item in node if not _is_remark(item))}]"
        if not isinstance(node, ast.AST):
            return repr(node)
        if isinstance(node, ast.Name):
            self.names.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            self.imports.append(node)
        # Annotations of functions and inside them decide nothing; a dataclass's fields are read at run time.
        annotated = isinstance(node, ast.arg) or (in_function and isinstance(node, ast.AnnAssign))
        ignored = (*_IGNORED, "annotation") if annotated else _IGNORED
        in_function = in_function or isinstance(node, _FUNCTIONS)
        parts = [
            f"{name}={self.text(value, in_function)}"
            for name, value in ast.iter_fields(node)
            if name not in ignored and value is not None and value != []
        ]
        return f"{type(node).__name__}({','.join(parts)})"


def _bound(statement: ast.stmt) -> set[str]:
    """Return the names that a simple statement or a definition binds."""
    if isinstance(statement, (*_FUNCTIONS, ast.ClassDef)):
        return {statement.name}
    single = getattr(statement, "target", None)
    targets: list[ast.expr] = getattr(statement, "targets", [] if single is None else [single])
    nodes = [node for target in targets for node in ast.walk(target)]
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _stored(block: ast.stmt) -> set[str]:
    """Return the names that a block at the top of a module binds, imports aside."""
    inner = [node for node in ast.walk(block) if isinstance(node, ast.stmt) and not isinstance(node, _BLOCKS)]
    loop = {node.id for node in ast.walk(block) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return loop.union(*(_bound(node) for node in inner))


def _only_imports(statement: ast.stmt) -> bool:
    """Say whether a block does nothing but import, as ``if TYPE_CHECKING`` does."""
    simple = [node for node in ast.walk(statement) if isinstance(node, ast.stmt) and not isinstance(node, _BLOCKS)]
    return bool(simple) and all(isinstance(node, (ast.Import, ast.ImportFrom, ast.Pass)) for node in simple)


def _is_remark(node: object) -> bool:
    """Say whether a statement is a docstring or another bare text."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)

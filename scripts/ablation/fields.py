"""Copies of settings with some fields changed, by dotted paths such as ``t0`` and ``solver.eta``."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from steerdiff.errors import UserError, require
from steerdiff.scripts.arguments import typed_value
from steerdiff.scripts.solver_text import is_solver, solver_from_text
from steerdiff.scripts.suggestions import closest

__all__ = ["check_paths", "paths", "replaced", "value_at"]

T = TypeVar("T")


def paths(settings: Any) -> list[str]:
    """Return the dotted paths of all fields of a dataclass; those of a dataclass in it follow its own."""
    found = []
    for field in dataclasses.fields(settings):
        inner = _field(settings, field.name)
        nested = paths(inner) if dataclasses.is_dataclass(inner) else []
        found += [field.name, *(f"{field.name}.{path}" for path in nested)]
    return found


def value_at(settings: Any, path: str) -> Any:
    """Return the value at a dotted path of a dataclass.

    Raises:
        UserError: There is no such field; the message names the nearest ones.
    """
    check_paths(settings, [path])
    value = settings
    for name in path.split("."):
        value = _field(value, name)
    return value


def replaced(settings: T, changes: Mapping[str, Any]) -> T:
    """Return a copy of a frozen dataclass with some fields changed.

    Args:
        settings: Instance of a dataclass, such as a method. A solver that it holds by name counts as the solver.
        changes: New values by dotted path: Python values, or texts as on the command line. Where both ``solver`` and
            ``solver.eta`` are changed, the new solver gets the new eta.

    Raises:
        UserError: There is no such field, or a value has the wrong type or is refused by the class.
    """
    return _replaced(settings, changes, "")


def check_paths(settings: Any, wanted: Iterable[str]) -> None:
    """Raise ``UserError`` for the first path that is no field of a dataclass, and name the nearest ones."""
    known = paths(settings)
    for path in wanted:
        parent, _, last = path.rpartition(".")
        if parent in known:
            value = value_at(settings, parent)
            plain = not dataclasses.is_dataclass(value)
            require(
                not plain, f"{path} does not exist: {parent} is {value!r}, which has no fields; set {parent} itself"
            )
        same = [name for name in known if name.rpartition(".")[2] == last]
        nearest = f"did you mean {' or '.join(same)}?" if same else closest(path, known) if known else "it has none"
        require(path in known, f"{type(settings).__name__} has no field {path!r}; {nearest}")


def _field(settings: Any, name: str) -> Any:
    """Return a field's value; a solver that is held by its name as the solver."""
    value = getattr(settings, name)
    if isinstance(value, str) and _takes_solver(typing.get_type_hints(type(settings))[name]):
        return solver_from_text(value)
    return value


def _takes_solver(hint: Any) -> bool:
    return any(getattr(option, "__name__", None) == "Solver" for option in (hint, *typing.get_args(hint)))


def _replaced(settings: T, changes: Mapping[str, Any], prefix: str) -> T:
    """Do what ``replaced`` does; ``prefix`` is the path of ``settings`` in the whole, with its dot."""
    whole = {path: value for path, value in changes.items() if "." not in path}
    parts = {path: value for path, value in changes.items() if "." in path}
    check_paths(settings, whole)
    hints = typing.get_type_hints(type(settings))
    values = {name: _typed(hints[name], value, prefix + name) for name, value in whole.items()}
    copy = _copy(settings, values, _listed(whole, prefix))
    check_paths(copy, parts)
    nested: dict[str, dict[str, Any]] = {}
    for path, value in parts.items():
        head, rest = path.split(".", 1)
        nested.setdefault(head, {})[rest] = value
    inner = {head: _replaced(_field(copy, head), some, f"{prefix}{head}.") for head, some in nested.items()}
    return _copy(copy, inner, _listed(parts, prefix))


def _typed(hint: Any, value: Any, where: str) -> Any:
    if _takes_solver(hint) and isinstance(value, str):
        try:
            return _with_floats(solver_from_text(value))
        except UserError as error:
            raise UserError(f"{where}={value} is refused: {error}") from error
    if dataclasses.is_dataclass(value):
        allowed = is_solver(value) if _takes_solver(hint) else type(value) in (hint, *typing.get_args(hint))
        require(allowed, f"{where} is {value!r}; expected {getattr(hint, '__name__', hint)}")
        return value
    return typed_value(hint, value, where)


def _with_floats(solver: T) -> T:
    """Return the solver with 1.0 for 1 in its float fields, so that texts that mean the same give the same cell."""
    hints = typing.get_type_hints(type(solver))
    values = {name: value for name, value in vars(solver).items() if hints[name] is float and type(value) is int}
    return dataclasses.replace(solver, **{name: float(value) for name, value in values.items()})  # type: ignore[type-var]


def _copy(settings: T, values: Mapping[str, Any], given: str) -> T:
    """Return the copy; where the class refuses it, say which of the values that were given it refuses."""
    try:
        return dataclasses.replace(settings, **values)  # type: ignore[type-var]
    except (TypeError, ValueError) as error:
        raise UserError(f"{given} is refused: {error}") from error


def _listed(changes: Mapping[str, Any], prefix: str) -> str:
    return ", ".join(f"{prefix}{path}={value}" for path, value in changes.items())

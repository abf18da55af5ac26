"""A solver as one word of a command line: ``ddim``, or ``ddim:eta=0.5`` with its fields."""

from __future__ import annotations

import ast
import dataclasses
from typing import TYPE_CHECKING, Any

import tyro

from steerdiff.errors import UserError, require

if TYPE_CHECKING:
    from steerdiff.samplers import Solver

__all__ = ["solver_rule", "is_solver", "solver_from_text", "solver_to_text"]


def solver_from_text(text: str) -> Solver:
    """Return the solver that ``name`` or ``name:field=value,field=value`` describes.

    Raises:
        UserError: Unknown name or field, or a value that the solver refuses.
    """
    from steerdiff.samplers import SOLVERS

    name, _, options = text.partition(":")
    require(name in SOLVERS, f"solver is {name!r}; known are {', '.join(SOLVERS)}")
    cls = SOLVERS[name]
    fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    values = {}
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        require(bool(equals), f"solver is {text!r}; write {name}:field=value")
        require(key in fields, f"solver {name!r} has no field {key!r}; it has {', '.join(fields) or 'none'}")
        values[key] = _literal(value)
    try:
        return cls(**values)
    except TypeError as error:
        raise UserError(f"solver is {text!r}: {error}") from error


def solver_to_text(solver: Any) -> str:
    """Return the text that ``solver_from_text`` turns back into ``solver``; fields at their defaults are left out."""
    from steerdiff.samplers import SOLVERS

    name = next(name for name, cls in SOLVERS.items() if type(solver) is cls)
    changed = [
        f"{field.name}={getattr(solver, field.name)}"
        for field in dataclasses.fields(solver)
        if getattr(solver, field.name) != field.default
    ]
    return f"{name}:{','.join(changed)}" if changed else name


def is_solver(value: Any) -> bool:
    """Say whether ``value`` is an instance of a class in ``SOLVERS``."""
    if not dataclasses.is_dataclass(value) or not hasattr(value, "step"):
        return False
    from steerdiff.samplers import SOLVERS

    return isinstance(value, tuple(SOLVERS.values()))


def solver_rule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Tell tyro how a field of type ``Solver`` is written and read."""
    if getattr(info.type, "__name__", None) != "Solver" or not hasattr(info.type, "step"):
        return None
    from steerdiff.samplers import SOLVERS

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(SOLVERS)}}}[:FIELD=VALUE]",
        instance_from_str=lambda words: solver_from_text(words[0]),
        is_instance=is_solver,
        str_from_instance=lambda solver: [solver_to_text(solver)],
    )


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

"""Command-line flags and settings files from frozen dataclasses: one parser for every command."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from steerdiff.errors import UserError, require

from .field_docs import field_docs
from .solver_text import is_solver, solver_rule, solver_to_text
from .suggestions import check_keys

__all__ = ["parse", "plain", "read_mapping", "restore", "take_flag", "typed_value"]

T = TypeVar("T")

_CONFIG_NOTE = "Flags mix with a file of settings, and flags win: --config FILE (.yaml or .json)."
_REGISTRY = tyro.constructors.ConstructorRegistry()
_REGISTRY.primitive_rule(solver_rule)


def parse(
    cls: type[T], arguments: Sequence[str], *, prog: str, values: Mapping[str, Any] | None = None, note: str = ""
) -> T:
    """Return a dataclass filled from flags and from the file that ``--config`` names; flags win.

    Args:
        cls: Frozen dataclass; its docstring and its fields' comments are the help.
        arguments: Command line after the command.
        prog: What the help calls the command.
        values: Fields that have other defaults here, such as a preset's.
        note: A line more for the help.

    Raises:
        UserError: The file is unreadable, names an unknown field or holds a value of the wrong type.
        SystemExit: ``--help`` (0) or a bad flag (2), explained on stderr.
    """
    rest, file = take_flag(arguments, "--config", "--config names no file; give a .yaml or .json file after it")
    rest, configs = _take_configs(cls, rest)
    defaults = {**(values or {}), **({} if file is None else _typed(cls, read_mapping(file), file)), **configs}
    text = (inspect.getdoc(cls) or "").replace("``", "")
    description = "\n\n".join(filter(None, [text, note, _CONFIG_NOTE]))
    shadow = _shadow(cls, defaults)
    with _REGISTRY:
        given = tyro.cli(shadow, args=rest, prog=prog, default=_default(shadow, defaults), description=description)
    return cls(**vars(given))


def restore(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build a dataclass from what ``plain`` made of it; ``where`` tells errors where the values come from."""
    return cls(**_typed(cls, values, where))


def typed_value(hint: Any, value: Any, where: str) -> Any:
    """Return a value, or the text of a flag, in the type ``hint``; UserError names ``where`` if it does not fit.

    The items of a tuple are the words of a text, as after a flag.
    """
    if not isinstance(value, str):
        return _typed_value(hint, value, where)
    return _from_words(hint, value.split() if typing.get_origin(hint) is tuple else [value], value, where)


def plain(value: Any) -> Any:
    """Return settings as JSON-able values that a settings file may hold: solvers become their text."""
    if is_solver(value):
        return solver_to_text(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def read_mapping(file: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML or JSON file.

    Raises:
        UserError: It is missing, has another suffix, cannot be parsed or is no mapping.
    """
    import yaml

    path = Path(file)
    require(path.is_file(), f"{path} is not a file; give a .yaml or .json file of settings")
    require(path.suffix in (".yaml", ".yml", ".json"), f"{path} is neither .yaml nor .json")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    require(isinstance(values, dict), f"{path} holds no mapping; write one 'field: value' a line")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def take_flag(arguments: Sequence[str], flag: str, missing: str) -> tuple[list[str], str | None]:
    """Return the arguments without ``flag`` and its value, and the value (the last if it is given twice).

    Raises:
        UserError: Nothing follows the flag; the message is ``missing``.
    """
    rest, value = [], None
    items = iter(arguments)
    for item in items:
        if item == flag:
            value = next(items, None)
            require(value is not None, missing)
        elif item.startswith(f"{flag}="):
            value = item.split("=", 1)[1]
        else:
            rest.append(item)
    return rest, value


def _take_configs(cls: type[Any], arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Take out the flags that describe weights: published flags, given as one text, begin with dashes as ours do."""
    rest, found = list(arguments), {}
    for field in dataclasses.fields(cls):
        if field.name.endswith("_config"):
            for flag in (f"--{field.name.replace('_', '-')}", f"--{field.name}"):
                rest, value = take_flag(rest, flag, f"{flag} names nothing; give a preset, flags or a file after it")
                found.update({} if value is None else {field.name: value})
    return rest, found


def _shadow(cls: type[Any], values: Mapping[str, Any]) -> type[Any]:
    """Return ``cls`` without its checks, which would be reported as bad syntax, and with its fields' documentation."""
    hints = typing.get_type_hints(cls, include_extras=True)
    docs = field_docs(cls)
    fields: list[Any] = []
    for field in dataclasses.fields(cls):
        hint, value = hints[field.name], values.get(field.name)
        if any(typing.get_origin(option) is dict for option in typing.get_args(hint)):  # tyro would make subcommands
            hint = type(None) if field.name in values and value is None else dict[str, Any]
        hint = typing.Annotated[hint, tyro.conf.arg(help=docs.get(field.name, "").replace("``", ""))]
        same = dataclasses.field(default=field.default, default_factory=field.default_factory)
        fields.append((field.name, hint, same))
    return dataclasses.make_dataclass(cls.__name__, fields, kw_only=True)


def _default(cls: type[T], values: Mapping[str, Any]) -> T:
    """Return an instance, not yet validated, with ``values``, else the defaults, else a mark for what is required."""
    instance = object.__new__(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        value: Any = tyro.MISSING
        if field.name in values:
            value = values[field.name]
        elif field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        object.__setattr__(instance, field.name, value)
    return instance


def _typed(cls: type[Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the values of a file in the types of the fields of ``cls``."""
    hints = typing.get_type_hints(cls)
    check_keys(values, [field.name for field in dataclasses.fields(cls)], where)
    return {name: _typed_value(hints[name], value, f"{where}: {name}") for name, value in values.items()}


def _typed_value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(value, dict):
        options: list[Any] = [hint, *typing.get_args(hint)]
        nested: Any = next((option for option in options if dataclasses.is_dataclass(option)), None)
        return value if nested is None else restore(nested, value, where)
    if isinstance(value, str) and str in (hint, *typing.get_args(hint)):
        return value
    if hint is Any or value is None or isinstance(value, bool):
        allowed = typing.get_args(hint) or (hint,)
        fits = hint is Any or type(value) in allowed or (value is None and hint is None)
        require(fits, f"{where} is {value!r}; expected {_type_name(hint)}")
        return value
    return _from_words(hint, [str(item) for item in _flat(value)], value, where)


def _from_words(hint: Any, words: list[str], value: Any, where: str) -> Any:
    """Return what the words after a flag mean; ``value`` is what they are called in an error."""
    wrapper = dataclasses.make_dataclass("Value", [("value", hint)])
    try:
        with _REGISTRY, contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return tyro.cli(wrapper, args=["--value", *words]).value
    except SystemExit:
        raise UserError(f"{where} is {value!r}; expected {_type_name(hint)}") from None


def _flat(value: Any) -> list[Any]:
    return [item for part in value for item in _flat(part)] if isinstance(value, (list, tuple)) else [value]


def _type_name(hint: Any) -> str:
    choices = _choices(hint)
    if choices:
        return " or ".join(repr(choice) for choice in choices)
    return getattr(hint, "__name__", None) if isinstance(hint, type) and not typing.get_args(hint) else str(hint)  # type: ignore[return-value]


def _choices(hint: Any) -> list[Any]:
    """Return the values that a ``Literal``, or a union of them with or without None, allows; else nothing."""
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    parts = [[None] if option is type(None) else _choices(option) for option in typing.get_args(hint)]
    return [choice for part in parts for choice in part] if all(parts) else []

"""The flags of a method: its fields, the arguments of its call, and the flags of the model, as one dataclass."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import docstring_parser

from steerdiff.errors import require

from .field_docs import field_docs
from .runtime import ModelFlags
from .suggestions import closest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "PICTURES",
    "TEXTS",
    "EditFlags",
    "flags_class",
    "apply",
    "made_class",
    "method_class",
    "method_of",
    "preset",
    "presets_of",
    "texts_of",
]

#: Arguments of a method's call that are pictures, and those that are texts; of a class its name or number.
PICTURES = {
    "image": "the picture; its centre is cropped and resized to the model's size",
    "mask": "a black and white picture, cropped like the image: white where the image may change",
}
TEXTS = ("prompt", "target", "negative", "y")


@dataclass(frozen=True, kw_only=True)
class EditFlags(ModelFlags):
    """What every method needs besides its own fields."""

    n: int = 1  #: variations of the result
    seed: int | tuple[int, ...] = 0  #: variation k uses seed + k; or one seed for each
    mask_threshold: float | None = (
        None  #: brightness in (0, 1) from which a mask is white; None wants black and white only
    )
    out: Path = Path("out/edit")  #: folder for the results


def method_class(name: str) -> type[Any]:
    """Return the method of that name in ``steerdiff.methods.METHODS``; UserError names the nearest."""
    from steerdiff.methods import METHODS

    methods: Mapping[str, type[Any]] = METHODS
    require(name in methods, f"there is no method {name!r}; {closest(name, methods)}")
    return methods[name]


@functools.cache
def flags_class(name: str) -> type[Any]:
    """Return a dataclass of all flags of a method; the arguments of its call are read from its signature."""
    method = method_class(name)
    return made_class("Edit", method, method.__call__, EditFlags)


def made_class(
    title: str,
    method: type[Any],
    function: Callable[..., Any],
    common: type[Any],
    options: Mapping[str, bool] = MappingProxyType({}),
) -> type[Any]:
    """Return a dataclass of all flags of a command that calls a function of a method.

    Args:
        title: Begins the name of the class.
        method: Its fields are flags.
        function: Its pictures and texts are flags, as its signature says.
        common: Dataclass of the flags of all methods, a `ModelFlags`.
        options: Switches with their defaults, as far as the function has them.
    """
    parameters = inspect.signature(function).parameters
    documented = docstring_parser.parse(inspect.getdoc(function) or "").params
    docs = {item.arg_name: " ".join((item.description or "").split()) for item in documented} | PICTURES
    fields: list[Any] = []
    for argument in (*PICTURES, *TEXTS):
        if argument not in parameters:
            continue
        kind: Any = Path if argument in PICTURES else str
        if parameters[argument].default is inspect.Parameter.empty:
            fields.append((argument, kind))
        else:
            fields.append((argument, kind | None, None))
    fields += [(option, bool, default) for option, default in options.items() if option in parameters]
    for cls in (method, common):
        docs |= field_docs(cls)
        hints = typing.get_type_hints(cls)
        fields += [(field.name, hints[field.name], _default(field)) for field in dataclasses.fields(cls)]
    namespace = {
        "__doc__": method.__doc__,
        "__field_docs__": docs,
        **{name: getattr(ModelFlags, name) for name in ("load", "place", "prepare")},
    }
    name = f"{title}{method.__name__}"
    return dataclasses.make_dataclass(name, fields, frozen=True, kw_only=True, namespace=namespace)


def method_of(name: str, flags: Any) -> Any:
    """Return the method with the values of its fields among ``flags``."""
    method = method_class(name)
    return method(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(method)})


def presets_of(name: str) -> Mapping[str, Any]:
    """Return the named presets of a method, which stand in ``PRESETS`` of its module."""
    found: Mapping[str, Any] = getattr(sys.modules[method_class(name).__module__], "PRESETS", {})
    return found


def preset(name: str, label: str) -> dict[str, Any]:
    """Return the fields of a method's named preset; UserError names those that exist."""
    presets = presets_of(name)
    require(
        label in presets, f"{name} has no preset {label!r}; {closest(label, presets) if presets else 'it has none'}"
    )
    return {field.name: getattr(presets[label], field.name) for field in dataclasses.fields(presets[label])}


def texts_of(flags: Any) -> dict[str, str]:
    """Return the texts that were given, by the argument of the call."""
    given = {name: getattr(flags, name, None) for name in TEXTS}
    return {name: value for name, value in given.items() if value is not None}


def apply(name: str, flags: Any, model: Any, pictures: Mapping[str, Tensor], seeds: list[int]) -> Tensor:
    """Run the method on as many copies of its pictures as there are seeds; returns images [B, 3, H, W]."""
    copies = {key: picture.expand(len(seeds), -1, -1, -1) for key, picture in pictures.items()}
    result: Tensor = method_of(name, flags)(model, **copies, **texts_of(flags), seed=seeds, progress=name)
    return result


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    return dataclasses.field(default=field.default) if field.default is not dataclasses.MISSING else dataclasses.field()

"""What a sweep varies: axes of values, the grid they span, and subsets of it that only grow."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steerdiff.errors import UserError, require
from steerdiff.scripts.arguments import plain

from .fields import replaced, value_at

__all__ = ["Axis", "Point", "axis_from_list", "axis_from_text", "check_axes", "points"]

_RANGE = re.compile(r"([-+.\de]+):([-+.\de]+):(\d+)", re.IGNORECASE)
_DIGITS = 12  # of the values of a range: 0.3 instead of 0.30000000000000004
_MOST = 1_000_000  # points of a grid


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One field, or several that vary together, and the values."""

    fields: tuple[str, ...]  #: dotted paths
    values: tuple[tuple[Any, ...], ...]  #: for each value one entry for each field; JSON-able values or texts

    @property
    def name(self) -> str:
        """The fields joined by +, as on the command line."""
        return "+".join(self.fields)

    def settled(self, base: Any) -> Axis:
        """Return the axis with its values as the settings ``base`` would hold them, where it takes them alone."""
        return Axis(fields=self.fields, values=tuple(_settled(base, self.fields, value) for value in self.values))


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of the grid."""

    places: tuple[int, ...]  #: number of its value on each axis
    changes: Mapping[str, Any]  #: value of each swept field
    settings: Any = None  #: the base with the changes; None where it is refused
    error: str | None = None  #: why it is refused


def axis_from_text(text: str) -> Axis:
    """Return what ``--sweep`` describes: ``field=a,b,c``, ``field=low:high:count`` or ``field+field=a+b,c+d``.

    Values are separated by ``;`` where there is one, else by ``,``: ``"solver=ddim;dpm++2m:variant=heun,few_steps=5"``.

    Raises:
        UserError: It is not of this form, or sweeps over nothing.
    """
    name, equals, listed = text.partition("=")
    where = f"--sweep {text}"
    require(bool(equals) and bool(name.strip()), f"{where} names no field and values; write --sweep FIELD=A,B,C")
    return axis_from_list(name.strip(), [item.strip() for item in listed.split(";" if ";" in listed else ",")], where)


def axis_from_list(name: str, listed: Any, where: str) -> Axis:
    """Return an axis from a field's name, or several joined by +, and the list of its values.

    Args:
        name: Such as ``t0`` or ``steps+solver.eta``.
        listed: Values, or a text with a range; of joined fields each value is a list, or a text joined by +.
        where: What an error calls it.

    Raises:
        UserError: The list is empty, or a value has not one part for each field.
    """
    fields = tuple(part.strip() for part in name.split("+"))
    require(all(fields) and len(set(fields)) == len(fields), f"{where} names a field twice, or none beside a +")
    ranged = isinstance(listed, str) or (isinstance(listed, list) and len(listed) == 1 and isinstance(listed[0], str))
    text = listed if isinstance(listed, str) else listed[0] if ranged else ""
    if ranged and len(fields) == 1 and _RANGE.fullmatch(text):
        listed = _range(text, where)
    require(isinstance(listed, list), f"{where} has {listed!r} for its values; give a list of them")
    some = [value for value in listed if value != ""]
    require(bool(some), f"{where} sweeps over nothing; give at least one value")
    return Axis(fields=fields, values=tuple(_parts(value, fields, where) for value in some))


def check_axes(axes: Sequence[Axis]) -> None:
    """Raise ``UserError`` where there is nothing to vary, a field stands on two axes, or a value is there twice."""
    require(bool(axes), "there is nothing to vary; give --sweep FIELD=A,B,C, or a file of settings with --config")
    names = [field for axis in axes for field in axis.fields]
    for name in names:
        require(names.count(name) == 1, f"{name} is swept twice; give all its values in one --sweep")
    for axis in axes:
        texts = [json.dumps(value) for value in axis.values]
        for value, text in zip(axis.values, texts, strict=True):
            shown = "+".join(str(part) for part in value)
            require(texts.count(text) == 1, f"{axis.name} has the value {shown} twice; leave one of them out")


def points(base: Any, axes: Sequence[Axis], random: int | None = None, seed: int = 0) -> list[Point]:
    """Return the points of the grid that the axes span, the last axis fastest, each with its settings.

    A value that is refused together with some other values makes refused points; one that is refused alone and
    everywhere is an error.

    Args:
        base: Settings where nothing is swept.
        axes: As ``check_axes`` wants them.
        random: Take so many points; the same ones for the same seed, and a larger number keeps those of a smaller.
        seed: Decides which.

    Raises:
        UserError: An unknown field or a value that the class refuses; a grid of more than a million points, or more
            random points than there are.
    """
    size = math.prod(len(axis.values) for axis in axes)
    require(size <= _MOST, f"the grid has {size} points; {_MOST} at most, sweep over fewer values")
    require(
        random is None or 1 <= random <= size, f"random is {random}; the grid has {size} points, so 1 to {size} fit"
    )
    places = list(itertools.product(*(range(len(axis.values)) for axis in axes)))
    if random is not None:
        places = sorted(sorted(places, key=lambda place: _rank(axes, place, seed))[:random])
    found = [_point(base, axes, place) for place in places]
    for number, axis in enumerate(axes):
        for place, value in enumerate(axis.values):
            own = [point for point in found if point.places[number] == place]
            if own and all(point.error for point in own):
                replaced(base, dict(zip(axis.fields, value, strict=True)))  # raises if it is the value's own fault
    return found


def _rank(axes: Sequence[Axis], places: Sequence[int], seed: int) -> str:
    """Return a text whose order is random: of the point itself, so that a wider grid keeps the order of the old one."""
    values = {axis.name: axis.values[place] for axis, place in zip(axes, places, strict=True)}
    return hashlib.sha256(json.dumps([seed, sorted(values.items())]).encode()).hexdigest()


def _point(base: Any, axes: Sequence[Axis], places: tuple[int, ...]) -> Point:
    pairs = [
        pair
        for axis, place in zip(axes, places, strict=True)
        for pair in zip(axis.fields, axis.values[place], strict=True)
    ]
    try:
        return Point(places=places, changes=dict(pairs), settings=replaced(base, dict(pairs)))
    except UserError as error:
        return Point(places=places, changes=dict(pairs), error=str(error))


def _parts(value: Any, fields: Sequence[str], where: str) -> tuple[Any, ...]:
    """Return a value's entry for each field."""
    if len(fields) == 1:
        return (plain(value),)
    parts = value.split("+") if isinstance(value, str) else value
    fits = isinstance(parts, (list, tuple)) and len(parts) == len(fields)
    advice = "write them as lists in a file of settings if they hold a +"
    require(fits, f"{where} has the value {value!r}; {'+'.join(fields)} needs {len(fields)} parts, {advice}")
    return tuple(plain(part.strip() if isinstance(part, str) else part) for part in parts)


def _range(text: str, where: str) -> list[int | float]:
    """Return the values of ``low:high:count``, both ends among them; integers where all are."""
    low, high, count = text.split(":")
    try:
        first, last, n = float(low), float(high), int(count)
    except ValueError:
        raise UserError(f"{where} is no range; write FIELD=LOW:HIGH:COUNT, such as 0.1:0.9:5") from None
    require(n >= 2, f"{where} asks for {n} values of a range; it has at least its two ends")
    values = [float(f"{first + (last - first) * i / (n - 1):.{_DIGITS}g}") for i in range(n)]
    whole = all(value.is_integer() for value in values) and not re.search(r"[.e]", low + high, re.IGNORECASE)
    return [int(value) for value in values] if whole else list(values)


def _settled(base: Any, fields: Sequence[str], value: Sequence[Any]) -> tuple[Any, ...]:
    try:
        settings = replaced(base, dict(zip(fields, value, strict=True)))
    except UserError:  # perhaps not together with what else is swept
        return tuple(_number(part) for part in value)
    return tuple(plain(value_at(settings, field)) for field in fields)


def _number(part: Any) -> Any:
    """Return the number that a text is, else what was given."""
    if not isinstance(part, str):
        return part
    for kind in (int, float):
        try:
            return kind(part)
        except ValueError:
            continue
    return part

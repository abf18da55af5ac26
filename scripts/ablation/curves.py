"""Curves of one score against another: of an ablation, or of several in one picture, and where they are as good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from steerdiff.errors import require
from steerdiff.train.benchmark import SCORES, Interval

from .labels import Label, place_labels
from .overview import number, read_settings
from .plots import COLOURS, GREY, INK, MARKERS, dressed, figure_of, label_of, png_of
from .tables import line, value_of

__all__ = ["Curve", "Stop", "at_equal", "curve_plot", "interpolated", "read_curve"]


@dataclass(frozen=True)
class Stop:
    """A setting on a curve."""

    label: str
    up: Interval  #: the score that the plot shows upwards
    right: Interval  #: and to the right


@dataclass(frozen=True)
class Curve:
    """Settings in the order of a sweep."""

    label: str
    stops: tuple[Stop, ...]


def read_curve(
    file: Path, label: str, scores: tuple[str, str], along: str, where: Mapping[str, float] | None = None
) -> Curve:
    """Return the curve along a field of an ablation.

    Args:
        file: ``ablation.csv``.
        label: For the legend.
        scores: Names in ``SCORES``: what goes upwards, and what to the right.
        along: The swept field that names the stops.
        where: Numbers that other swept fields must have.

    Raises:
        UserError: A setting failed, or none has both scores and the numbers.
    """
    wanted = {field: number(str(value)) for field, value in (where or {}).items()}
    stops = [
        Stop(number(setting.fields[along]), *(setting.intervals[name] for name in scores))
        for setting in read_settings(file)
        if all(number(setting.fields.get(field, "")) == value for field, value in wanted.items())
        and along in setting.fields
        and all(name in setting.intervals for name in scores)
    ]
    asked = "".join(f", {field} {value}" for field, value in wanted.items())
    require(bool(stops), f"{file} has no setting with {along}{asked} and the scores {' and '.join(scores)}")
    return Curve(label, tuple(stops))


def curve_plot(curves: Sequence[Curve], scores: tuple[str, str], title: str, note: str) -> bytes:
    """Return curves as PNG, the same bytes each time: bars are the intervals of both scores, each stop has its label.

    Args:
        curves: At most six, each with a stop.
        scores: Names in ``SCORES``: what goes upwards, and what to the right.
        title: Above the picture.
        note: Below the title.
    """
    figure = figure_of((7.6, 5.4))
    panel = figure.subplots()
    lines = [_draw(panel, curve, scores, place) for place, curve in enumerate(curves)]
    panel.set_xlabel(label_of(scores[1]), fontsize=12, color=INK)
    panel.set_ylabel(label_of(scores[0]), fontsize=12, color=INK)
    panel.margins(0.08)
    dressed(panel)
    figure.suptitle(title, x=0.01, ha="left", fontsize=15, fontweight="bold", color=INK)
    panel.set_title(f"{note}; bars are 95 % intervals", loc="left", fontsize=11, color=GREY)
    if len(curves) > 1:
        figure.legend(loc="outside lower left", ncols=min(3, len(curves)), frameon=False, fontsize=11)
    colours = [COLOURS[place % len(COLOURS)] if len(curves) > 1 else INK for place in range(len(curves))]
    labels = [
        Label(stop.label, *point, colour)
        for curve, points, colour in zip(curves, lines, colours, strict=True)
        for stop, point in zip(curve.stops, points, strict=True)
    ]
    place_labels(panel, labels, lines, [bar for curve in curves for bar in _bars(curve, scores)])
    return png_of(figure)


def at_equal(curves: Sequence[Curve], scores: tuple[str, str]) -> str:
    """Return a Markdown table of what curves have to the right where all have the same ``up``, a share.

    The rows are the least share that all curves reach, the multiples of 10 % above, and the most that all reach. Where
    there is no such share, a sentence says which each reaches.

    Args:
        curves: One or more.
        scores: Names in ``SCORES``: what goes upwards, and what to the right.
    """
    reached = [(min(shares), max(shares)) for shares in ([stop.up.value for stop in curve.stops] for curve in curves)]
    least, most = max(low for low, _ in reached), min(high for _, high in reached)
    if least > most:
        pairs = zip(curves, reached, strict=True)
        own = ", ".join(f"{curve.label} {100 * low:.0f} to {100 * high:.0f} %" for curve, (low, high) in pairs)
        return f"No share {SCORES[scores[0]].title} is reached by all: {own}.\n"
    tens = [tenth / 10 for tenth in range(11) if least + 0.005 <= tenth / 10 <= most - 0.005]
    heads = [SCORES[scores[0]].title, *(f"{SCORES[scores[1]].title}, {curve.label}" for curve in curves)]
    lines = [line(heads), line(["---"] * len(heads))]
    for level in sorted({least, *tens, most}):
        found = [interpolated(curve, level, scores[1]) for curve in curves]
        lines.append(line([f"{100 * level:.0f} %", *(value_of(i, SCORES[scores[1]].percent) for i in found)]))
    return "\n".join(lines) + "\n"


def interpolated(curve: Curve, level: float, name: str) -> Interval | None:
    """Return what a curve has to the right where its ``up`` is ``level``, by linear interpolation between its stops.

    The ends of the interval are interpolated likewise; how uncertain ``up`` is does not enter. Where the curve passes
    the level more than once, the better place counts.

    Args:
        curve: Two stops or more.
        level: Between the least and the greatest mean of ``up``, else there is nothing to return.
        name: The score to the right, in ``SCORES``.
    """
    found = []
    for one, other in pairwise(curve.stops):
        low, high = sorted((one.up.value, other.up.value))
        if low <= level <= high:
            share = (level - one.up.value) / (other.up.value - one.up.value) if high > low else 0.0
            pairs = zip(_numbers(one.right), _numbers(other.right), strict=True)
            found.append(Interval(*((1 - share) * a + share * b for a, b in pairs)))
    best = max if SCORES[name].better == "higher" else min
    return best(found, key=lambda interval: interval.value, default=None)


def _numbers(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


def _draw(panel: Any, curve: Curve, scores: tuple[str, str], place: int) -> list[tuple[float, float]]:
    """Draw one curve and return its points; ``place`` chooses its colour and its marker."""
    y = _scaled([stop.up for stop in curve.stops], scores[0])
    x = _scaled([stop.right for stop in curve.stops], scores[1])
    colour = COLOURS[place % len(COLOURS)]
    look: dict[str, Any] = {"color": colour, "marker": MARKERS[place % len(MARKERS)], "ms": 6, "lw": 1.6}
    panel.errorbar(x[0], y[0], xerr=x[1:], yerr=y[1:], fmt="none", ecolor=colour, elinewidth=1.1, alpha=0.45)
    panel.plot(x[0], y[0], label=curve.label, **look)
    return list(zip(x[0], y[0], strict=True))


def _bars(curve: Curve, scores: tuple[str, str]) -> list[list[tuple[float, float]]]:
    """Return the two ends of each bar."""
    up, right = (100 if SCORES[name].percent else 1 for name in scores)
    bars = []
    for stop in curve.stops:
        x, y = right * stop.right.value, up * stop.up.value
        bars += [
            [(right * stop.right.low, y), (right * stop.right.high, y)],
            [(x, up * stop.up.low), (x, up * stop.up.high)],
        ]
    return bars


def _scaled(intervals: Sequence[Interval], name: str) -> list[list[float]]:
    """Return means, and how far the intervals reach below and above them; shares in percent."""
    factor = 100 if SCORES[name].percent else 1
    below = [factor * max(0.0, i.value - i.low) for i in intervals]
    return [[factor * i.value for i in intervals], below, [factor * max(0.0, i.high - i.value) for i in intervals]]

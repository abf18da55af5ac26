"""One score against another along a sweep, such as accuracy against diversity: what more of one costs of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steerdiff.errors import require
from steerdiff.scripts.suggestions import closest
from steerdiff.train.benchmark import SCORES, TASKS, Interval

from .plan import Plan
from .plots import COLOURS, GREY, INK, MARKERS, Line, dressed, figure_of, label_of, lines_of, png_of, tick, title_of
from .tables import Measured

__all__ = ["Station", "check_tradeoff", "paths_of", "tradeoff_plot"]


@dataclass(frozen=True)
class Station:
    """A point of a path."""

    place: int  #: number of its value on the first axis
    up: Interval  #: the score that the plot shows upwards
    right: Interval  #: and to the right


def check_tradeoff(plan: Plan) -> None:
    """Raise ``UserError`` where a plan's trade-off names scores that are none, or that say nothing of its task."""
    if plan.tradeoff is None:
        return
    distinct = len(plan.tradeoff) == len(set(plan.tradeoff)) == 2
    require(distinct, f"tradeoff is {','.join(plan.tradeoff)}; give two different scores, such as right,diversity")
    for name in plan.tradeoff:
        require(name in SCORES, f"there is no score {name!r}; {closest(name, SCORES)}")
        require(
            name not in TASKS[plan.task].without, f"{name} says nothing of the task {plan.task!r}; give another score"
        )
    several = "diversity" not in plan.tradeoff or len(plan.seeds) > 1
    require(several, "the diversity of a trade-off lies between results of several seeds; give --seeds 2 or more")


def paths_of(plan: Plan, rows: Sequence[Measured]) -> list[tuple[str, list[Station]]]:
    """Return for each line of the first axis its label, and the stations where both scores are known."""
    up, right = plan.tradeoff or ("", "")
    return [(line.label, _stations(line, up, right)) for line in lines_of(plan, 0, rows)]


def tradeoff_plot(plan: Plan, rows: Sequence[Measured]) -> bytes | None:
    """Return the plot as PNG: the first score of the plan's trade-off against the second, a path along the first axis.

    Bars are the intervals of both scores; each station names its value. None if no point has both scores.
    """
    paths = [(label, stations) for label, stations in paths_of(plan, rows) if stations]
    if plan.tradeoff is None or not paths:
        return None
    up, right = plan.tradeoff
    figure = figure_of((7.6, 5.4))
    panel = figure.subplots()
    for number, (label, stations) in enumerate(paths):
        _draw(panel, plan, (number, label), stations)
    panel.set_xlabel(label_of(right), fontsize=12, color=INK)
    panel.set_ylabel(label_of(up), fontsize=12, color=INK)
    panel.margins(0.08)
    dressed(panel)
    title = title_of(plan, 0, lines_of(plan, 0, rows))
    figure.suptitle(title, x=0.01, ha="left", fontsize=15, fontweight="bold", color=INK)
    axis = plan.axes[0].name.replace("+", " + ")
    panel.set_title(f"along {axis}; bars are 95 % intervals", loc="left", fontsize=11, color=GREY)
    if len(paths) > 1:
        figure.legend(loc="outside lower left", ncols=min(3, len(paths)), frameon=False, fontsize=11)
    return png_of(figure)


def _stations(line: Line, up: str, right: str) -> list[Station]:
    found = sorted(line.intervals.items())
    return [Station(place, own[up], own[right]) for place, own in found if up in own and right in own]


def _draw(panel: Any, plan: Plan, style: tuple[int, str], stations: Sequence[Station]) -> None:
    """Draw one path; ``style`` is its number and its label."""
    number, label = style
    up, right = plan.tradeoff or ("", "")
    y = _scaled([station.up for station in stations], up)
    x = _scaled([station.right for station in stations], right)
    colour = COLOURS[number % len(COLOURS)]
    look: dict[str, Any] = {"color": colour, "marker": MARKERS[number % len(MARKERS)], "ms": 6, "lw": 1.6}
    panel.errorbar(x[0], y[0], xerr=x[1:], yerr=y[1:], fmt="none", ecolor=colour, elinewidth=1.1, alpha=0.45)
    panel.plot(x[0], y[0], label=label, **look)
    for station, across, along in zip(stations, x[0], y[0], strict=True):
        text = tick(plan.axes[0].values[station.place], " + ")
        panel.annotate(text, (across, along), (6, 6), textcoords="offset points", fontsize=10, color=INK)


def _scaled(intervals: Sequence[Interval], name: str) -> list[list[float]]:
    """Return means, and how far the intervals reach below and above them; shares in percent."""
    factor = 100 if SCORES[name].percent else 1
    below = [factor * max(0.0, i.value - i.low) for i in intervals]
    return [[factor * i.value for i in intervals], below, [factor * max(0.0, i.high - i.value) for i in intervals]]

"""One score against another along a sweep, such as accuracy against diversity: what more of one costs of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steerdiff.errors import require
from steerdiff.scripts.suggestions import closest
from steerdiff.train.benchmark import SCORES, TASKS, Interval

from .curves import Curve, Stop, curve_plot
from .plan import Plan
from .plots import Line, lines_of, tick, title_of
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
    curves = [Curve(label, tuple(_stop(plan, place) for place in path)) for label, path in paths_of(plan, rows) if path]
    if plan.tradeoff is None or not curves:
        return None
    up, right = plan.tradeoff
    axis = plan.axes[0].name.replace("+", " + ")
    return curve_plot(curves, (up, right), title_of(plan, 0, lines_of(plan, 0, rows)), f"along {axis}")


def _stop(plan: Plan, station: Station) -> Stop:
    return Stop(tick(plan.axes[0].values[station.place], " + "), station.up, station.right)


def _stations(line: Line, up: str, right: str) -> list[Station]:
    found = sorted(line.intervals.items())
    return [Station(place, own[up], own[right]) for place, own in found if up in own and right in own]

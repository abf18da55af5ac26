"""Pareto plots: what an edit changes that it should not, against how often it does what was asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from steerdiff.train.benchmark import TASKS, Interval

from .edit_results import TaskResults
from .edit_tables import head

__all__ = ["Plot", "Point", "draw", "draw_all", "frontier", "plot_of"]

#: Colours that colour-blind readers can tell apart (Okabe and Ito); with markers of another number, 7 * 9 pairs.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6A3D9A")
_MARKERS = "osD^vPXph"
_GREY, _INK, _LIGHT = "#8A8A8A", "#18181B", "#D4D4D8"
_YARDSTICK_MARKERS = {"unchanged": "s", "sample": "X"}
_DPI = 150


@dataclass(frozen=True, kw_only=True)
class Point:
    """An entrant in a plot."""

    name: str  #: of its method
    setting: str  #: "published" is drawn hollow, "tuned" filled, "yardstick" grey
    x: Interval  #: lower is better
    y: Interval  #: share, higher is better


@dataclass(frozen=True, kw_only=True)
class Plot:
    """The points of a task."""

    title: str
    note: str = ""  #: smaller, below the title: number of cases and seeds
    x_label: str
    y_label: str
    points: tuple[Point, ...]
    names: tuple[str, ...]  #: of all methods, in an order that decides their colours and markers


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which points no other one beats: lower or equal x and higher or equal y, one of them truly.

    Args:
        points: Pairs (x, y); x is better low, y high.

    Returns:
        Their numbers, by rising x; of equal points, all.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] > points[kept[-1]][1] or points[i] == points[kept[-1]]:
            kept.append(i)
    return kept


def plot_of(results: TaskResults, names: Sequence[str], size: str) -> Plot | None:
    """Return a task's plot: the target attribute right, against the error outside of what changes.

    Where an image is restored (both captions are one), nothing is outside: the distance in features to the truth takes
    its place.

    Args:
        results: Of the task.
        names: Of all methods, in an order that decides their colours.
        size: How many cases and seeds there are, in words.

    Returns:
        The plot; None if no method has both scores.
    """
    restored = all(case.source_text == case.target_text for case in results.cases)
    score = "feature_inside" if restored else "outside"
    points = []
    for entry in results.entries:
        x, y = entry.interval(score), entry.interval("right")
        if x is not None and y is not None:
            points.append(Point(name=entry.entrant.method, setting=entry.entrant.setting, x=x, y=y))
    if all(point.setting == "yardstick" for point in points):
        return None
    label = head(score).replace(" inside", "") if restored else head(score)
    return Plot(
        title=TASKS[results.task].title,
        note=size,
        x_label=label,
        y_label=f"target attribute {head('right')}",
        points=tuple(points),
        names=tuple(names),
    )


def draw(plot: Plot) -> bytes:
    """Return one plot as PNG, with a key."""
    figure = _figure((8.2, 5.2))
    axes = figure.subplots()
    _draw_points(axes, plot, size=10)
    axes.set_title(plot.title, loc="left", fontsize=17, fontweight="bold", color=_INK, pad=28 if plot.note else 10)
    note = axes.text(0, 1.03, plot.note, transform=axes.transAxes, fontsize=12, color="#52525B")
    note.set_in_layout(False)
    axes.set_xlabel(plot.x_label, fontsize=14)
    axes.set_ylabel(plot.y_label, fontsize=14)
    axes.tick_params(labelsize=12)
    handles = _key(plot.names, {point.name for point in plot.points}, 9)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=12, labelspacing=0.7)
    return _png(figure)


def draw_all(plots: Sequence[Plot], title: str) -> bytes:
    """Return all plots side by side as one PNG, with one key below them."""
    columns = min(4, len(plots))
    rows = math.ceil(len(plots) / columns)
    names = [point.name for plot in plots for point in plot.points]
    figure = _figure((max(3.5 * columns, 7), 3.3 * rows + 1.5))
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=17, fontweight="bold", color=_INK)
    for axes, plot in zip(grid.flat, plots, strict=False):
        _draw_points(axes, plot, size=8)
        axes.set_title(plot.title, loc="left", fontsize=14, fontweight="bold", color=_INK)
        axes.set_xlabel(plot.x_label, fontsize=11)
        axes.tick_params(labelsize=10.5)
        axes.locator_params(axis="x", nbins=4)
    for row in grid:
        row[0].set_ylabel(plots[0].y_label, fontsize=11)
    for axes in grid.flat[len(plots) :]:
        axes.set_axis_off()
    handles = _key(plots[0].names, set(names), 8)
    figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=min(len(handles), 5 if columns > 2 else 3),
        frameon=False,
        fontsize=12,
    )
    return _png(figure)


def _figure(size: tuple[float, float]) -> Any:
    """Return an empty figure that no window shows and that pyplot does not keep."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_points(axes: Any, plot: Plot, size: float) -> None:
    contestants = [point for point in plot.points if point.setting != "yardstick"]
    places = [(point.x.value, point.y.value) for point in contestants]
    best = [places[i] for i in frontier(places)]
    for point in sorted(plot.points, key=lambda point: point.setting == "yardstick", reverse=True):
        colour, marker, fill = _look(point, plot.names)
        x, y = point.x, point.y
        axes.errorbar(
            x.value,
            100 * y.value,
            xerr=_reach(x, 1),
            yerr=_reach(y, 100),
            color=colour,
            ecolor=colour,
            elinewidth=1.1,
            alpha=0.45,
            fmt="none",
            zorder=2,
        )
        axes.plot(x.value, 100 * y.value, marker, ms=size, mfc=fill, mec=colour, mew=1.8, zorder=3, clip_on=False)
    axes.set_ylim(-4, 104)
    axes.set_xlim(left=min(0, *(point.x.low for point in plot.points)) if plot.points else 0)
    axes.margins(x=0.06)
    if best:
        xs, ys = (
            [best[0][0], *(x for x, _ in best), axes.get_xlim()[1]],
            [-4, *(100 * y for _, y in best), 100 * best[-1][1]],
        )
        axes.step(xs, ys, where="post", color=_GREY, lw=1.3, ls=(0, (4, 3)), zorder=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(color=_GREY, labelcolor=_INK)
    axes.grid(color=_LIGHT, lw=0.6, alpha=0.6)
    axes.set_axisbelow(True)


def _reach(interval: Interval, factor: float) -> list[list[float]]:
    """Return the lengths of an error bar below and above the mean; a bootstrap interval need not hold its mean."""
    low, high = interval.value - interval.low, interval.high - interval.value
    return [[factor * max(low, 0.0)], [factor * max(high, 0.0)]]


def _look(point: Point, names: Sequence[str]) -> tuple[str, str, str]:
    """Return colour, marker and fill."""
    if point.setting == "yardstick":
        return _GREY, _YARDSTICK_MARKERS.get(point.name, "s"), _LIGHT
    number = list(names).index(point.name)
    colour = _COLOURS[number % len(_COLOURS)]
    return colour, _MARKERS[number % len(_MARKERS)], colour if point.setting == "tuned" else "white"


def _key(names: Sequence[str], used: set[str], size: float) -> list[Any]:
    from matplotlib.lines import Line2D

    def handle(marker: str, colour: str, fill: str, label: str) -> Line2D:
        return Line2D([], [], marker=marker, ms=size, mfc=fill, mec=colour, mew=1.8, ls="none", label=label)

    handles = []
    for name in names:
        if name in used:
            one = Point(name=name, setting="tuned", x=Interval(0, 0, 0), y=Interval(0, 0, 0))
            colour, marker, fill = _look(one, names)
            handles.append(handle(marker, colour, fill, name))
    handles += [handle("o", _INK, "white", "published setting"), handle("o", _INK, _INK, "tuned setting")]
    texts = {"unchanged": "doing nothing", "sample": "forgetting the image"}
    for name, text in texts.items():
        if name in used:
            handles.append(handle(_YARDSTICK_MARKERS[name], _GREY, _LIGHT, text))
    return [*handles, Line2D([], [], color=_GREY, lw=1.3, ls=(0, (4, 3)), label="frontier of the methods")]

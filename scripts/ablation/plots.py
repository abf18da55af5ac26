"""One plot for each axis of a sweep: every score with its interval against the values."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steerdiff.scripts.arguments import plain
from steerdiff.train.benchmark import SCORES, Interval

from .plan import Plan
from .sweeps import Axis
from .tables import Measured, shown, shown_scores

__all__ = [
    "COLOURS",
    "GREY",
    "INK",
    "MARKERS",
    "Line",
    "Scale",
    "dressed",
    "figure_of",
    "label_of",
    "lines_of",
    "plot",
    "png_of",
    "scale_of",
    "tick",
    "title_of",
]

#: Colours that colour-blind readers can tell apart (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
_MOST_LINES = len(COLOURS)
_LOG_SPAN = 30  # largest over smallest value from which an axis is logarithmic
_SIDE_STEP = 0.016  # of the width, between bars of different lines at one value
INK, GREY, LIGHT = "#18181B", "#71717A", "#E4E4E7"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Where the values of an axis stand in a plot."""

    places: tuple[float, ...]  #: x of each value
    kind: str  #: "linear", "log" or "categories"

    def beside(self, place: float, steps: float) -> float:
        """Return the place of a bar that stands some steps to the right of a value."""
        if self.kind == "log":
            return float(place * (max(self.places) / min(self.places)) ** (steps * _SIDE_STEP))
        return place + (max(self.places) - min(self.places) or 1.0) * steps * _SIDE_STEP


@dataclass(frozen=True, kw_only=True)
class Line:
    """Intervals along an axis, at one value of each other axis or averaged over them."""

    label: str
    intervals: Mapping[int, Mapping[str, Interval]]  #: by number of the value, by score


def scale_of(axis: Axis) -> Scale:
    """Return where values stand: numbers in their order, by their logarithm if they span more than a factor of 30."""
    values = [value[0] for value in axis.values]
    numeric = len(axis.fields) == 1 and all(type(value) in (int, float) and math.isfinite(value) for value in values)
    if not numeric:
        return Scale(places=tuple(float(i) for i in range(len(values))), kind="categories")
    wide = min(values) > 0 and max(values) / min(values) > _LOG_SPAN
    return Scale(places=tuple(float(value) for value in values), kind="log" if wide else "linear")


def lines_of(plan: Plan, number: int, rows: Sequence[Measured]) -> list[Line]:
    """Return a line for each setting of the other axes, or where those are many, one averaged over them.

    An average's interval is the average of the intervals, which is at least as wide as it need be.
    """
    groups: dict[tuple[int, ...], list[Measured]] = {}
    for row in rows:
        if row.intervals:
            groups.setdefault(_others(row.point.places, number), []).append(row)
    if len(groups) > _MOST_LINES:
        return [Line(label="", intervals=_averages(rows, number))]
    return [
        Line(label=_label(plan, number, key), intervals={row.point.places[number]: row.intervals for row in group})
        for key, group in sorted(groups.items())
    ]


def plot(plan: Plan, number: int, rows: Sequence[Measured]) -> bytes:
    """Return the plot of an axis as PNG, a panel for each score that applies."""
    names, axis = shown_scores(rows), plan.axes[number]
    lines, scale = lines_of(plan, number, rows), scale_of(axis)
    columns = min(len(names), 3 if -len(names) % 3 < -len(names) % 4 else 4)  # as few empty places as may be
    figure = figure_of((4.1 * columns + 0.4, 3.2 * math.ceil(len(names) / columns) + 1.1))
    panels = figure.subplots(math.ceil(len(names) / columns), columns, squeeze=False)
    for panel, name in zip(panels.flat, names, strict=False):
        for style, line in enumerate(lines):
            _draw(panel, line, name, scale, (style, len(lines)))
        _finish(panel, axis, scale, name)
    for panel in panels.flat[len(names) :]:
        panel.set_axis_off()
    figure.suptitle(title_of(plan, number, lines), x=0.01, ha="left", fontsize=15, fontweight="bold", color=INK)
    figure.supxlabel(axis.name.replace("+", " + "), fontsize=13, color=INK)
    if len(lines) > 1:
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=12, labelspacing=0.7)
    return png_of(figure)


def title_of(plan: Plan, number: int, lines: Sequence[Line]) -> str:
    """Return the title, which says where other fields are averaged over."""
    others = [axis.name for i, axis in enumerate(plan.axes) if i != number]
    averaged = bool(others) and not any(line.label for line in lines)
    return f"{plan.title}, averaged over {' and '.join(others)}" if averaged else plan.title


def _others(places: tuple[int, ...], number: int) -> tuple[int, ...]:
    return places[:number] + places[number + 1 :]


def _label(plan: Plan, number: int, key: tuple[int, ...]) -> str:
    axes = [axis for i, axis in enumerate(plan.axes) if i != number]
    return ", ".join(f"{axis.name} = {tick(axis.values[place], ' + ')}" for axis, place in zip(axes, key, strict=True))


def tick(value: Sequence[Any], joint: str) -> str:
    """Return a value of an axis as text, its parts with ``joint`` between them."""
    return joint.join(shown(plain(part)) for part in value)


def _averages(rows: Sequence[Measured], number: int) -> dict[int, dict[str, Interval]]:
    found: dict[int, dict[str, Interval]] = {}
    for place in sorted({row.point.places[number] for row in rows if row.intervals}):
        own = [row.intervals for row in rows if row.intervals and row.point.places[number] == place]
        names = [name for name in SCORES if all(name in intervals for intervals in own)]
        found[place] = {name: _mean([intervals[name] for intervals in own]) for name in names}
    return found


def _mean(intervals: Sequence[Interval]) -> Interval:
    n = len(intervals)
    return Interval(
        sum(i.value for i in intervals) / n, sum(i.low for i in intervals) / n, sum(i.high for i in intervals) / n
    )


def figure_of(size: tuple[float, float]) -> Any:
    """Return an empty figure that no window shows and that pyplot does not keep."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def png_of(figure: Any) -> bytes:
    """Return a figure as PNG, the same bytes each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def label_of(name: str) -> str:
    """Return a score's name with its unit, and which side is better."""
    score = SCORES[name]
    unit = ", %" if score.percent else ""
    better = f"   ({score.better} is better)" if score.better else ""
    return f"{score.title}{unit}{better}"


def dressed(panel: Any) -> None:
    """Give a panel the look of all."""
    panel.tick_params(labelsize=10, color=GREY, labelcolor=INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(GREY)
    panel.grid(color=LIGHT, lw=0.7)
    panel.set_axisbelow(True)


def _draw(panel: Any, line: Line, name: str, scale: Scale, style: tuple[int, int]) -> None:
    """Draw a score of one line: its means in a band between the ends of the intervals.

    Of categories, and of several lines, whose bands would hide each other, the intervals are bars; ``style`` is the
    number of the line and how many there are, whose bars stand side by side.
    """
    factor, (number, count) = 100 if SCORES[name].percent else 1, style
    found = sorted((scale.places[place], own[name]) for place, own in line.intervals.items() if name in own)
    if not found:
        return
    x, intervals = [scale.beside(place, number - (count - 1) / 2) for place, _ in found], [i for _, i in found]
    mean, low, high = ([factor * getattr(i, end) for i in intervals] for end in ("value", "low", "high"))
    look: dict[str, Any] = {"color": COLOURS[number], "marker": MARKERS[number], "ms": 6, "label": line.label}
    look["lw"] = 0 if scale.kind == "categories" else 1.8
    if count == 1 and scale.kind != "categories":
        panel.fill_between(x, low, high, color=look["color"], alpha=0.16, lw=0)
        panel.plot(x, mean, **look)
        return
    ends = list(zip(mean, low, high, strict=True))
    reach = [[max(middle - a, 0) for middle, a, _ in ends], [max(b - middle, 0) for middle, _, b in ends]]
    panel.errorbar(x, mean, yerr=reach, elinewidth=1.2, capsize=2.5, **look)


def _finish(panel: Any, axis: Axis, scale: Scale, name: str) -> None:
    panel.set_title(label_of(name), loc="left", fontsize=11.5, color=INK)
    if scale.kind == "log":
        panel.set_xscale("log")
    joint = "\n" if scale.kind == "categories" else ""
    panel.set_xticks(scale.places, [tick(value, joint) for value in axis.values])
    if SCORES[name].percent:
        panel.set_ylim(-4, 104)
    panel.minorticks_off()
    dressed(panel)

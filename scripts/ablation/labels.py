"""Labels of points in a plot, placed where they hide the least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Label", "place_labels"]

Places = Sequence[tuple[float, float]]
FloatArray = npt.NDArray[np.float64]
Box = tuple[FloatArray, FloatArray]  # its lower left and its upper right corner, in pixels

_SIDES = [side for side in product((1, 0, -1), repeat=2) if side != (0, 0)]
_GAP = 4.0  # points between a marker's middle and its label
_SIZE = 10
_STEP = 3.0  # pixels between the places of a line that a label is kept away from
_RADIUS = 4.0  # points, of a marker
_ON_BAR, _ON_MARKER, _ON_LABEL, _OUTSIDE = 0.3, 30.0, 1000.0, 1000.0  # beside 1 for each place of a line


@dataclass(frozen=True)
class Label:
    """A text beside a point."""

    text: str
    x: float  #: of the point, as the panel's axis has it
    y: float
    colour: str


def place_labels(panel: Any, labels: Sequence[Label], lines: Sequence[Places], bars: Sequence[Places] = ()) -> None:
    """Write each label at one of eight sides of its point: where it hides the least of what is drawn.

    Args:
        panel: Matplotlib's axes, with everything else drawn.
        labels: In order; an earlier one does not make way for a later.
        lines: The points of each line, with markers.
        bars: Thin lines without markers, which matter less.
    """
    panel.figure.draw_without_rendering()  # settles where the axes are
    frame, scale = panel.get_window_extent(), panel.figure.dpi / 72
    inside = (np.array([frame.x0, frame.y0]), np.array([frame.x1, frame.y1]))
    ink, thin = (_drawn(panel, places) for places in (lines, bars))
    marks = panel.transData.transform([place for line in lines for place in line])
    taken: list[Box] = []
    for label in labels:
        look = {"ha": "center", "va": "center", "fontsize": _SIZE, "color": label.colour}
        note = panel.annotate(label.text, (label.x, label.y), (0, 0), textcoords="offset points", **look)
        note.set_in_layout(False)
        extent = note.get_window_extent()
        half = np.array([extent.width, extent.height]) / 2
        point = panel.transData.transform((label.x, label.y))
        offsets = [np.array(side) * (half + _GAP * scale) for side in _SIDES]
        boxes = [(point + offset - half, point + offset + half) for offset in offsets]
        costs = []
        for box in boxes:
            cost = _hidden(box, ink) + _ON_BAR * _hidden(box, thin) + _ON_MARKER * _hidden(box, marks, _RADIUS * scale)
            cost += _ON_MARKER * _strays(box, point, marks)
            clashes = sum(_overlap(box, other) for other in taken)
            costs.append(cost + _ON_LABEL * clashes + _OUTSIDE * (not _within(box, inside)))
        best = int(np.argmin(costs))
        taken.append(boxes[best])
        note.set_position(tuple(offsets[best] / scale))


def _drawn(panel: Any, lines: Sequence[Places]) -> FloatArray:
    """Return places every few pixels along lines, [N, 2]."""
    found = [np.zeros((0, 2))]
    for line in lines:
        for one, other in pairwise(panel.transData.transform(np.asarray(line, dtype=float))):
            count = max(1, int(np.hypot(*(other - one)) / _STEP))
            found.append(one + (other - one) * np.linspace(0, 1, count + 1)[:, None])
    return np.concatenate(found)


def _hidden(box: Box, places: FloatArray, margin: float = 0.0) -> int:
    return int(((places >= box[0] - margin) & (places <= box[1] + margin)).all(axis=1).sum())


def _overlap(box: Box, other: Box) -> bool:
    return bool((box[0] < other[1]).all() and (other[0] < box[1]).all())


def _strays(box: Box, point: FloatArray, marks: FloatArray) -> bool:
    """Say whether another point is nearer to the middle of a box than its own."""
    middle = (box[0] + box[1]) / 2
    others = marks[(marks != point).any(axis=1)]
    return bool((np.hypot(*(others - middle).T) < np.hypot(*(point - middle))).any())


def _within(box: Box, frame: Box) -> bool:
    return bool((box[0] >= frame[0]).all() and (box[1] <= frame[1]).all())

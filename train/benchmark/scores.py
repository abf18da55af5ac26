"""Scores of edits against their true answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from steerdiff.train.recogniser import Recogniser

from .tasks import Case

__all__ = ["SCORES", "Score", "Scores", "score_edits"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a score is."""

    title: str  #: head of a column
    note: str  #: what it measures, in one line
    better: str  #: "higher" or "lower"; "" where neither is better
    percent: bool = False  #: shown as a share


SCORES: dict[str, Score] = {
    "right": Score(title="right", note="", better="higher", percent=True),
    "inside": Score(title="error inside", note="", better="lower"),
    "outside": Score(title="error outside", note="", better="lower"),
    "feature_inside": Score(title="feature distance inside", note="", better="lower"),
    "feature_outside": Score(title="feature distance outside", note="", better="lower"),
    "iou": Score(title="mask IoU", note="", better="higher"),
    "layout": Score(title="layout kept", note="", better="higher", percent=True),
    "guide": Score(title="distance to the image given", note="", better=""),
    "diversity": Score(title="diversity", note="", better=""),
    "kid": Score(title="KID x 1000", note="", better="lower"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """The scores of one cell. ``summary`` and ``difference`` read them."""

    values: Mapping[str, npt.NDArray[np.float64]]  #: by name, [cases, seeds], or [cases, 1] of "diversity"; may be NaN
    features: npt.NDArray[np.float64]  #: of the results, as the recogniser sees them, [cases, seeds, D]: for "kid"
    truths: npt.NDArray[np.float64]  #: of the true answers, [cases, D]


def score_edits(cases: Sequence[Case], images: Tensor, recogniser: Recogniser | None = None) -> Scores:
    """Score edits; images uint8 [cases, seeds, 3, 64, 64]."""
    raise NotImplementedError

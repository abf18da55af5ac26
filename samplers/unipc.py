"""The unified predictor-corrector solver."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from steerdiff.errors import require

from .combined import combined
from .exponential import Leap, Past, Predicted, same_way, weighted
from .noise import Noise
from .path import Move
from .prediction import Denoiser
from .schedule import Level
from .solvers import Step, check_has_signal, predict

__all__ = ["UniPC"]

BFunction = Literal["bh1", "bh2"]


@dataclass(frozen=True, eq=False)
class _Run:
    """What the next step corrects by."""

    x: Tensor  #: corrected image where the last step began
    history: tuple[Past, ...]  #: predictions, the newest (made there) first
    here: Level  #: level where the last step began
    there: Level  #: level it reached
    order: int  #: order it had


@dataclass(frozen=True, kw_only=True)
class UniPC:
    """UniPC: predicts from earlier evaluations, and corrects each step by the evaluation that follows it.

    One evaluation a step. The corrector adds one to the order of the predictor: errors fall with ``order + 1``, up to
    3, as far as the start of lower order lets them. The last step is not corrected. It begins with order 1, and again
    after ``x`` was touched or the direction changed. Moves up invert.

    Source: Zhao et al. 2023 (UniPC), Algorithms 5 to 8 in the multistep form, with B(h) as published.
    """

    order: int = 2  #: evaluations that the predictor uses, 1 to 3
    b: BFunction = "bh2"  #: B(h) of the paper: "bh1" is h, "bh2" is exp(h) - 1
    predicted: Predicted = "x0"  #: what is extrapolated; "eps" for guidance-free sampling with many steps
    lower_order_final: bool = True  #: ends with steps of falling order

    def __post_init__(self) -> None:
        require(self.order in (1, 2, 3) and isinstance(self.order, int), f"order is {self.order}; it must be 1, 2 or 3")
        require(self.b in get_args(BFunction), f"b is {self.b!r}; known are {', '.join(get_args(BFunction))}")
        require(
            self.predicted in get_args(Predicted),
            f"predicted is {self.predicted!r}; known are {', '.join(get_args(Predicted))}",
        )

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: _Run | None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; a move to the clean level returns the predicted image itself."""
        if self.predicted == "eps":
            check_has_signal("UniPC with predicted='eps'", move)
        here, now = move.here, move.here.log_snr / 2
        prediction = predict(denoise, x, here)
        value = Past.of(prediction, now, self.predicted)
        if state is not None and state.there == here:
            x = self._corrected(state, value)
        leap = Leap.between(here, move.there, self.predicted)
        history = (value, *same_way(state.history if state is not None else None, now, leap.h))[: self.order]
        used = history[: max(1, move.total - move.index)] if self.lower_order_final else history
        return Step(self._predicted(x, leap, used), prediction, _Run(x, history, here, move.there, len(used)))

    def _predicted(self, x: Tensor, leap: Leap, history: tuple[Past, ...]) -> Tensor:
        newest, *older = history
        ratios = [(past.at - newest.at) / leap.h for past in older]
        return self._sum(x, leap, history, ratios)

    def _corrected(self, run: _Run, value: Past) -> Tensor:
        """The last step again, now with the evaluation at its end."""
        leap = Leap.between(run.here, run.there, self.predicted)
        newest, *older = history = run.history[: run.order]
        if leap.h == 0 or not math.isfinite(leap.h):
            return self._sum(run.x, leap, (newest,), [])
        ratios = [*((past.at - newest.at) / leap.h for past in older), 1.0]
        return self._sum(run.x, leap, (*history, value), ratios)

    def _sum(self, x: Tensor, leap: Leap, values: tuple[Past, ...], ratios: list[float]) -> Tensor:
        """A step by the first of ``values``, and by the slopes to the others, which lie ``ratios`` of it away."""
        half = (leap.gained if self.b == "bh2" else leap.reach * leap.z) / 2  # of B(h): as published for one slope
        weights = [half] if len(ratios) == 1 else _weights(leap, ratios)
        shares = [weight / ratio for weight, ratio in zip(weights, ratios, strict=True)]
        return combined((leap.kept, x), *weighted([leap.gained - sum(shares), *shares], values))


def _weights(leap: Leap, ratios: list[float]) -> list[float]:
    """Factors of the slopes at ``ratios`` (in steps) that make the step exact for polynomials of their degree."""
    if not ratios:
        return []
    degrees = range(1, len(ratios) + 1)
    matrix = np.array([[ratio ** (degree - 1) for ratio in ratios] for degree in degrees])
    target = np.array([math.factorial(degree) * leap.weight(degree + 1) for degree in degrees])
    return [float(weight) for weight in np.linalg.solve(matrix, target)]

"""The second-order multistep solver for few steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .noise import Noise
from .path import Move
from .prediction import Denoiser
from .schedule import Level
from .solvers import Step

__all__ = ["DPMSolver2M"]

_FEW_STEPS = 10  # below this the official code ends with a first-order step


@dataclass(frozen=True, eq=False)
class _History:
    x0: Tensor  #: predicted image one step earlier
    half_log_snr: float  #: lambda where it was predicted


@dataclass(frozen=True, kw_only=True)
class DPMSolver2M:
    """DPM-Solver++(2M): extrapolates the predicted image in half log-SNR from two evaluations. Order 2.

    One evaluation a step. The first step, and the first after ``x`` was touched or the direction changed, is of first
    order, which is DDIM. Moves up invert. Uses the prediction's ``x0`` only, moved by guidance.

    Source: Lu et al. 2022 (DPM-Solver++), Algorithm 2.
    """

    lower_order_final: bool = True  #: ends with a first-order step where there are fewer than 10 steps
    order: ClassVar[int] = 2

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: _History | None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; a move to the clean level returns the predicted image itself."""
        here, there = move.here, move.there
        prediction = denoise(x, here).with_score(here.alpha_bar)
        now, then = here.log_snr / 2, there.log_snr / 2
        h = then - now if then != now else 0.0
        x0 = prediction.x0
        if state is not None and not self._is_first_order(move, state, now, h):
            ratio = (now - state.half_log_snr) / h
            x0 = x0 + (x0 - state.x0) / (2 * ratio)
        kept = math.sqrt((1 - there.alpha_bar) / (1 - here.alpha_bar))
        gained = _signal(there) - kept * _signal(here)  # = -alpha_there expm1(-h), also for infinite h
        return Step(kept * x + gained * x0, prediction, _History(prediction.x0, now))

    def _is_first_order(self, move: Move, state: _History, now: float, h: float) -> bool:
        ends_short = self.lower_order_final and move.following is None and move.index + 1 < _FEW_STEPS
        turned = (now - state.half_log_snr) * h <= 0
        return ends_short or turned or math.isinf(h)


def _signal(level: Level) -> float:
    return math.sqrt(level.alpha_bar)

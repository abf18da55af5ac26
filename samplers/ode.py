"""Euler's and Heun's methods for the probability-flow ODE, in sigma."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .noise import Noise
from .path import Move
from .prediction import Denoiser, Prediction
from .schedule import Level
from .solvers import Step, check_has_signal

__all__ = ["Euler", "Heun"]


@dataclass(frozen=True, kw_only=True)
class Euler:
    """Straight step along ``d(x / sqrt(alpha_bar)) = eps d(sigma)``. Order 1, one evaluation a step.

    The same step as DDIM with ``eta = 0`` wherever ``x0`` and ``eps`` of the prediction agree; it uses ``eps`` only.
    Moves up invert. Source: Karras et al. 2022, eq. 4, with their scale ``s(t) = sqrt(alpha_bar)``.
    """

    order: ClassVar[int] = 1

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; UserError at a level without any image (alpha_bar 0)."""
        check_has_signal("Euler", move)
        prediction = _predict(denoise, x, move.here)
        return Step(_straight(x, prediction.eps, move), prediction)


@dataclass(frozen=True, kw_only=True)
class Heun:
    """Euler's step, then again with the mean of the slopes at both ends. Order 2, two evaluations a step.

    A move to the clean image, where no slope can be asked for, is Euler's. Moves up invert. The step's prediction is
    that of its first evaluation. Source: Karras et al. 2022, Algorithm 1.
    """

    order: ClassVar[int] = 2

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; UserError at a level without any image (alpha_bar 0)."""
        check_has_signal("Heun", move)
        first = _predict(denoise, x, move.here)
        x_euler = _straight(x, first.eps, move)
        if move.there.clean:
            return Step(x_euler, first)
        second = _predict(denoise, x_euler, move.there)
        return Step(_straight(x, (first.eps + second.eps) / 2, move), first)


def _predict(denoise: Denoiser, x: Tensor, level: Level) -> Prediction:
    return denoise(x, level).with_score(level.alpha_bar)


def _straight(x: Tensor, slope: Tensor, move: Move) -> Tensor:
    """``x / sqrt(alpha_bar) + (sigma' - sigma) slope``, scaled to the level it reaches."""
    kept = math.sqrt(move.there.alpha_bar / move.here.alpha_bar)
    return kept * x + math.sqrt(move.there.alpha_bar) * (move.there.sigma - move.here.sigma) * slope

"""Single-step methods for the probability-flow ODE in sigma, with the stochastic churn of Karras et al."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from steerdiff.errors import require

from .combined import combined
from .noise import Noise
from .path import Move
from .prediction import Denoiser
from .solvers import Step, check_goes_down, check_has_signal, predict, straight

__all__ = ["DPM2", "Euler", "Heun"]

_LARGEST_CHURN = math.sqrt(2) - 1  # no more new noise than there is noise already


@dataclass(frozen=True, kw_only=True)
class _Churn:
    """Fields of the solvers that may add noise before a step. Source: Karras et al. 2022, Algorithm 2."""

    s_churn: float = 0.0  #: fresh noise of the whole run, in steps' worth; 0 draws none
    s_tmin: float = 0.0  #: smallest sigma at which noise is added
    s_tmax: float = math.inf  #: largest
    s_noise: float = 1.0  #: factor of that noise; slightly above 1 makes up for what a network removes too much

    def __post_init__(self) -> None:
        require(self.s_churn >= 0, f"s_churn is {self.s_churn}; it must be at least 0, which adds no noise")
        require(
            0 <= self.s_tmin <= self.s_tmax,
            f"s_tmin is {self.s_tmin} and s_tmax {self.s_tmax}; they must obey 0 <= s_tmin <= s_tmax",
        )
        require(self.s_noise >= 0, f"s_noise is {self.s_noise}; it must be at least 0, and is 1 or slightly more")

    def _churned(self, x: Tensor, move: Move, noise: Noise) -> tuple[Tensor, Move]:
        """``x`` with its fresh noise, and the move from the noisier level to where it leads."""
        check_has_signal(type(self).__name__, move)
        sigma = move.here.sigma
        gamma = min(self.s_churn / move.total, _LARGEST_CHURN) if self.s_tmin <= sigma <= self.s_tmax else 0.0
        if gamma == 0:
            return x, move
        check_goes_down(f"{type(self).__name__} with churn", move, "invert with s_churn=0")
        hat = move.level_of_sigma(sigma * (1 + gamma))
        spread = math.sqrt(hat.sigma**2 - sigma**2) * self.s_noise
        kept = math.sqrt(hat.alpha_bar / move.here.alpha_bar)
        churned = combined((kept, x), (math.sqrt(hat.alpha_bar) * spread, noise()))
        return churned, replace(move, here=hat)


@dataclass(frozen=True, kw_only=True)
class Euler(_Churn):
    """Straight step along ``d(x / sqrt(alpha_bar)) = eps d(sigma)``. Order 1, one evaluation a step.

    The same step as DDIM with ``eta = 0`` wherever ``x0`` and ``eps`` of the prediction agree; it uses ``eps`` only.
    Moves up invert, without churn. Source: Karras et al. 2022, eq. 4, with their scale ``s(t) = sqrt(alpha_bar)``.
    """

    order: ClassVar[int] = 1

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; UserError at a level without any image (alpha_bar 0)."""
        x, move = self._churned(x, move, noise)
        prediction = predict(denoise, x, move.here)
        return Step(straight(x, prediction.eps, move.here, move.there), prediction)


@dataclass(frozen=True, kw_only=True)
class Heun(_Churn):
    """Euler's step, then again with the mean of the slopes at both ends. Order 2, two evaluations a step.

    A move to the clean image, where no slope can be asked for, is Euler's. Moves up invert, without churn. The step's
    prediction is that of its first evaluation. Source: Karras et al. 2022, Algorithms 1 and 2.
    """

    order: ClassVar[int] = 2

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; UserError at a level without any image (alpha_bar 0)."""
        x, move = self._churned(x, move, noise)
        here, there = move.here, move.there
        first = predict(denoise, x, here)
        x_euler = straight(x, first.eps, here, there)
        if there.clean:
            return Step(x_euler, first)
        second = predict(denoise, x_euler, there)
        return Step(straight(x, (first.eps + second.eps) / 2, here, there), first)


@dataclass(frozen=True, kw_only=True)
class DPM2(_Churn):
    """Straight step with the slope half way in log sigma. Order 2, two evaluations a step.

    A move to the clean image is Euler's. Moves up invert, without churn. Source: Karras et al. 2022, Algorithm 2, with
    the midpoint of DPM-Solver-2 (Lu et al. 2022, Algorithm 1) in the place of Heun's second slope; as k-diffusion has
    it.
    """

    order: ClassVar[int] = 2

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; UserError at a level without any image (alpha_bar 0)."""
        x, move = self._churned(x, move, noise)
        here, there = move.here, move.there
        first = predict(denoise, x, here)
        if there.clean:
            return Step(straight(x, first.eps, here, there), first)
        middle = move.level_of_sigma(math.sqrt(here.sigma * there.sigma))
        second = predict(denoise, straight(x, first.eps, here, middle), middle)
        return Step(straight(x, second.eps, here, there), first)

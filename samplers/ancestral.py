"""Ancestral solvers: a deterministic step below the level that is asked for, then fresh noise up to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from steerdiff.errors import require

from .combined import combined
from .noise import Noise
from .path import Move
from .prediction import Denoiser
from .schedule import Level
from .solvers import Step, check_goes_down, check_has_signal, predict, straight

__all__ = ["DPM2Ancestral", "EulerAncestral", "check_eta"]


def lower_level(here: Level, there: Level, eta: float) -> tuple[Level, float]:
    """Where the deterministic part of a step leads, and the sigma of the fresh noise that leads back up to ``there``.

    ``sigma_up = eta sigma' sqrt(1 - sigma'**2 / sigma**2)`` and ``sigma_down = sqrt(sigma'**2 - sigma_up**2)``: for
    ``eta = 1`` the variance of the ancestral step of Song et al. 2021 (score SDE), eq. 47.
    """
    if not eta or there.clean or there.sigma >= here.sigma:
        return there, 0.0
    share = there.sigma / here.sigma
    up = min(1.0, eta * math.sqrt(1 - share**2)) * there.sigma
    down_squared = there.sigma**2 - up**2
    return Level(there.t, 1 / (1 + down_squared)), up


def back_up(x: Tensor, down: Level, there: Level, spread: float, noise: Noise) -> Tensor:
    """``x`` at ``down`` with fresh noise of that sigma, scaled to the level ``there``."""
    if down == there:
        return x
    kept = math.sqrt(there.alpha_bar / down.alpha_bar)
    return combined((kept, x), (math.sqrt(there.alpha_bar) * spread, noise()))


def check_eta(eta: float, s_noise: float) -> None:
    """Raise UserError unless the share of fresh noise is in [0, 1] and its factor not negative."""
    require(0 <= eta <= 1, f"eta is {eta}; it must lie in [0, 1]")
    require(s_noise >= 0, f"s_noise is {s_noise}; it must be at least 0, and is 1 where nothing else is known")


@dataclass(frozen=True, kw_only=True)
class EulerAncestral:
    """Euler's step to a lower level, and fresh noise up again; ``eta = 0`` is Euler. Order 1, one evaluation a step.

    Source: the ancestral step of Song et al. 2021 (score SDE), appendix F, in the form of k-diffusion.
    """

    eta: float = 1.0  #: share of fresh noise: 0 is none, 1 the ancestral step's
    s_noise: float = 1.0  #: factor of the fresh noise
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_eta(self.eta, self.s_noise)

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; UserError if ``eta > 0`` goes up, or where alpha_bar is 0."""
        down, up = _split("EulerAncestral", move, self.eta)
        prediction = predict(denoise, x, move.here)
        lower = straight(x, prediction.eps, move.here, down)
        return Step(back_up(lower, down, move.there, up * self.s_noise, noise), prediction)


@dataclass(frozen=True, kw_only=True)
class DPM2Ancestral:
    """DPM2's step to a lower level, and fresh noise up again; ``eta = 0`` is DPM2. Two evaluations a step.

    Order 2 in the mean and variance of a Gaussian. Source: k-diffusion; the parts are those of ``DPM2`` and
    ``EulerAncestral``.
    """

    eta: float = 1.0  #: share of fresh noise: 0 is none, 1 the ancestral step's
    s_noise: float = 1.0  #: factor of the fresh noise
    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_eta(self.eta, self.s_noise)

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; UserError if ``eta > 0`` goes up, or where alpha_bar is 0."""
        here = move.here
        down, up = _split("DPM2Ancestral", move, self.eta)
        first = predict(denoise, x, here)
        if down.clean:
            return Step(straight(x, first.eps, here, down), first)
        middle = move.level_of_sigma(math.sqrt(here.sigma * down.sigma))
        second = predict(denoise, straight(x, first.eps, here, middle), middle)
        lower = straight(x, second.eps, here, down)
        return Step(back_up(lower, down, move.there, up * self.s_noise, noise), first)


def _split(name: str, move: Move, eta: float) -> tuple[Level, float]:
    check_has_signal(name, move)
    if eta:
        check_goes_down(f"{name} with eta > 0", move, "invert with eta=0")
    return lower_level(move.here, move.there, eta)

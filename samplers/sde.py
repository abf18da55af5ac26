"""The continuous diffusions of the score-SDE paper, and how they become levels and paths.

All are linear: ``dx = drift dt + diffusion dW``, so that ``x(t)`` is normal with mean ``signal(t) x0`` and deviation
``std(t)``, for t from 0 (the image) to 1. Solvers work in variance-preserving coordinates, ``x / scale(t)``, where each
of them is a row of levels.

Source: Song et al. 2021 (score SDE), eq. 9-13 and appendix B-C.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from steerdiff.errors import require

from .path import Path
from .prediction import Prediction
from .schedule import CLEAN, Level

__all__ = ["SDE", "ScoreDenoiser", "SubVPSDE", "VESDE", "VPSDE", "sde_level", "sde_path", "sde_scale"]

_LABELS = 999.0  # levels carry 999 t, as the published continuous networks are told, so that T counts as 1000


class SDE(Protocol):
    """A linear diffusion on times t in [0, 1]."""

    def signal(self, t: float) -> float:
        """Factor of the image in the marginal's mean, ``m(t)``."""
        ...

    def std(self, t: float) -> float:
        """Standard deviation of the marginal."""
        ...

    def drift(self, x: Tensor, t: float) -> Tensor:
        """Drift of the forward equation, the shape of ``x``."""
        ...

    def diffusion(self, t: float) -> float:
        """Its diffusion coefficient, ``g(t)``."""
        ...

    @property
    def prior_std(self) -> float:
        """Standard deviation of the noise that sampling starts from."""
        ...


@dataclass(frozen=True, kw_only=True)
class VPSDE:
    """Variance preserving; the limit of DDPM's linear betas."""

    beta_min: float = 0.1  #: rate of noise at t = 0
    beta_max: float = 20.0  #: rate of noise at t = 1

    def __post_init__(self) -> None:
        _check_order("beta_min", self.beta_min, "beta_max", self.beta_max)

    def _beta(self, t: float) -> float:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _integral(self, t: float) -> float:
        return t * self.beta_min + t**2 * (self.beta_max - self.beta_min) / 2

    def signal(self, t: float) -> float:
        """``exp(-1/2 integral of beta)``."""
        return math.exp(-self._integral(t) / 2)

    def std(self, t: float) -> float:
        """``sqrt(1 - signal**2)``."""
        return math.sqrt(-math.expm1(-self._integral(t)))

    def drift(self, x: Tensor, t: float) -> Tensor:
        """``-beta x / 2``."""
        return -self._beta(t) / 2 * x

    def diffusion(self, t: float) -> float:
        """``sqrt(beta)``."""
        return math.sqrt(self._beta(t))

    @property
    def prior_std(self) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class SubVPSDE(VPSDE):
    """Sub-variance preserving: the same drift with less noise at every time."""

    def std(self, t: float) -> float:
        """``1 - signal**2``, without a square root."""
        return -math.expm1(-self._integral(t))

    def diffusion(self, t: float) -> float:
        """``sqrt(beta (1 - exp(-2 integral of beta)))``."""
        return math.sqrt(self._beta(t) * -math.expm1(-2 * self._integral(t)))


@dataclass(frozen=True, kw_only=True)
class VESDE:
    """Variance exploding: noise is added to an image that stays. ``std(0)`` is already ``sigma_min``."""

    sigma_min: float = 0.01  #: noise at t = 0
    sigma_max: float = 50.0  #: noise at t = 1; the largest distance between two training images is a good choice

    def __post_init__(self) -> None:
        _check_order("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    def signal(self, t: float) -> float:
        """1 at every time."""
        return 1.0

    def std(self, t: float) -> float:
        """``sigma_min (sigma_max / sigma_min)**t``."""
        return self.sigma_min * math.pow(self.sigma_max / self.sigma_min, t)

    def drift(self, x: Tensor, t: float) -> Tensor:
        """0."""
        return torch.zeros_like(x)

    def diffusion(self, t: float) -> float:
        """``std sqrt(2 log(sigma_max / sigma_min))``."""
        return self.std(t) * math.sqrt(2 * math.log(self.sigma_max / self.sigma_min))

    @property
    def prior_std(self) -> float:
        """``sigma_max``."""
        return self.sigma_max


def sde_scale(sde: SDE, t: float) -> float:
    """``sqrt(signal**2 + std**2)``: divide the equation's x by it to reach the solvers' coordinates."""
    return math.hypot(sde.signal(t), sde.std(t))


def sde_level(sde: SDE, t: float) -> Level:
    """The level with the signal-to-noise ratio of time ``t`` in [0, 1]; its ``t`` is ``999 t``.

    Raises:
        UserError: ``t`` outside [0, 1].
    """
    require(0 <= t <= 1, f"t is {t}; the time of a continuous diffusion lies in [0, 1]")
    return Level(_LABELS * t, (sde.signal(t) / sde_scale(sde, t)) ** 2)


def sde_path(sde: SDE, steps: int, t_end: float = 1e-3) -> Path:
    """Down from t = 1 to ``t_end`` at even times, then to the clean image: ``steps`` moves.

    Start from ``noise() * sde.prior_std / sde_scale(sde, 1)``; the published ``t_end`` is 1e-3, and 1e-5 for VE.

    Raises:
        UserError: ``steps`` below 2, or ``t_end`` outside (0, 1).
    """
    require(steps >= 2, f"steps is {steps}; a path of a continuous diffusion needs at least 2")
    require(0 < t_end < 1, f"t_end is {t_end}; it must lie in (0, 1), such as 1e-3")
    times = [1 + (t_end - 1) * i / (steps - 1) for i in range(steps)]
    return Path.from_levels([*(sde_level(sde, max(t, 0.0)) for t in times), CLEAN], T=1000)


@dataclass(frozen=True, kw_only=True)
class ScoreDenoiser:
    """A denoiser from a score in the diffusion's own coordinates, for paths of ``sde_path``."""

    score: Callable[[Tensor, float], Tensor]  #: ``score(x, t)`` of the marginal, x [B, C, H, W] unscaled, t in [0, 1]
    sde: SDE  #: the diffusion it belongs to

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict from ``x`` [B, C, H, W] in variance-preserving coordinates."""
        t = level.t / _LABELS
        scale, std = sde_scale(self.sde, t), self.sde.std(t)
        eps = -std * self.score(x * scale, t)
        return Prediction.from_output(eps, x, level, "eps")


def _check_order(low_name: str, low: float, high_name: str, high: float) -> None:
    require(0 < low < high, f"{low_name} is {low} and {high_name} {high}; they must obey 0 < {low_name} < {high_name}")

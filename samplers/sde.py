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

__all__ = [
    "SDE",
    "ScoreDenoiser",
    "SubVPSDE",
    "VESDE",
    "VPSDE",
    "euler_step",
    "sde_level",
    "sde_path",
    "sde_scale",
    "sde_time",
]

_LABELS = 999.0  # levels carry 999 t, as the published continuous networks are told, so that T counts as 1000


class SDE(Protocol):
    """A linear diffusion on times t in [0, 1]."""

    def signal(self, t: float) -> float:
        """Factor of the image in the marginal's mean, ``m(t)``."""
        ...

    def std(self, t: float) -> float:
        """Standard deviation of the marginal."""
        ...

    def pull(self, t: float) -> float:
        """Factor of ``x`` in the drift of the forward equation."""
        ...

    def drift(self, x: Tensor, t: float) -> Tensor:
        """The drift itself, ``pull x``."""
        ...

    def diffusion(self, t: float) -> float:
        """Its diffusion coefficient, ``g(t)``."""
        ...

    def discretize(self, t: float, there: float | None, N: int | None = None) -> tuple[float, float]:
        """Factor of ``x`` and added variance of one forward step of the published discrete process.

        Args:
            t: The noisier end.
            there: The other end; None is the clean image.
            N: Steps of the official discretisation, which then says how far a step leads; None goes to ``there``.

        Raises:
            UserError: ``N`` is too small for the diffusion's rates.
        """
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

    def pull(self, t: float) -> float:
        """``-beta / 2``."""
        return -self._beta(t) / 2

    def drift(self, x: Tensor, t: float) -> Tensor:
        """``-beta x / 2``."""
        return self.pull(t) * x

    def diffusion(self, t: float) -> float:
        """``sqrt(beta)``."""
        return math.sqrt(self._beta(t))

    def discretize(self, t: float, there: float | None, N: int | None = None) -> tuple[float, float]:
        """DDPM's ``sqrt(1 - beta)`` and ``beta``: with ``N`` entry ``floor(t (N - 1))`` of the linear betas / N."""
        if N is None:
            beta = -math.expm1(self._integral(there or 0.0) - self._integral(t))
        else:
            beta = self._beta(_snapped(t, N)) / N
            require(beta < 1, f"N is {N}; the discrete betas reach beta_max / N, so N must be above {self.beta_max:g}")
        return math.sqrt(1 - beta), beta

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

    def discretize(self, t: float, there: float | None, N: int | None = None) -> tuple[float, float]:
        """The step of Euler and Maruyama: no discrete process was published."""
        return euler_step(self, t, there, N)


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

    def pull(self, t: float) -> float:
        """0."""
        return 0.0

    def drift(self, x: Tensor, t: float) -> Tensor:
        """0."""
        return torch.zeros_like(x)

    def diffusion(self, t: float) -> float:
        """``std sqrt(2 log(sigma_max / sigma_min))``."""
        return self.std(t) * math.sqrt(2 * math.log(self.sigma_max / self.sigma_min))

    def discretize(self, t: float, there: float | None, N: int | None = None) -> tuple[float, float]:
        """1 and ``sigma**2 - sigma'**2``: with ``N`` of neighbours among N geometric sigmas, below which lies 0."""
        if N is not None:
            t = _snapped(t, N)
            below = t - 1 / (N - 1)
            there = None if there is None or below < -0.5 / N else below
        return 1.0, self.std(t) ** 2 - (0.0 if there is None else self.std(there) ** 2)

    @property
    def prior_std(self) -> float:
        """``sigma_max``."""
        return self.sigma_max


def euler_step(sde: SDE, t: float, there: float | None, N: int | None = None) -> tuple[float, float]:
    """Factor of ``x`` and added variance of a step of Euler and Maruyama: ``1 + pull dt`` and ``g**2 dt``.

    ``dt`` is the distance between the times, or ``1 / N`` as in the official code, whose grid has the distances
    ``(1 - eps) / (N - 1)``.
    """
    dt = t - (there or 0.0) if N is None else 1 / N
    return 1 + sde.pull(t) * dt, sde.diffusion(t) ** 2 * dt


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


def sde_time(sde: SDE, level: Level) -> float:
    """The time of a level of ``sde``, as ``sde_level`` made it.

    Raises:
        UserError: The level has another signal-to-noise ratio than the diffusion has at its time, or is clean.
    """
    t = level.t / _LABELS
    fits = 0 <= t <= 1 and math.isclose(sde_level(sde, t).alpha_bar, level.alpha_bar, rel_tol=1e-6)
    require(
        fits,
        f"the level t = {level.t:g} with alpha_bar {level.alpha_bar:.6g} is none of {sde}; make the path with "
        "sde_path, or take a solver without sde",
    )
    return t


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


def _snapped(t: float, N: int) -> float:
    """The time of the discrete step that holds ``t``, ``floor(t (N - 1)) / (N - 1)``."""
    require(N >= 2, f"N is {N}; a discrete diffusion needs at least 2 steps")
    return math.floor(t * (N - 1) + 1e-6) / (N - 1)


def _check_order(low_name: str, low: float, high_name: str, high: float) -> None:
    require(0 < low < high, f"{low_name} is {low} and {high_name} {high}; they must obey 0 < {low_name} < {high_name}")

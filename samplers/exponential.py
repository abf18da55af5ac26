"""The diffusion ODE and SDE solved exactly in half log-SNR, for a prediction that is a polynomial in it.

With ``lambda = log(alpha / sigma)``, ``alpha = sqrt(alpha_bar)`` and ``sigma = sqrt(1 - alpha_bar)``, the probability
flow obeys ``d(x / sigma) = exp(lambda) x0 d(lambda)`` and ``d(x / alpha) = -exp(-lambda) eps d(lambda)``, so a step of
length ``h`` is a factor of ``x`` and one factor for each derivative of the prediction. All solvers of the DPM family,
and UniPC, take their factors from here.

Source: Lu et al. 2022 (DPM-Solver, eq. 3.4; DPM-Solver++, eq. 8 and appendix A), Hochbruck & Ostermann 2010 for the
functions phi.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from .combined import Terms, combined
from .prediction import Prediction
from .schedule import Level

__all__ = ["Leap", "Past", "Predicted", "Variant", "phi", "same_way", "weighted"]

Predicted = Literal["x0", "eps"]
Variant = Literal["midpoint", "heun"]

_SERIES_BELOW = 0.5  # under this the closed form loses digits, and 18 terms of the series lose none


def phi(order: int, z: float) -> float:
    """``phi_1(z) = expm1(z) / z`` and ``phi_(k+1)(z) = (phi_k(z) - 1 / k!) / z``, without cancellation near 0."""
    if abs(z) < _SERIES_BELOW:
        return sum(z**n / math.factorial(n + order) for n in range(18))
    value = math.expm1(z) / z
    for k in range(1, order):
        value = (value - 1 / math.factorial(k)) / z
    return value


@dataclass(frozen=True, eq=False)
class Past:
    """One entry of a multistep history."""

    value: Terms  #: what was predicted, [B, C, H, W], as a sum of images
    at: float  #: where on the solver's own axis

    @staticmethod
    def of(prediction: Prediction, at: float, predicted: Predicted = "x0") -> Past:
        """The part of a prediction that a solver extrapolates."""
        return Past(prediction.x0_terms() if predicted == "x0" else ((1.0, prediction.eps),), at)


def weighted(factors: Sequence[float], history: tuple[Past, ...]) -> Terms:
    """The sum of ``factors`` times the values of ``history``, for ``combined``."""
    pairs = zip(factors, history, strict=True)
    return tuple((factor * share, image) for factor, past in pairs for share, image in past.value)


def same_way(history: tuple[Past, ...] | None, now: float, h: float) -> tuple[Past, ...]:
    """The history if it leads on in the direction of a step of length ``h`` from ``now``, else nothing."""
    if not history or not math.isfinite(h) or (now - history[0].at) * h <= 0:
        return ()
    return history


@dataclass(frozen=True)
class Leap:
    """The factors of one step: ``x' = kept x + gained value + weight(2) slope + weight(3) ...``.

    Slopes are derivatives in lambda times ``h``: they have the size of a difference over the step.
    """

    kept: float  #: factor of ``x``
    gained: float  #: factor of the prediction, were it constant
    reach: float  #: minus alpha at the end for x0, minus sigma for eps
    z: float  #: ``-h (1 + eta)`` for x0, ``h`` for eps
    h: float  #: length of the step in lambda, positive towards the image

    @staticmethod
    def between(here: Level, there: Level, predicted: Predicted = "x0", eta: float = 0.0) -> Leap:
        """The step from ``here`` to ``there``; ``eta`` is the noise of the SDE whose mean it is (x0 only)."""
        h = (there.log_snr - here.log_snr) / 2 if there.alpha_bar != here.alpha_bar else 0.0
        alpha, sigma = math.sqrt(here.alpha_bar), math.sqrt(1 - here.alpha_bar)
        alpha_there, sigma_there = math.sqrt(there.alpha_bar), math.sqrt(1 - there.alpha_bar)
        if predicted == "eps":
            kept = alpha_there / alpha
            return Leap(kept, sigma_there - kept * sigma, -sigma_there, h, h)
        kept = math.sqrt((1 - there.alpha_bar) / (1 - here.alpha_bar)) * (math.exp(-eta * h) if eta else 1.0)
        gained = alpha_there - kept * alpha  # = -alpha_there expm1(z), also for infinite h
        return Leap(kept, gained, -alpha_there, -h * (1 + eta), h)

    def weight(self, order: int) -> float:
        """Factor of the derivative of degree ``order - 1``, times ``h**(order - 1)``."""
        return self.reach * self.z * phi(order, self.z)

    def along(self, x: Tensor, history: tuple[Past, ...], variant: Variant = "heun") -> Tensor:
        """The step by one, two or three values: that at the step's start first, then others before or inside the step.

        Two values: ``midpoint`` takes half of ``gained`` for the slope, ``heun`` its exact factor. Three: as published,
        where the second difference gets half the factor that a polynomial would have, so that the order stays 2.
        """
        if not math.isfinite(self.h):
            history = history[:1]
        factors = self._factors([past.at for past in history], variant)
        return combined((self.kept, x), *weighted(factors, history))

    def _factors(self, at: list[float], variant: Variant) -> list[float]:
        """Factors of one, two or three values that were taken at ``at``, the first of which is the step's start."""
        if len(at) == 1:
            return [self.gained]
        ratio = (at[0] - at[1]) / self.h
        if len(at) == 2:
            weight = (self.gained / 2 if variant == "midpoint" else self.weight(2)) / ratio
            return [self.gained + weight, -weight]
        newest, slope = np.array([1, 0, 0]), np.array([1, -1, 0]) / ratio
        older_ratio = (at[1] - at[2]) / self.h
        bend = (slope - np.array([0, 1, -1]) / older_ratio) / (ratio + older_ratio)
        curved = slope + ratio * bend
        factors: list[float] = (self.gained * newest + self.weight(2) * curved + self.weight(3) * bend).tolist()
        return factors

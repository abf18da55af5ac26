"""Linear multistep methods for the probability-flow ODE: slopes of earlier steps, with one evaluation a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from steerdiff.errors import require

from .combined import combined
from .exponential import Past, same_way, weighted
from .noise import Noise
from .path import Move
from .prediction import Denoiser
from .solvers import Step, check_has_signal, predict, straight

__all__ = ["LMS", "PLMS"]

_ADAMS_BASHFORTH = (
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)  # of even steps, by the number of slopes


@dataclass(frozen=True, kw_only=True)
class LMS:
    """Linear multistep in sigma: the polynomial through the last slopes, integrated exactly over the step.

    Has its order once it has so many slopes; it begins with Euler's step, and again after ``x`` was touched or the
    direction changed. Moves up invert. Uses ``eps`` only. Source: k-diffusion's ``lms``, which integrates numerically;
    Adams-Bashforth methods for uneven steps.
    """

    order: int = 4  #: number of slopes, 1 to 4; 1 is Euler

    def __post_init__(self) -> None:
        require(
            self.order in (1, 2, 3, 4) and isinstance(self.order, int),
            f"order is {self.order}; it must be 1, 2, 3 or 4",
        )

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: tuple[Past, ...] | None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; UserError at a level without any image (alpha_bar 0)."""
        check_has_signal("LMS", move)
        here, there = move.here, move.there
        prediction = predict(denoise, x, here)
        past = same_way(state, here.sigma, there.sigma - here.sigma)
        history = (Past.of(prediction, here.sigma, "eps"), *past)[: self.order]
        weights = _integrals([past.at for past in history], here.sigma, there.sigma)
        return Step(straight(x, combined(*weighted(weights, history)), here, there), prediction, history)


@dataclass(frozen=True, kw_only=True)
class PLMS:
    """Pseudo linear multistep: the Adams-Bashforth mean of up to four noises, in DDIM's step. Order 2.

    The first step, and the first after ``x`` was touched or the direction changed, averages the noises at its two ends
    and asks the network twice, unless it leads to the clean image. Diffusers' PNDM without Runge-Kutta steps is this.
    Moves up invert. Uses ``eps`` only.

    Source: Liu et al. 2022 (PNDM), eq. 12 and 13, in the published form of latent diffusion.
    """

    order: ClassVar[int] = 2

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: tuple[Past, ...] | None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; UserError at a level without any image (alpha_bar 0)."""
        check_has_signal("PLMS", move)
        here, there = move.here, move.there
        prediction = predict(denoise, x, here)
        past = same_way(state, here.sigma, there.sigma - here.sigma)
        history = (Past.of(prediction, here.sigma, "eps"), *past)[:4]
        if len(history) > 1:
            slope = combined(*weighted(_ADAMS_BASHFORTH[len(history) - 2], history))
        elif there.clean or there.sigma == here.sigma:
            slope = prediction.eps
        else:
            x_there = straight(x, prediction.eps, here, there)
            slope = (prediction.eps + predict(denoise, x_there, there).eps) / 2
        return Step(straight(x, slope, here, there), prediction, history)


def _integrals(nodes: list[float], start: float, end: float) -> list[float]:
    """Means, over the step from ``start`` to ``end``, of the polynomials that are 1 at one node and 0 at the others."""
    if len(nodes) == 1 or start == end:
        return [1.0] + [0.0] * (len(nodes) - 1)
    places = (np.array(nodes) - start) / (end - start)
    weights = []
    for i, place in enumerate(places):
        others = np.delete(places, i)
        antiderivative = np.polyint(np.poly(others) / np.prod(place - others))
        weights.append(float(np.polyval(antiderivative, 1.0)))
    return weights

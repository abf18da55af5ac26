"""Ancestral sampling of denoising diffusion probabilistic models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from steerdiff.errors import UserError, require

from .combined import combined
from .noise import Noise
from .path import Move
from .prediction import Denoiser, Prediction
from .solvers import Step, check_goes_down

__all__ = ["DDPM", "VarianceKind", "model_variance", "posterior_mean"]

VarianceKind = Literal["auto", "learned", "fixed_small", "fixed_large"]


def posterior_mean(x0: Tensor, x: Tensor, move: Move) -> Tensor:
    """Mean of ``q(x_there | x_here, x0)``. Source: Ho et al. 2020, eq. 7, with the betas of the path."""
    a, b = move.here.alpha_bar, move.there.alpha_bar
    return combined((move.beta * math.sqrt(b) / (1 - a), x0), ((1 - b) * math.sqrt(1 - move.beta) / (1 - a), x))


def model_variance(
    prediction: Prediction, move: Move, kind: VarianceKind = "auto"
) -> tuple[float | Tensor, float | Tensor]:
    """Variance of the step and its logarithm, which guided-diffusion clips where the variance is 0.

    - ``fixed_small``: the posterior's variance, as if the image were known.
    - ``fixed_large``: ``beta`` of the move; at the clean end the clipped posterior's.
    - ``learned``: their logarithms interpolated by the network's v, which is not clamped (Nichol & Dhariwal 2021,
      eq. 15): ``f log(beta) + (1 - f) log(posterior)`` with ``f = (v + 1) / 2``.
    - ``auto``: ``learned`` where the prediction has a v, else ``fixed_small``.

    Raises:
        UserError: ``learned`` is asked of a prediction without v.
    """
    if kind == "auto":
        kind = "learned" if prediction.log_variance_fraction is not None else "fixed_small"
    small = move.posterior_log_variance_clipped
    if kind == "fixed_small":
        return move.posterior_variance, small
    large = math.log(move.beta) if move.beta > 0 else small
    if kind == "fixed_large":
        log_variance = small if move.there.clean else large
        return math.exp(log_variance), log_variance
    if prediction.log_variance_fraction is None:
        raise UserError(
            "variance is 'learned' but the network predicts none; use 'auto', 'fixed_small' or 'fixed_large'"
        )
    share = (prediction.log_variance_fraction + 1) / 2
    learned = share * large + (1 - share) * small
    return torch.exp(learned), learned


@dataclass(frozen=True, kw_only=True)
class DDPM:
    """Ancestral step: the posterior's mean for the predicted image, plus noise, none at the clean end. Order 1.

    Guidance by a score moves the mean by ``variance * score``. Source: Ho et al. 2020, Algorithm 2, in the form with a
    predicted image that may be clipped; Dhariwal & Nichol 2021, Algorithm 1.
    """

    variance: VarianceKind = "auto"  #: noise of a step: the network's own if it has one, else the posterior's
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require(
            self.variance in get_args(VarianceKind),
            f"variance is {self.variance!r}; known are {', '.join(get_args(VarianceKind))}",
        )

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] down one move; UserError if it goes up."""
        check_goes_down("DDPM", move, "invert with DDIM(eta=0)")
        prediction = denoise(x, move.here)
        mean = posterior_mean(prediction.x0, x, move)
        variance, log_variance = model_variance(prediction, move, self.variance)
        if prediction.score is not None:
            mean = mean + variance * prediction.score
        if move.there.clean or move.beta == 0:
            return Step(mean, prediction)
        spread = torch.exp(log_variance / 2) if isinstance(log_variance, Tensor) else math.exp(log_variance / 2)
        return Step(mean + spread * noise(), prediction)

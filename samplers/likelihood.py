"""Exact log-likelihood of images under a diffusion, by the change of variables along its probability flow.

Source: Song et al. 2021 (score SDE), section 4.3 and appendix D.2; the estimator of the trace is Hutchinson's, as in
Grathwohl et al. 2019 (FFJORD).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from steerdiff.errors import require

from .noise import Noise, Seeds
from .path import Move
from .prediction import Denoiser
from .probability_flow import columns, flow_along
from .rows import predict_rows
from .runge_kutta import Tolerance, solve
from .schedule import Level, NoiseSchedule
from .sde import SDE, sde_level

__all__ = ["Likelihood", "Trace", "dequantised", "log_likelihood"]

#: How the trace of the denoiser's Jacobian is taken: by random signs, by normal numbers, or value by value.
Trace = Literal["rademacher", "gaussian", "exact"]

_LARGEST_EXACT = 4096  # values of an image; each costs a backward pass at every evaluation


@dataclass(frozen=True, eq=False)
class Likelihood:
    """What :func:`log_likelihood` found."""

    log_prob: Tensor  #: log density of each image in nats, [B] float64; a random estimate unless the trace was exact
    latent: Tensor  #: the noise that the flow takes each image to, [B, C, H, W] in the coordinates of the solvers
    evaluations: tuple[int, ...]  #: calls of the denoiser for each image

    def bits_per_dim(self, offset: float = 7.0) -> Tensor:
        """Bits per dimension [B], ``-log2 p / D + offset``.

        The offset turns the density into that of 8-bit images, and holds only for images that were dequantised: 7 for
        values in [-1, 1], whose grey levels are 2 / 256 apart, 8 for values in [0, 1], and 0 for the density itself.
        """
        return -self.log_prob / (math.log(2) * self.latent[0].numel()) + offset


def log_likelihood(
    denoise: Denoiser,
    x0: Tensor,
    between: NoiseSchedule | SDE,
    *,
    seed: Seeds = 0,
    t_end: float = 1e-5,
    trace: Trace = "rademacher",
    probes: int = 1,
    tolerance: Tolerance | None = None,
) -> Likelihood:
    """Log density of images: that of their latents, plus the integral of the flow's divergence on the way there.

    The estimate is unbiased in the logarithm and the same for an image in any batch. Every evaluation differentiates
    through the denoiser once for each probe: give it float32 weights, and no clipping of x0, which has no smooth flow.

    Args:
        denoise: Answers by differentiable operations; guidance by a score is none of them.
        x0: Images [B, C, H, W] in [-1, 1], for bits per dimension from :func:`dequantised`. The denoiser sees their
            dtype; the solution itself is float64.
        between: The schedule, or the continuous diffusion, that the denoiser was trained with.
        seed: Of the probes; one probe of an image serves its whole trajectory.
        t_end: Share of the trained times at which the image is taken to be, in (0, 1).
        trace: ``rademacher`` as published, ``gaussian``, or ``exact`` for images of few values.
        probes: Random vectors to average over.
        tolerance: Of the solution; None is the published 1e-5 and 1e-5.

    Returns:
        Log density, latents and costs.

    Raises:
        UserError: An argument out of range, a denoiser without gradient or with a score, or too many evaluations.
    """
    _check(x0, t_end, trace, probes)
    low, high = _ends(between, t_end)
    flow = flow_along(Move(here=low, there=high, kind="invert"), between)
    vectors = _vectors(x0, seed, trace, probes)
    count = x0[0].numel()

    def slope(y: Tensor, times: Sequence[float]) -> Tensor:
        pull, push, scale = columns([flow.coefficients(time) for time in times], y)
        x = (y[:, :-1] / scale).reshape(x0.shape).to(x0.dtype)
        eps, traces = _eps_and_trace(denoise, x, [flow.level(time) for time in times], vectors)
        moved = pull * y[:, :-1] + push * eps.flatten(1).double()
        return torch.cat([moved, pull * count + push / scale * traces[:, None]], dim=1)

    with torch.no_grad():
        y = torch.cat([x0.flatten(1).double(), torch.zeros(x0.shape[0], 1, dtype=torch.float64, device=x0.device)], 1)
        y, evaluations = solve(slope, y, flow.time(low), flow.time(high), tolerance or Tolerance())
        latent, gained = y[:, :-1], y[:, -1]
        prior = _normal_log_prob(latent, 1.0 if isinstance(between, NoiseSchedule) else between.prior_std)
        scale = flow.coefficients(flow.time(high)).scale
        return Likelihood(prior + gained, (latent / scale).reshape(x0.shape).to(x0.dtype), evaluations)


def dequantised(image: Tensor, seed: Seeds = 0) -> Tensor:
    """Spread 8-bit images evenly over their grey levels: ``(255 x + u) / 256`` for values in [0, 1], u uniform.

    Args:
        image: [B, C, H, W] in [-1, 1], on the 256 grey levels as images are loaded.
        seed: Of ``u``.

    Returns:
        Images [B, C, H, W] in [-1, 1).

    Raises:
        UserError: ``image`` is not in range or not on the grey levels.
    """
    grey = (image + 1) * 127.5
    off = float((grey - grey.round()).abs().max())
    require(
        off < 1e-2 and bool((grey.round() >= 0).all()) and bool((grey.round() <= 255).all()),
        f"image is off its nearest grey level by up to {off:.3g} of a level, or outside [-1, 1]; dequantisation needs "
        "8-bit images, of 256 levels from -1 to 1",
    )
    u = torch.special.ndtr(Noise(seed, like=image).fork("dequantisation")().double())
    spread: Tensor = (grey.round().double() + u) / 128 - 1
    return spread.to(image.dtype)


def _check(x0: Tensor, t_end: float, trace: str, probes: int) -> None:
    require(
        x0.ndim == 4 and x0.is_floating_point() and x0.shape[0] > 0 and bool(x0.isfinite().all()),
        f"x0 is {list(x0.shape)} {x0.dtype}; expected finite floating-point images [B, C, H, W]",
    )
    require(x0.dtype in (torch.float32, torch.float64), f"x0 is {x0.dtype}; a likelihood needs float32 or float64")
    require(0 < t_end < 1, f"t_end is {t_end}; it must lie in (0, 1), such as 1e-5")
    require(trace in get_args(Trace), f"trace is {trace!r}; known are {', '.join(get_args(Trace))}")
    require(probes >= 1, f"probes is {probes}; it must be at least 1")
    if trace == "exact":
        require(probes == 1, f"probes is {probes}, but an exact trace needs none; leave it at 1")
        require(
            x0[0].numel() <= _LARGEST_EXACT,
            f"an exact trace of images of {x0[0].numel()} values takes as many backward passes at each evaluation; "
            f"{_LARGEST_EXACT} at most, use 'rademacher'",
        )


def _ends(between: NoiseSchedule | SDE, t_end: float) -> tuple[Level, Level]:
    """The levels of the image and of the noise."""
    if not isinstance(between, NoiseSchedule):
        return sde_level(between, t_end), sde_level(between, 1.0)
    last = between.T - 1
    low, high = between.level(t_end * last), between.level(last)
    require(
        high.alpha_bar > 0,
        "the schedule ends in pure noise, alpha_bar 0, where the flow has no time; use one that leaves some image",
    )
    return low, high


def _vectors(x0: Tensor, seed: Seeds, trace: Trace, probes: int) -> list[Tensor]:
    """Vectors [B, C, H, W] whose mean of ``e . J e`` is the trace: random ones, or all directions in turn."""
    if trace == "exact":
        units = torch.eye(x0[0].numel(), dtype=x0.dtype, device=x0.device).reshape(-1, *x0.shape[1:])
        return [unit.expand_as(x0) * math.sqrt(len(units)) for unit in units]  # their mean is then the sum
    noise = Noise(seed, like=x0).fork("trace")
    draws = [noise() for _ in range(probes)]
    return draws if trace == "gaussian" else [torch.where(draw >= 0, 1.0, -1.0).to(x0.dtype) for draw in draws]


def _eps_and_trace(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], vectors: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """``eps`` [B, C, H, W], and the trace of its Jacobian [B] in float64."""
    with torch.inference_mode(False), torch.enable_grad():
        seen = x.clone().requires_grad_()
        prediction = predict_rows(denoise, seen, levels)
        require(prediction.score is None, "the denoiser is guided by a score, which has no likelihood; use it unguided")
        require(
            prediction.eps.requires_grad,
            "the denoiser's answer carries no gradient, but a likelihood needs its derivative; call the network "
            "without torch.no_grad and without detach",
        )
        traces = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        for index, vector in enumerate(vectors):
            kept = index + 1 < len(vectors)
            (product,) = torch.autograd.grad(prediction.eps, seen, vector.to(prediction.eps), retain_graph=kept)
            rows = (vector * product).detach().double()
            traces += torch.stack([row.sum() for row in rows])  # row by row: no other image changes its rounding
    return prediction.eps.detach(), traces / len(vectors)


def _normal_log_prob(y: Tensor, std: float) -> Tensor:
    """Log density of rows [B, K] under independent centred normals."""
    squares = torch.stack([row.square().sum() for row in y])
    return -squares / (2 * std**2) - y.shape[1] / 2 * math.log(2 * math.pi * std**2)

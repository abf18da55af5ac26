"""The variational bound of a discrete diffusion, in bits per dimension, term by term and differentiable.

Source: Ho et al. 2020, eq. 5-7 and 13; Nichol & Dhariwal 2021, section 3.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from steerdiff.errors import UserError, require

from .ddpm import VarianceKind
from .prediction import Prediction
from .schedule import FloatArray, NoiseSchedule

__all__ = ["PosteriorTables", "discretised_log_likelihood", "normal_kl", "posterior_tables", "prior_bits", "vlb_terms"]

_HALF_BIN = 1 / 255  # 256 grey levels in [-1, 1]
_OPEN_TAIL = 0.999  # beyond this a bin reaches to infinity


class PosteriorTables(NamedTuple):
    """``q(x_{t-1} | x_t, x0)`` at every time, float64 [T]: its mean is ``coef_x0 x0 + coef_x x``."""

    coef_x0: FloatArray
    coef_x: FloatArray
    variance: FloatArray
    log_variance_clipped: FloatArray  #: entry 0, where the variance is 0, repeats entry 1
    fixed_large_log_variance: FloatArray  #: log beta, with the clipped posterior in entry 0


@functools.lru_cache(maxsize=16)
def posterior_tables(schedule: NoiseSchedule) -> PosteriorTables:
    """Tables of the posterior for all times of ``schedule``. Source: Ho et al. 2020, eq. 7."""
    betas, kept = schedule.betas, schedule.alpha_bars
    before = np.append(1.0, kept[:-1])
    variance = betas * (1 - before) / (1 - kept)
    log_variance = np.log(np.append(variance[1], variance[1:]) if schedule.T > 1 else betas)
    return PosteriorTables(
        coef_x0=betas * np.sqrt(before) / (1 - kept),
        coef_x=(1 - before) * np.sqrt(1 - betas) / (1 - kept),
        variance=variance,
        log_variance_clipped=log_variance,
        fixed_large_log_variance=np.append(log_variance[0], np.log(betas[1:])),
    )


def normal_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL divergence of two normal distributions, elementwise, in nats; first from second."""
    ratio = log_variance - other_log_variance
    return 0.5 * (ratio.exp() - 1 - ratio + (mean - other_mean).square() * torch.exp(-other_log_variance))


def discretised_log_likelihood(x0: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log probability of an 8-bit image under a normal distribution, elementwise, in nats.

    Each grey level is a bin of width 2/255 around it, and the outermost bins are open. The normal distribution function
    is the published tanh approximation, which training of released models saw; probabilities stop at 1e-12.

    Args:
        x0: Image in [-1, 1], multiples of 2/255 from -1.
        mean: Of the distribution.
        log_std: Logarithm of its standard deviation.
    """
    inverse = torch.exp(-log_std)
    upper = _normal_cdf((x0 - mean + _HALF_BIN) * inverse)
    lower = _normal_cdf((x0 - mean - _HALF_BIN) * inverse)
    inside = torch.where(x0 > _OPEN_TAIL, 1 - lower, upper - lower)
    return torch.where(x0 < -_OPEN_TAIL, upper, inside).clamp(min=1e-12).log()


def vlb_terms(
    schedule: NoiseSchedule,
    prediction: Prediction,
    x0: Tensor,
    x: Tensor,
    t: Tensor,
    variance: VarianceKind = "auto",
) -> Tensor:
    """The bound's term at times ``t``: KL of the true from the predicted step, at t = 0 the image's own likelihood.

    To train a learned variance alone, as the hybrid loss does, give a prediction with ``x0`` detached.

    Args:
        schedule: The process; for a respaced one ``NoiseSchedule.respaced``.
        prediction: Made from the network's output at ``x``.
        x0: True images [B, C, H, W] in [-1, 1].
        x: Noised images [B, C, H, W] at times ``t``.
        t: Times [B] (int64) in [0, T).
        variance: Which variance the model has, as in ``DDPM``.

    Returns:
        Bits per dimension [B].

    Raises:
        UserError: ``variance`` is ``learned`` and the prediction has none.
    """
    tables = posterior_tables(schedule)
    coef_x0, coef_x = schedule.gather(tables.coef_x0, t, x), schedule.gather(tables.coef_x, t, x)
    true_log_variance = schedule.gather(tables.log_variance_clipped, t, x).expand_as(x)
    log_variance = _log_variance(schedule, prediction, t, x, variance).expand_as(x)
    mean = coef_x0 * prediction.x0 + coef_x * x
    kl = normal_kl(coef_x0 * x0 + coef_x * x, true_log_variance, mean, log_variance)
    likelihood = discretised_log_likelihood(x0, mean, log_variance / 2)
    at_end = (t == 0).reshape(-1, *[1] * (x.ndim - 1))
    return torch.where(at_end, -likelihood, kl).flatten(1).mean(1) / math.log(2)


def prior_bits(schedule: NoiseSchedule, x0: Tensor) -> Tensor:
    """The bound's last term, KL of ``q(x_T | x0)`` from the standard normal, in bits per dimension [B]."""
    kept = float(schedule.alpha_bars[-1])
    variance = 1 - kept
    kl = 0.5 * (variance - 1 - math.log(variance) + kept * x0.square())
    return kl.flatten(1).mean(1) / math.log(2)


def _log_variance(
    schedule: NoiseSchedule, prediction: Prediction, t: Tensor, x: Tensor, variance: VarianceKind
) -> Tensor:
    tables, fraction = posterior_tables(schedule), prediction.log_variance_fraction
    small = schedule.gather(tables.log_variance_clipped, t, x)
    if variance == "fixed_small" or (variance == "auto" and fraction is None):
        return small
    if variance == "fixed_large":
        return schedule.gather(tables.fixed_large_log_variance, t, x)
    require(variance in ("auto", "learned"), f"variance is {variance!r}; it is no kind of variance")
    if fraction is None:
        raise UserError("variance is 'learned' but the prediction has none; use 'auto', 'fixed_small' or 'fixed_large'")
    share = (fraction + 1) / 2
    return share * schedule.gather(np.log(schedule.betas), t, x) + (1 - share) * small


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

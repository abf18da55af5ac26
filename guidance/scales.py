"""How strongly a guidance pulls: factors in [0, 1] on its scale by noise level, and scales of each image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.samplers import Level

__all__ = ["ScaleSchedule", "check_factor", "check_schedule", "over_images", "scale_at", "spread"]

#: Names of the factors. With ``u`` the level's time over that of the noisiest level, from 1 at noise to 0 at the image:
#:
#: - "constant": 1, as published everywhere.
#: - "linear": ``u``; strong where the layout is decided, weak where the details are.
#: - "cosine": ``(1 - cos(pi u)) / 2``; as linear, flat at both ends.
#: - "sigma": ``sqrt(1 - alpha_bar)``, the share of noise in ``x_t``: follows the noise and not the numbering of times.
#: - "early": 1 in the noisier half of the times, 0 in the other.
#: - "late": 1 in the cleaner half of the times, 0 in the other.
ScaleSchedule = Literal["constant", "linear", "cosine", "sigma", "early", "late"]


def scale_at(schedule: ScaleSchedule, level: Level, T: int) -> float:
    """Return the factor in [0, 1] on the scale of a guidance at ``level``.

    Args:
        schedule: Which of `ScaleSchedule`.
        level: Where the image is.
        T: Number of trained times.
    """
    check_schedule(schedule)
    u = min(max(level.t / max(T - 1, 1), 0.0), 1.0)
    return _FACTORS[schedule](u, level, T)


def check_schedule(schedule: str) -> None:
    """Raise UserError for a name that is none of `ScaleSchedule`."""
    known = get_args(ScaleSchedule)
    require(schedule in known, f"schedule is {schedule!r}; known are {', '.join(known)}")


def check_factor(factor: float | Tensor, what: str) -> None:
    """Raise UserError unless ``factor`` is a finite number, or a tensor of one for each image."""
    value = torch.as_tensor(factor)
    finite = value.ndim <= 1 and value.numel() > 0 and bool(value.isfinite().all())
    require(finite, f"{what} is {factor}; it must be a finite number, or a tensor [B] of them")


def over_images(factor: float | Tensor, x: Tensor, what: str) -> Tensor:
    """Return a factor as one number for each image of ``x``, [B], where ``x`` is and in its dtype.

    Raises:
        UserError: A tensor of another number of factors, which ``what`` names.
    """
    if not isinstance(factor, Tensor):
        return torch.full((x.shape[0],), factor, device=x.device, dtype=x.dtype)
    count = factor.numel()
    require(count in (1, x.shape[0]), f"{count} {what} were given for {x.shape[0]} images; give one, or one for each")
    return factor.to(x).reshape(-1).expand(x.shape[0])


def spread(values: Sequence[float], like: Tensor) -> Tensor:
    """Return values as a tensor where ``like`` is; one alone without waiting for the device."""
    if len(values) == 1:
        return torch.full((1,), values[0], device=like.device, dtype=like.dtype)
    return torch.tensor(values, dtype=like.dtype).to(like.device)


_FACTORS: dict[str, Callable[[float, Level, int], float]] = {
    "constant": lambda u, level, T: 1.0,
    "linear": lambda u, level, T: u,
    "cosine": lambda u, level, T: (1 - math.cos(math.pi * u)) / 2,
    "sigma": lambda u, level, T: math.sqrt(max(0.0, 1 - level.alpha_bar)),
    "early": lambda u, level, T: float(level.t >= T / 2),
    "late": lambda u, level, T: float(level.t < T / 2),
}

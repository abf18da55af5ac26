"""How strongly a guidance pulls at each noise level: factors in [0, 1] on its scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

from steerdiff.errors import require
from steerdiff.samplers import Level

__all__ = ["ScaleSchedule", "check_schedule", "scale_at"]

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


_FACTORS: dict[str, Callable[[float, Level, int], float]] = {
    "constant": lambda u, level, T: 1.0,
    "linear": lambda u, level, T: u,
    "cosine": lambda u, level, T: (1 - math.cos(math.pi * u)) / 2,
    "sigma": lambda u, level, T: math.sqrt(max(0.0, 1 - level.alpha_bar)),
    "early": lambda u, level, T: float(level.t >= T / 2),
    "late": lambda u, level, T: float(level.t < T / 2),
}

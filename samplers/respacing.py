"""Which of the trained times a shorter path visits: integer time lists, and sigma spacings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from steerdiff.errors import UserError, require

from .schedule import FloatArray

__all__ = [
    "SIGMA_SPACINGS",
    "SigmaSpacing",
    "TimeSpacing",
    "exponential_sigmas",
    "karras_sigmas",
    "polyexponential_sigmas",
    "respaced_times",
    "spaced_times",
    "vp_sigmas",
]

TimeSpacing = Literal["leading", "trailing", "linspace", "quad", "uniform_ddim"]
SigmaSpacing = Literal["karras", "exponential", "polyexponential", "log_snr", "ve", "vp"]


def respaced_times(T: int, respacing: str | int) -> list[int]:
    """The times that guided-diffusion keeps, ascending.

    Args:
        T: Number of trained times.
        respacing: A count (``250`` or ``"250"``); counts per equal section, ``"10,15,20"``, each section holding both
            of its ends; or ``"ddim25"``: the smallest integer stride that gives exactly 25 times, from 0 on.

    Raises:
        UserError: Not of this form, a count of 0 or above the section's size, or a stride that does not exist.
    """
    text = str(respacing).strip()
    if text.startswith("ddim"):
        return _strided_times(T, _parse_counts(text[4:], text), text)
    counts = _parse_counts(text, text)
    size, larger = divmod(T, len(counts))
    kept: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        length = size + (section < larger)
        require(
            1 <= count <= length,
            f"respacing {text!r} asks for {count} of the {length} times in section {section} of T = {T}; "
            f"give a count from 1 to {length}",
        )
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):  # the official code adds up the stride in floats, and rounds half to even
            kept.append(start + round(position))
            position += stride
        start += length
    return kept


def spaced_times(T: int, steps: int, spacing: TimeSpacing = "leading", offset: int = 0) -> list[int]:
    """``steps`` times, ascending, in the spacings other libraries use.

    - ``leading``: multiples of ``T // steps`` from 0; the top is well below T - 1.
    - ``trailing``: from T - 1 down by ``T / steps``, rounded; 0 is not among them.
    - ``linspace``: 0 to T - 1 inclusive, rounded half to even; one step is T - 1 alone.
    - ``quad``: squares of an even grid up to ``sqrt(0.8 T)`` (DDIM's code); low times that repeat are kept once, as
      a second visit would change nothing, so there may be fewer than ``steps``.
    - ``uniform_ddim``: every ``T // steps``-th time (DDIM's code); more than ``steps`` where it does not divide T.

    Args:
        T: Number of trained times.
        steps: How many, 1 to T.
        spacing: One of the above.
        offset: Added to every time of the spacings that start at 0 (Stable Diffusion uses 1).

    Raises:
        UserError: ``steps`` outside 1..T, an unknown spacing, or an offset that leaves [0, T).
    """
    require(1 <= steps <= T, f"steps is {steps}; it must be from 1 to T = {T}, the number of trained times")
    require(spacing in get_args(TimeSpacing), f"spacing is {spacing!r}; known are {', '.join(get_args(TimeSpacing))}")
    require(
        offset == 0 or spacing not in ("trailing", "linspace"),
        f"offset is {offset}, but {spacing!r} already ends at T - 1; use offset 0, or the spacing 'leading'",
    )
    grids: dict[str, Callable[[], npt.NDArray[Any]]] = {
        "leading": lambda: np.arange(steps) * float(T // steps),
        "trailing": lambda: np.round(np.arange(T, 0, -T / steps))[:steps] - 1,
        "linspace": lambda: np.round(np.linspace(0, T - 1, steps)) if steps > 1 else np.array([T - 1.0]),
        "quad": lambda: np.floor(np.linspace(0, math.sqrt(0.8 * T), steps) ** 2),
        "uniform_ddim": lambda: np.arange(0.0, T, T // steps),
    }
    times = sorted({int(t) + offset for t in grids[spacing]()})
    require(
        times[0] >= 0 and times[-1] < T,
        f"offset is {offset}: the times would reach from {times[0]} to {times[-1]}, outside [0, {T})",
    )
    return times


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> FloatArray:
    """Sigmas from ``sigma_max`` down to ``sigma_min``, even in ``sigma**(1/rho)`` (Karras et al. 2022, eq. 5)."""
    _check_sigmas(steps, sigma_min, sigma_max, rho)
    ramp = np.linspace(0, 1, steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return np.asarray((high + ramp * (low - high)) ** rho, dtype=np.float64)


def exponential_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 1.0) -> FloatArray:
    """Sigmas even in their logarithm, which is even in log-SNR, and the VE SDE's times; ``rho`` is ignored."""
    return polyexponential_sigmas(steps, sigma_min, sigma_max, 1.0)


def polyexponential_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 1.0) -> FloatArray:
    """Sigmas whose logarithm follows ``ramp**rho``; ``rho = 1`` is exponential, above 1 spends more steps low."""
    _check_sigmas(steps, sigma_min, sigma_max, rho)
    ramp = np.linspace(1, 0, steps) ** rho
    low, high = math.log(sigma_min), math.log(sigma_max)
    return np.asarray(np.exp(low + ramp * (high - low)), dtype=np.float64)


def vp_sigmas(steps: int, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> FloatArray:
    """Sigmas of the VP SDE at even times from 1 to ``t_min``. Source: Song et al. 2021 (score SDE), eq. 33."""
    require(steps >= 1, f"steps is {steps}; it must be at least 1")
    t = np.linspace(1, t_min, steps)
    return np.asarray(np.sqrt(np.expm1((beta_max - beta_min) * t**2 / 2 + beta_min * t)), dtype=np.float64)


def _even_vp_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 1.0) -> FloatArray:
    """Even times of the standard VP SDE between the two sigmas; ``rho`` is ignored."""
    _check_sigmas(steps, sigma_min, sigma_max, rho)
    spread, low = 19.9, 0.1  # beta_max - beta_min and beta_min of Song et al. 2021

    def time(sigma: float) -> float:
        return (math.sqrt(low**2 + 2 * spread * math.log1p(sigma**2)) - low) / spread

    t = np.linspace(time(sigma_max), time(sigma_min), steps)
    return np.asarray(np.sqrt(np.expm1(spread * t**2 / 2 + low * t)), dtype=np.float64)


SIGMA_SPACINGS: dict[str, Callable[[int, float, float, float], FloatArray]] = {
    "karras": karras_sigmas,
    "exponential": exponential_sigmas,
    "polyexponential": polyexponential_sigmas,
    "log_snr": exponential_sigmas,  # log-SNR is -2 log sigma
    "ve": exponential_sigmas,  # the VE SDE's sigma is geometric in time
    "vp": _even_vp_sigmas,
}


def _parse_counts(text: str, whole: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(
            f"respacing is {whole!r}; give a count such as '250', counts per section such as '10,15,20', or 'ddim25'"
        ) from error
    return counts


def _strided_times(T: int, counts: list[int], text: str) -> list[int]:
    require(len(counts) == 1, f"respacing is {text!r}; 'ddim' takes one count, such as 'ddim25'")
    (count,) = counts
    require(1 <= count <= T, f"respacing {text!r} asks for {count} of T = {T} times; give a count from 1 to {T}")
    for stride in range(1, T + 1):
        times = range(0, T, stride)
        if len(times) == count:
            return list(times)
    raise UserError(
        f"no integer stride gives exactly {count} of T = {T} times; use {count} without 'ddim', or a divisor"
    )


def _check_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float) -> None:
    require(steps >= 1, f"steps is {steps}; it must be at least 1")
    require(
        0 < sigma_min < sigma_max,
        f"sigma_min is {sigma_min:.6g} and sigma_max {sigma_max:.6g}; they must obey 0 < sigma_min < sigma_max",
    )
    require(
        math.isfinite(sigma_max),
        "sigma_max is infinite, as at the last time of a schedule that ends in pure noise; give a finite one",
    )
    require(rho > 0, f"rho is {rho}; it must be positive")

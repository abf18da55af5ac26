"""The Runge-Kutta pair of Dormand and Prince with a step size of its own for every row of a batch.

A row takes the steps it would take alone: its error, its times and its decisions are its own, and a row that has
arrived stays as it is while the others go on. Times and step sizes live on the host in float64, so one step waits for
the device once, to read the errors; the six stages in between do not.

Source: Dormand & Prince 1980; step control and first step as in Hairer, Norsett & Wanner 1993, II.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerdiff.errors import UserError, require

__all__ = ["Slope", "Tolerance", "solve"]

#: ``slope(y [B, K], times) -> [B, K]``, row ``i`` at ``times[i]``.
Slope = Callable[[Tensor, Sequence[float]], Tensor]

_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),  # order 5: its end is the next step's start
)
_ERRORS = (-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)  # order 4 less order 5
_SAFETY, _LEAST, _MOST = 0.9, 0.2, 10.0  # factors of the step size
_ORDER = 5


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How exact a solution is to be, and how long it may take.

    Raises:
        UserError: A value that is not positive.
    """

    rtol: float = 1e-5  #: error of one step allowed, relative to the size of a value
    atol: float = 1e-5  #: and in absolute terms; the two add
    max_evaluations: int = 10_000  #: of the slope, for each row

    def __post_init__(self) -> None:
        require(
            0 < self.rtol < 1 and 0 < self.atol < math.inf,
            f"rtol is {self.rtol} and atol {self.atol}; both must be positive and rtol below 1, such as 1e-5",
        )
        require(
            self.max_evaluations >= 8,
            f"max_evaluations is {self.max_evaluations}; one step with its start takes 8 already",
        )

    def of(self, y: Tensor, other: Tensor | None = None) -> Tensor:
        """Error allowed in each value of ``y``, or of the larger of the two."""
        size = y.abs() if other is None else torch.maximum(y.abs(), other.abs())
        return self.atol + size * self.rtol


class _Pace:
    """Where one row is, how far it goes next, and what it has cost; plain numbers on the host."""

    def __init__(self, start: float, stop: float, step: float) -> None:
        self.time, self.stop, self.step = start, stop, step
        self.evaluations = 2
        self.rejected = False

    @property
    def arrived(self) -> bool:
        return self.time == self.stop

    def proposed(self) -> float:
        """The signed length of the next step, 0 for a row that has arrived."""
        left = self.stop - self.time
        return math.copysign(min(self.step, abs(left)), left) if left else 0.0

    def settle(self, error: float, limit: int, row: int) -> bool:
        """Take the step or make it smaller; return whether it was taken."""
        if self.arrived:
            return False
        self.evaluations += len(_NODES)
        length = self.proposed()
        factor = _SAFETY * error ** (-1 / _ORDER) if error else _MOST
        if error < 1:
            self.time = self.stop if abs(length) == abs(self.stop - self.time) else self.time + length
            self.step = abs(length) * min(1.0 if self.rejected else _MOST, factor)
            self.rejected = False
            self.step = max(self.step, self._shortest())
        else:
            self.step = abs(length) * max(_LEAST, factor)  # NaN loses against _LEAST
            self.rejected = True
            self._check_length(row)
        require(
            self.arrived or self.evaluations + len(_NODES) <= limit,
            f"image {row} took {self.evaluations} evaluations to get to {self.time:.4g} on the way to {self.stop:.4g}; "
            f"raise max_evaluations, which is {limit}, or loosen rtol and atol",
        )
        return not self.rejected

    def _shortest(self) -> float:
        return 10 * abs(math.nextafter(self.time, math.copysign(math.inf, self.stop - self.time)) - self.time)

    def _check_length(self, row: int) -> None:
        if not self.step >= self._shortest():  # NaN included
            raise UserError(
                f"the steps of image {row} shrank to nothing at {self.time:.4g}, where the denoiser jumps or is not "
                "finite; try float32 or float64 instead of half precision, or no clipping"
            )


def solve(slope: Slope, y: Tensor, start: float, stop: float, tolerance: Tolerance) -> tuple[Tensor, tuple[int, ...]]:
    """Carry ``y`` from time ``start`` to ``stop``, in either direction.

    Args:
        slope: The right-hand side.
        y: State [B, K], float32 or float64. Errors are means over the K values of a row.
        start: Time of ``y``.
        stop: Time of the result.
        tolerance: Error of a step and limit of evaluations.

    Returns:
        The state at ``stop``, and each row's number of evaluations of the slope.

    Raises:
        UserError: A row needs more evaluations than allowed, or steps shorter than numbers can say.
    """
    if start == stop:
        return y, (0,) * y.shape[0]
    k = slope(y, [start] * y.shape[0])
    lengths = _first_steps(slope, y, k, start, stop, tolerance)
    paces = [_Pace(start, stop, length) for length in lengths]
    while not all(pace.arrived for pace in paces):
        h = torch.tensor([[pace.proposed()] for pace in paces], dtype=y.dtype).to(y.device)
        y_new, stages = _stages(slope, y, k, h, paces)
        error = h * sum(weight * stage for weight, stage in zip(_ERRORS, stages, strict=True) if weight)
        errors = _sizes(error / tolerance.of(y, y_new))
        taken = [pace.settle(errors[i], tolerance.max_evaluations, i) for i, pace in enumerate(paces)]
        chosen = torch.tensor(taken).reshape(-1, 1).to(y.device)
        y, k = torch.where(chosen, y_new, y), torch.where(chosen, stages[-1], k)
    return y, tuple(pace.evaluations for pace in paces)


def _stages(slope: Slope, y: Tensor, k: Tensor, h: Tensor, paces: Sequence[_Pace]) -> tuple[Tensor, list[Tensor]]:
    """The end of the step and all seven slopes of it, the last one at that end."""
    stages, y_new = [k], y
    for node, weights in zip(_NODES, _STAGES, strict=True):
        mixed = sum(weight * stage for weight, stage in zip(weights, stages, strict=True) if weight)
        y_new = y + h * mixed
        times = [_inside(pace.time, pace.time + node * pace.proposed(), pace.stop) for pace in paces]
        stages.append(slope(y_new, times))
    return y_new, stages


def _inside(start: float, time: float, stop: float) -> float:
    """``time``, or ``stop`` where rounding put it beyond."""
    return min(time, stop) if stop >= start else max(time, stop)


def _first_steps(slope: Slope, y: Tensor, k: Tensor, start: float, stop: float, tolerance: Tolerance) -> list[float]:
    """A first step for each row, from the sizes of the state, its slope and its curvature."""
    allowed, whole = tolerance.of(y), abs(stop - start)
    states, slopes = _sizes(y / allowed), _sizes(k / allowed)
    trials = []
    for state, steep in zip(states, slopes, strict=True):
        trial = 1e-6 if state < 1e-5 or steep < 1e-5 else 0.01 * state / steep
        trials.append(min(trial, whole))
    h = torch.tensor([[math.copysign(trial, stop - start)] for trial in trials], dtype=y.dtype).to(y.device)
    beyond = slope(y + h * k, [start + math.copysign(trial, stop - start) for trial in trials])
    bends = [bend / trial for bend, trial in zip(_sizes((beyond - k) / allowed), trials, strict=True)]
    lengths = []
    for trial, steep, bend in zip(trials, slopes, bends, strict=True):
        flat = steep <= 1e-15 and bend <= 1e-15
        fitting = max(1e-6, trial * 1e-3) if flat else (0.01 / max(steep, bend)) ** (1 / _ORDER)
        lengths.append(min(100 * trial, fitting, whole))
    return lengths


def _sizes(values: Tensor) -> list[float]:
    """Root mean square of each row, row by row so that no other row changes its rounding. Waits for the device."""
    squares = torch.stack([row.square().mean() for row in values.detach()])
    return [float(size) for size in squares.double().sqrt().tolist()]

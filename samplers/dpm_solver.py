"""Deterministic multistep and single-step solvers of the DPM-Solver family."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from steerdiff.errors import require

from .ancestral import back_up, check_eta, lower_level
from .exponential import Leap, Past, Predicted, Variant, same_way
from .noise import Noise
from .path import Move
from .prediction import Denoiser, Prediction
from .schedule import Level
from .solvers import Step, check_goes_down, check_has_signal, predict

__all__ = ["DPMSolver2M", "DPMSolver2S", "DPMSolver3M"]

Inner = Literal["halfway", "path"]


@dataclass(frozen=True, kw_only=True)
class DPMSolver2M:
    """DPM-Solver++(2M): extrapolates the prediction in half log-SNR from two evaluations. Order 2.

    One evaluation a step. The first step, and the first after ``x`` was touched or the direction changed, is of first
    order, which is DDIM. Moves up invert. Uses the prediction's ``x0`` only, moved by guidance; with
    ``predicted="eps"`` its ``eps``, which is DPM-Solver-2M and can not end at the clean image with more than DDIM.

    Source: Lu et al. 2022 (DPM-Solver++), Algorithm 2; the variants are those of its published code.
    """

    lower_order_final: bool = True  #: ends with a first-order step where there are fewer than ``few_steps``
    few_steps: int = 10  #: 10 in the official code, 15 in diffusers
    variant: Variant = "midpoint"  #: factor of the slope: half the constant's, or "heun" for the exact one
    predicted: Predicted = "x0"  #: what is extrapolated: "x0" is DPM-Solver++, "eps" DPM-Solver
    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        require(
            self.variant in get_args(Variant), f"variant is {self.variant!r}; known are {', '.join(get_args(Variant))}"
        )
        _check_end(self.few_steps)
        _check_predicted(self.predicted)

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: tuple[Past, ...] | None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; a move to the clean level returns the predicted image itself."""
        leap, prediction, history = _asked(denoise, x, move, state, self.predicted)
        if _ends_short(self, move):
            return Step(leap.along(x, history[:1]), prediction, history[:1])
        return Step(leap.along(x, history[:2], self.variant), prediction, history[:1])


@dataclass(frozen=True, kw_only=True)
class DPMSolver3M:
    """DPM-Solver++(3M): extrapolates the prediction from three evaluations, one a step. Order 2, as published.

    The published factor of the second difference is half of what a third order needs, and it is kept; errors are
    smaller than those of 2M, but fall no faster. The first steps are of order 1 and 2, as are those after ``x`` was
    touched or the direction changed. Moves up invert.

    Source: Lu et al. 2022 (DPM-Solver++), published code.
    """

    lower_order_final: bool = True  #: ends with steps of order 2 and 1 where there are fewer than ``few_steps``
    few_steps: int = 10  #: 10 in the official code, 15 in diffusers
    predicted: Predicted = "x0"  #: what is extrapolated: "x0" is DPM-Solver++, "eps" DPM-Solver
    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _check_end(self.few_steps)
        _check_predicted(self.predicted)

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: tuple[Past, ...] | None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; a move to the clean level returns the predicted image itself."""
        leap, prediction, history = _asked(denoise, x, move, state, self.predicted)
        left = max(1, move.total - move.index)
        used = history[:left] if self.lower_order_final and move.total < self.few_steps else history
        return Step(leap.along(x, used, "midpoint"), prediction, history[:2])


@dataclass(frozen=True, eq=False)
class _Opened:
    """The first half of a step over two moves of the path."""

    x: Tensor  #: image where it began
    value: Past  #: predicted there
    here: Level  #: level where it began
    inner: Level  #: level that the first half reached


@dataclass(frozen=True, kw_only=True)
class DPMSolver2S:
    """DPM-Solver++(2S): a second evaluation inside the step. Order 2, without history.

    With ``eta`` it aims at a lower level and adds fresh noise (k-diffusion's ``dpmpp_2s_ancestral``, whose eta is 1),
    of order 2 in the mean and variance of a Gaussian. A move to the clean image, or from pure noise, is of first order.
    Moves up invert with ``eta = 0``. Uses the prediction's ``x0`` only, moved by guidance.

    Source: Lu et al. 2022 (DPM-Solver++), Algorithm 1.
    """

    eta: float = 0.0  #: share of fresh noise: 0 is none, 1 the ancestral step's
    s_noise: float = 1.0  #: factor of the fresh noise
    inner: Inner = "halfway"  #: second evaluation: halfway in log-SNR, or at the path's next level, two moves a step
    variant: Variant = "midpoint"  #: factor of the slope: half the constant's, or "heun" for the exact one
    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_eta(self.eta, self.s_noise)
        require(self.inner in get_args(Inner), f"inner is {self.inner!r}; known are {', '.join(get_args(Inner))}")
        require(
            self.variant in get_args(Variant), f"variant is {self.variant!r}; known are {', '.join(get_args(Variant))}"
        )
        require(self.eta == 0 or self.inner == "halfway", f"eta is {self.eta}; inner='path' needs eta=0")

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: _Opened | None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; UserError if ``eta > 0`` goes up."""
        if self.eta:
            check_goes_down("DPMSolver2S with eta > 0", move, "invert with eta=0")
        prediction = predict(denoise, x, move.here)
        value = Past.of(prediction, move.here.log_snr / 2)
        if self.inner == "path":
            return self._over_two_moves(x, move, state, prediction, value)
        down, up = lower_level(move.here, move.there, self.eta)
        whole = Leap.between(move.here, down)
        lower = whole.along(x, (value,))
        if math.isfinite(whole.h) and whole.h != 0:
            middle = move.level_of_sigma(math.sqrt(move.here.sigma * down.sigma))
            inside = predict(denoise, Leap.between(move.here, middle).along(x, (value,)), middle)
            lower = whole.along(x, (value, Past.of(inside, middle.log_snr / 2)), self.variant)
        return Step(back_up(lower, down, move.there, up * self.s_noise, noise), prediction)

    def _over_two_moves(
        self, x: Tensor, move: Move, opened: _Opened | None, prediction: Prediction, value: Past
    ) -> Step:
        """Open a step, or finish the one that ``opened`` began; the first and the last always are whole steps."""
        if opened is not None and opened.inner == move.here:
            leap = Leap.between(opened.here, move.there)
            if same_way((opened.value,), value.at, leap.h):
                return Step(leap.along(opened.x, (opened.value, value), self.variant), prediction)
        x_there = Leap.between(move.here, move.there).along(x, (value,))
        return Step(x_there, prediction, _Opened(x, value, move.here, move.there))


def _asked(
    denoise: Denoiser, x: Tensor, move: Move, state: tuple[Past, ...] | None, predicted: Predicted
) -> tuple[Leap, Prediction, tuple[Past, ...]]:
    """The step's factors, the prediction, and the history that begins with it."""
    if predicted == "eps":
        check_has_signal("DPM-Solver with predicted='eps'", move)
    prediction = predict(denoise, x, move.here)
    leap = Leap.between(move.here, move.there, predicted)
    now = move.here.log_snr / 2
    return leap, prediction, (Past.of(prediction, now, predicted), *same_way(state, now, leap.h))


def _ends_short(solver: DPMSolver2M, move: Move) -> bool:
    return solver.lower_order_final and move.following is None and move.total < solver.few_steps


def _check_end(few_steps: int) -> None:
    require(few_steps >= 0, f"few_steps is {few_steps}; it must be at least 0, and is 10 or 15 in published code")


def _check_predicted(predicted: str) -> None:
    require(predicted in get_args(Predicted), f"predicted is {predicted!r}; known are {', '.join(get_args(Predicted))}")

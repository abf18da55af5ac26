"""Stochastic solvers of the DPM-Solver++ family: the noise of the reverse SDE drawn exactly, the mean as in the ODE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, get_args

from torch import Tensor

from steerdiff.errors import require

from .ancestral import back_up, check_eta, lower_level
from .exponential import Leap, Past, Variant, same_way
from .noise import Noise
from .path import Move
from .prediction import Denoiser, Prediction
from .schedule import Level
from .solvers import Step, check_goes_down, check_has_signal, predict

__all__ = ["DPMSolver2MSDE", "DPMSolver3MSDE", "DPMSolverSDE"]


@dataclass(frozen=True, kw_only=True)
class DPMSolverSDE:
    """SDE-DPM-Solver++ with a second evaluation halfway, and fresh noise at both. Two evaluations a step.

    A move to the clean image is of first order and draws nothing. The variance's error falls with order 1 only.

    Source: k-diffusion's ``dpmpp_sde``; Lu et al. 2022 (DPM-Solver++), Algorithm 1 between ancestral levels.
    """

    eta: float = 1.0  #: share of fresh noise: 0 is 2S, 1 the ancestral step's
    s_noise: float = 1.0  #: factor of the fresh noise
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_eta(self.eta, self.s_noise)

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; UserError if ``eta > 0`` goes up, or where alpha_bar is 0."""
        check_has_signal("DPMSolverSDE", move)
        _check_direction("DPMSolverSDE", move, self.eta)
        first = predict(denoise, x, move.here)
        if move.there.clean:
            return Step(first.x0, first)
        middle = move.level_of_sigma(math.sqrt(move.here.sigma * move.there.sigma))
        inside = predict(denoise, self._to(middle, x, first, move.here, noise), middle)
        return Step(self._to(move.there, x, inside, move.here, noise), first)

    def _to(self, there: Level, x: Tensor, prediction: Prediction, here: Level, noise: Noise) -> Tensor:
        down, up = lower_level(here, there, self.eta)
        lower = Leap.between(here, down).along(x, (Past.of(prediction, here.log_snr / 2),))
        return back_up(lower, down, there, up * self.s_noise, noise)


@dataclass(frozen=True, kw_only=True)
class DPMSolver2MSDE:
    """SDE-DPM-Solver++(2M): the multistep solver for the SDE's mean, and its noise. One evaluation a step.

    ``eta = 0`` is DPM-Solver++(2M). Order 2 in the mean and variance of a Gaussian. Source: Lu et al. 2022
    (DPM-Solver++), published code; ``eta`` as in k-diffusion's ``dpmpp_2m_sde``.
    """

    eta: float = 1.0  #: share of the SDE's noise: 0 is none, 1 all
    s_noise: float = 1.0  #: factor of the noise
    variant: Variant = "midpoint"  #: factor of the slope: half the constant's, or "heun" for the exact one
    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_eta(self.eta, self.s_noise)
        require(
            self.variant in get_args(Variant), f"variant is {self.variant!r}; known are {', '.join(get_args(Variant))}"
        )

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: tuple[Past, ...] | None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; UserError if ``eta > 0`` goes up."""
        return _multistep(denoise, x, move, (state or ())[:1], noise, self)


@dataclass(frozen=True, kw_only=True)
class DPMSolver3MSDE:
    """SDE-DPM-Solver++(3M): as 2M SDE, from three evaluations. One evaluation a step.

    ``eta = 0`` is DPM-Solver++(3M), but for the second step, whose slope has its exact factor ("heun"). Order 2 in the
    mean and variance of a Gaussian. Source: k-diffusion's ``dpmpp_3m_sde``.
    """

    eta: float = 1.0  #: share of the SDE's noise: 0 is none, 1 all
    s_noise: float = 1.0  #: factor of the noise
    order: ClassVar[int] = 2
    variant: ClassVar[Variant] = "heun"

    def __post_init__(self) -> None:
        check_eta(self.eta, self.s_noise)

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: tuple[Past, ...] | None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; UserError if ``eta > 0`` goes up."""
        return _multistep(denoise, x, move, (state or ())[:2], noise, self)


def _multistep(
    denoise: Denoiser,
    x: Tensor,
    move: Move,
    past: tuple[Past, ...],
    noise: Noise,
    solver: DPMSolver2MSDE | DPMSolver3MSDE,
) -> Step:
    _check_direction(type(solver).__name__, move, solver.eta)
    prediction = predict(denoise, x, move.here)
    leap, now = Leap.between(move.here, move.there, eta=solver.eta), move.here.log_snr / 2
    history = (Past.of(prediction, now), *same_way(past, now, leap.h))
    x_there = leap.along(x, history, solver.variant)
    variance = (1 - move.there.alpha_bar) * -math.expm1(-2 * solver.eta * leap.h) if solver.eta else 0.0
    if variance > 0:
        x_there = x_there + math.sqrt(variance) * solver.s_noise * noise()
    return Step(x_there, prediction, history)


def _check_direction(name: str, move: Move, eta: float) -> None:
    if eta:
        check_goes_down(f"{name} with eta > 0", move, "invert with eta=0")

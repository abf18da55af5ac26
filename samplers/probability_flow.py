"""The probability-flow ODE between two levels, in the time that suits it, and its adaptive solver.

``dx/dt = f - g**2 score / 2`` has the same marginals as the diffusion. Source: Song et al. 2021 (score SDE), eq. 13.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from steerdiff.errors import require

from .noise import Noise
from .path import Move
from .prediction import Denoiser, Prediction
from .rows import predict_rows
from .runge_kutta import Tolerance, solve
from .schedule import Level, NoiseSchedule
from .sde import SDE, sde_level, sde_scale, sde_time
from .solvers import Step, check_has_signal, predict

__all__ = ["RK45", "Coefficients", "Flow", "flow_along", "flow_eps"]


class Coefficients(NamedTuple):
    """The flow at one time: ``dy/dt = pull y + push eps`` for ``y = scale x``, x in the solvers' coordinates."""

    pull: float
    push: float
    scale: float


class Flow(Protocol):
    """A flow in some time, along one move."""

    def time(self, level: Level) -> float:
        """The time of a level of the move."""
        ...

    def level(self, time: float) -> Level:
        """The level at a time."""
        ...

    def coefficients(self, time: float) -> Coefficients:
        """The flow at a time."""
        ...


@dataclass(frozen=True)
class LevelFlow:
    """Between two levels of a schedule, in half the log-SNR: there the flow is smooth even where a schedule is not."""

    move: Move

    def time(self, level: Level) -> float:
        """Half the logarithm of the signal-to-noise ratio."""
        return level.log_snr / 2

    def level(self, time: float) -> Level:
        """The level, with the schedule's time."""
        return self.move.level_of_sigma(math.exp(-time))

    def coefficients(self, time: float) -> Coefficients:
        """``(1 - alpha_bar) x - sqrt(1 - alpha_bar) eps``."""
        noise = 1 / (1 + math.exp(2 * time))
        return Coefficients(noise, -math.sqrt(noise), 1.0)


@dataclass(frozen=True)
class SDEFlow:
    """Of a continuous diffusion, in its own time and coordinates, as published."""

    sde: SDE

    def time(self, level: Level) -> float:
        """The diffusion's time."""
        return sde_time(self.sde, level)

    def level(self, time: float) -> Level:
        """Its level."""
        return sde_level(self.sde, min(max(time, 0.0), 1.0))

    def coefficients(self, time: float) -> Coefficients:
        """``f + g**2 / (2 std) eps``."""
        push = self.sde.diffusion(time) ** 2 / (2 * self.sde.std(time))
        return Coefficients(self.sde.pull(time), push, sde_scale(self.sde, time))


def flow_along(move: Move, between: NoiseSchedule | SDE | None) -> Flow:
    """The flow along ``move`` on the levels of ``between``; None takes the schedule that the move knows.

    Raises:
        UserError: ``between`` is neither, or the move has no schedule.
    """
    if between is None or isinstance(between, NoiseSchedule):
        schedule = between or move.schedule
        require(
            schedule is not None,
            "this path does not know the times between its levels; give between=schedule, or between=sde for sde_path",
        )
        return LevelFlow(replace(move, schedule=schedule))
    require(
        all(hasattr(between, name) for name in ("pull", "diffusion", "std")),
        f"between is {between!r}; give a NoiseSchedule, a diffusion such as VPSDE(), or None",
    )
    return SDEFlow(between)


def flow_eps(prediction: Prediction, levels: Sequence[Level]) -> Tensor:
    """``eps`` of a prediction of images at these levels, guidance by a score included."""
    if prediction.score is None:
        return prediction.eps
    noise = torch.tensor([math.sqrt(1 - level.alpha_bar) for level in levels], dtype=prediction.eps.dtype)
    return prediction.eps - noise.to(prediction.eps.device).reshape(-1, 1, 1, 1) * prediction.score


@dataclass(frozen=True, kw_only=True)
class RK45(Tolerance):
    """Adaptive Dormand-Prince 5(4) steps along the probability flow, within one move. Order 5; moves up invert.

    However far a move leads it is followed to the tolerance, so the fewest moves are enough: ``Path.sigmas(schedule,
    2)`` or ``sde_path(sde, 2)``, whose second move, to the clean image, is the predicted image. Every image has its own
    step sizes and takes the steps it takes alone; a denoiser with a method ``rows`` is called once for all of them, any
    other once for each level that differs. A move takes 2 evaluations and 6 more for every step tried, and waits for
    the device once a step. Each image's evaluations so far are in ``Step.state``.

    With an SDE the flow is followed in the diffusion's time and coordinates, with the published tolerances; between the
    levels of a schedule it is followed in log-SNR, where the tables leave no kinks.

    Source: Dormand & Prince 1980; Song et al. 2021 (score SDE), appendix D.4.
    """

    between: NoiseSchedule | SDE | None = None  #: levels between those of the path; None takes the path's schedule
    order: ClassVar[int] = 5

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: tuple[int, ...] | None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; UserError at a level without any image, or beyond the limit."""
        check_has_signal("RK45", move)
        before = state or (0,) * x.shape[0]
        if move.there.clean or move.there == move.here:
            prediction = predict(denoise, x, move.here)
            counts = tuple(count + 1 for count in before)
            return Step(prediction.x0 if move.there.clean else x, prediction, counts)
        require(not move.here.clean, "the flow cannot start at the clean image; start at a level with noise")
        flow = flow_along(move, self.between)
        first: list[Prediction] = []

        def slope(y: Tensor, times: Sequence[float]) -> Tensor:
            pull, push, scale = columns([flow.coefficients(time) for time in times], y)
            levels = [flow.level(time) for time in times]
            prediction = predict_rows(denoise, (y / scale).reshape(x.shape), levels)
            eps = flow_eps(prediction, levels).flatten(1)
            if not first:
                first.append(prediction)
            return pull * y + push * eps.to(y.dtype)

        start, stop = flow.time(move.here), flow.time(move.there)
        y = x.flatten(1) * flow.coefficients(start).scale
        y, counts = solve(slope, y, start, stop, self)
        x = (y / flow.coefficients(stop).scale).reshape(x.shape)
        return Step(x, first[0], tuple(map(sum, zip(before, counts, strict=True))))


def columns(coefficients: Sequence[Coefficients], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pulls, pushes and scales of the rows, each [B, 1], in the dtype of ``like`` [B, K]."""
    table = torch.tensor(coefficients, dtype=like.dtype).to(like.device)
    pull, push, scale = table.unbind(1)
    return pull[:, None], push[:, None], scale[:, None]

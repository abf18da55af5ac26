"""diffusers' world: its schedulers as a path and a solver of ours, chosen from class and configuration."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerdiff.samplers import (
    DDIM,
    DDPM,
    LMS,
    PLMS,
    Denoiser,
    DiffusersSigmas,
    DiffusersTimes,
    DPMSolver2M,
    DPMSolver2MSDE,
    DPMSolver2S,
    DPMSolver3M,
    Euler,
    EulerAncestral,
    Heun,
    Level,
    NoiseSchedule,
    Path,
    Prediction,
    Solver,
    UniPC,
)

from ..helpers import eps_fn

Config = dict[str, Any]


@dataclass(frozen=True)
class Scheduler:
    """What a scheduler of diffusers is in this library."""

    path: Path
    solver: Solver
    schedule: NoiseSchedule


def scheduler_of(case: Config, base: Config, steps: int) -> Scheduler:
    """Read a golden case; every key of its configuration must be known here, so that none is passed over."""
    config = _Read(case["config"])
    schedule = rounded_schedule(base)
    if config("rescale_betas_zero_snr", False):
        schedule = schedule.zero_terminal_snr()
    path, solver = READERS[case["class"]](config, schedule, steps, dict(case["step kwargs"]))
    config("prediction_type", "epsilon"), config("clip_sample", False)  # read by denoiser_of
    assert not config.unread, f"options of {case['class']} that this test does not know: {config.unread}"
    return Scheduler(path, solver, schedule)


def rounded_schedule(base: Config) -> NoiseSchedule:
    """The schedule as diffusers keeps it, in float32: its largest sigma is 5e-7 off."""
    assert base.keys() == {"beta_start", "beta_end", "beta_schedule", "num_train_timesteps"}, base
    power = {"linear": 1, "scaled_linear": 2}[base["beta_schedule"]]
    ends = (base["beta_start"] ** (1 / power), base["beta_end"] ** (1 / power))
    betas = torch.linspace(*ends, base["num_train_timesteps"], dtype=torch.float32) ** power
    alpha_bars = torch.cumprod(1 - betas, dim=0).double().numpy()
    return NoiseSchedule.from_betas(1 - alpha_bars / np.append(1.0, alpha_bars[:-1]))


def denoiser_of(case: Config, schedule: NoiseSchedule) -> Denoiser:
    """The README's formula in the case's parameterisation; its clipping leaves eps as it is."""
    by_v, clips = case["config"].get("prediction_type") == "v_prediction", case["config"].get("clip_sample", False)

    def denoise(x: Tensor, level: Level) -> Prediction:
        eps = eps_fn(x, level.t)
        if not by_v:
            prediction = Prediction.from_output(eps, x, level)
        else:
            kept = schedule.alpha_bar(level.t)
            v = math.sqrt(kept) * eps - 0.5 * math.sqrt(1 - kept) * torch.tanh(x)
            prediction = Prediction.from_output(v, x, level, "v")
        return replace(prediction, x0=prediction.x0.clamp(-1, 1)) if clips else prediction

    return denoise


class _Read:
    """A configuration that remembers which of its keys were asked for."""

    def __init__(self, config: Config) -> None:
        self.config, self.unread = config, set(config)

    def __call__(self, key: str, default: Any) -> Any:
        self.unread.discard(key)
        return self.config.get(key, default)


def _times(config: _Read, alpha_one: bool) -> DiffusersTimes:
    return DiffusersTimes(
        spacing=config("timestep_spacing", "leading"),
        offset=config("steps_offset", 0),
        alpha_one=config("set_alpha_to_one", alpha_one),
    )


def _sigmas(config: _Read, grid: Any) -> DiffusersSigmas:
    return DiffusersSigmas(
        grid=grid,
        spacing=config("timestep_spacing", "linspace"),
        offset=config("steps_offset", 0),
        karras=config("use_karras_sigmas", False),
        final=config("final_sigmas_type", "zero"),
    )


def _ddim(config: _Read, schedule: NoiseSchedule, steps: int, step: Config) -> tuple[Path, Solver]:
    return _times(config, True)(schedule, steps), DDIM(**step)


def _ddpm(config: _Read, schedule: NoiseSchedule, steps: int, step: Config) -> tuple[Path, Solver]:
    times = DiffusersTimes(spacing=config("timestep_spacing", "leading"), offset=config("steps_offset", 0))
    return times(schedule, steps), DDPM(variance=config("variance_type", "fixed_small"), **step)


def _pndm(config: _Read, schedule: NoiseSchedule, steps: int, step: Config) -> tuple[Path, Solver]:
    assert config("skip_prk_steps", False), "PNDM with Runge-Kutta steps is not here"
    return _times(config, False)(schedule, steps), PLMS(**step)


def _in_sigma(solver: Callable[..., Solver]) -> Callable[..., tuple[Path, Solver]]:
    def read(config: _Read, schedule: NoiseSchedule, steps: int, step: Config) -> tuple[Path, Solver]:
        return _sigmas(config, "euler")(schedule, steps), solver(**step)

    return read


def _multistep(config: _Read, schedule: NoiseSchedule, steps: int, step: Config) -> tuple[Path, Solver]:
    assert not step, step
    order, variant = config("solver_order", 2), config("solver_type", "midpoint")
    algorithm = config("algorithm_type", "dpmsolver++")
    ends: dict[str, Any] = {"lower_order_final": config("lower_order_final", True), "few_steps": 15}
    predicted: Any = {"dpmsolver++": "x0", "dpmsolver": "eps", "sde-dpmsolver++": "x0"}[algorithm]
    if algorithm == "sde-dpmsolver++":
        solver: Solver = {2: DPMSolver2MSDE(variant=variant)}[order]
    else:
        second = DPMSolver2M(predicted=predicted, variant=variant, **ends)
        solver = {1: DDIM(), 2: second, 3: DPMSolver3M(predicted=predicted, **ends)}[order]
    return _sigmas(config, "dpm++")(schedule, steps), solver


def _singlestep(config: _Read, schedule: NoiseSchedule, steps: int, step: Config) -> tuple[Path, Solver]:
    order, algorithm = config("solver_order", 2), config("algorithm_type", "dpmsolver++")
    assert (order, algorithm, step) == (2, "dpmsolver++", {})
    solver = DPMSolver2S(inner="path", variant=config("solver_type", "midpoint"))
    return _sigmas(config, "dpm++")(schedule, steps), solver


def _unipc(config: _Read, schedule: NoiseSchedule, steps: int, step: Config) -> tuple[Path, Solver]:
    solver = UniPC(
        order=config("solver_order", 2),
        b=config("solver_type", "bh2"),
        predicted="x0" if config("predict_x0", True) else "eps",
        lower_order_final=config("lower_order_final", True),
        **step,
    )
    return _sigmas(config, "dpm++")(schedule, steps), solver


READERS: dict[str, Callable[..., tuple[Path, Solver]]] = {
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "PNDMScheduler": _pndm,
    "EulerDiscreteScheduler": _in_sigma(Euler),
    "EulerAncestralDiscreteScheduler": _in_sigma(EulerAncestral),
    "HeunDiscreteScheduler": _in_sigma(Heun),
    "LMSDiscreteScheduler": _in_sigma(LMS),
    "DPMSolverMultistepScheduler": _multistep,
    "DPMSolverSinglestepScheduler": _singlestep,
    "UniPCMultistepScheduler": _unipc,
}

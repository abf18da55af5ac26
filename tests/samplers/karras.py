"""k-diffusion's world: noise in sigma, unscaled images, and the golden README's formula in the place of a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerdiff.samplers import (
    CLEAN,
    DPM2,
    LMS,
    Denoiser,
    DPM2Ancestral,
    DPMSolver2M,
    DPMSolver2MSDE,
    DPMSolver2S,
    DPMSolver3MSDE,
    DPMSolverSDE,
    Euler,
    EulerAncestral,
    Heun,
    Level,
    Path,
    Prediction,
    Record,
    Solver,
    integrate,
)

from .replay import Replay

ANCESTRAL_2S = "dpmpp_2s_ancestral"
SAMPLERS: dict[str, Callable[..., Solver]] = {
    "euler": Euler,
    "euler_ancestral": EulerAncestral,
    "heun": Heun,
    "dpm_2": DPM2,
    "dpm_2_ancestral": DPM2Ancestral,
    "lms": LMS,
    "dpmpp_2s": lambda eta=1.0, **fields: DPMSolver2S(eta=eta, **fields),
    ANCESTRAL_2S: lambda eta=1.0, **fields: DPMSolver2S(eta=eta, **fields),
    "dpmpp_2m": lambda: DPMSolver2M(lower_order_final=False),
    "dpmpp_sde": DPMSolverSDE,
    "dpmpp_2m_sde": DPMSolver2MSDE,
    "dpmpp_3m_sde": DPMSolver3MSDE,
}


def solver_of(name: str, options: dict[str, Any]) -> Solver:
    """The solver of a golden case, whose name begins with that of k-diffusion's function."""
    functions = [key for key in SAMPLERS if f"{name}_".startswith(f"{key}_")]
    assert functions, f"no solver of ours is known for k-diffusion's {name!r}"
    fields = {"solver_type": "variant"}
    return SAMPLERS[max(functions, key=len)](**{fields.get(key, key): value for key, value in options.items()})


def denoised(x: Tensor, level: Level) -> Prediction:
    """The golden README's formula; k-diffusion's x is ours divided by ``sqrt(alpha_bar)``."""
    sigma, x = level.sigma, x / math.sqrt(level.alpha_bar)
    x0 = formula(x, sigma)
    return Prediction(x0, (x - x0) / sigma)


def formula(x: Tensor, sigma: float) -> Tensor:
    """``den`` of the golden README."""
    return x / (1 + sigma**2) + 0.3 * torch.sin(x / math.sqrt(1 + sigma**2) + 0.2 * sigma) * sigma / (1 + sigma)


def sigma_path(sigmas: np.ndarray) -> Path:
    """A path down the sigmas, the last of which is 0."""
    levels = [Level(float(-i), 1 / (1 + float(sigma) ** 2)) for i, sigma in enumerate(sigmas[:-1])]
    return Path.from_levels([*levels, CLEAN], T=1000)


def visited(
    solver: Solver, path: Path, x: Tensor, draws: list[Tensor], a_step: int, denoise: Denoiser = denoised
) -> Tensor:
    """Unscaled images at which the solver asks first in each step, and the result: what k-diffusion's callback sees.

    Every step finds the draws at its own place, ``a_step`` of them, for k-diffusion draws some that it does not use.
    """
    noise, seen = Replay(draws), list[Tensor]()

    def watched(x: Tensor, level: Level) -> Prediction:
        seen.append(x / math.sqrt(level.alpha_bar))
        return denoise(x, level)

    first = [0]

    def next_step(record: Record) -> None:
        noise.count = a_step * (record.index + 1)
        first.append(len(seen))

    end = integrate(watched, solver, path, x * math.sqrt(path.start.alpha_bar), noise=noise, callback=next_step)
    return torch.stack([*(seen[i] for i in first[:-1]), end])

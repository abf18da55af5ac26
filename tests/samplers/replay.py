"""Stand-ins for a noise source and for guidance, with which the official code's numbers can be met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerdiff.samplers import Denoiser, Level, NetworkDenoiser, Noise, NoiseSchedule, Path, Prediction

from ..helpers import cond_fn, eps_fn, learned_fn


class Replay(Noise):
    """Gives stored arrays in order, over and over; ``count`` says how many were drawn."""

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self.draws, self.count = list(draws), 0

    def __call__(self) -> Tensor:
        self.count += 1
        return self.draws[(self.count - 1) % len(self.draws)]

    def fork(self, name: str) -> Noise:
        return self


def golden_schedule(name: str, T: int) -> NoiseSchedule:
    return {"linear": NoiseSchedule.linear, "cosine": NoiseSchedule.cosine}[name](T)


def golden_path(meta: dict[str, Any]) -> tuple[Path, NoiseSchedule]:
    """The path of a golden file, and the respaced process it walks."""
    schedule = golden_schedule(meta["schedule"], meta.get("T", 1000))
    path = Path.respaced(schedule, meta["respacing"] or schedule.T)
    return path, schedule.respaced([int(move.here.t) for move in reversed(path)])


def golden_denoiser(meta: dict[str, Any], clips: bool | None = None) -> NetworkDenoiser:
    clips = meta["clip_denoised"] if clips is None else clips
    learned = meta.get("learn_sigma", meta.get("model", "learned_fn") == "learned_fn")
    return NetworkDenoiser(
        network=learned_fn if learned else eps_fn,
        parameterization=meta.get("predict", "eps"),
        learns_variance=learned,
        clip="clip" if clips else "none",
        time_scale=time_scale(meta),
    )


def time_scale(meta: dict[str, Any]) -> float:
    return 1000 / meta["T"] if meta.get("rescale_timesteps") else 1.0


def guided(denoise: Denoiser, meta: dict[str, Any]) -> Denoiser:
    """Add the golden files' stand-in for a classifier's gradient as a score."""
    y = torch.tensor(meta["y"])

    def answer(x: Tensor, level: Level) -> Prediction:
        return replace(denoise(x, level), score=cond_fn(x, level.t * time_scale(meta), y))

    return answer


def assert_close(actual: Tensor | np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Largest error at most ``tolerance`` of the largest expected value, or of 1 where that is smaller."""
    error = np.abs(np.asarray(actual, dtype=np.float64) - expected).max()
    assert error <= tolerance * max(1.0, np.abs(expected).max()), f"off by {error:.3g}"

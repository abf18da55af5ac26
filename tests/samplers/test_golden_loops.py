"""Whole runs of the official code through our one loop."""

from __future__ import annotations

import math
from pathlib import Path as File

import numpy as np
import pytest
import torch
from torch import Tensor

from steerdiff.samplers import CLEAN, DDIM, DDPM, DPMSolver2M, Euler, Heun, Level, Path, Prediction, Recorder, integrate

from ..helpers import golden_files, load_golden
from .replay import Replay, assert_close, golden_denoiser, golden_path, guided

TRAJECTORY = 1e-4  # of the largest value, from the golden README


@pytest.mark.parametrize("file", golden_files("diffusion/loop_*"), ids=lambda file: file.stem)
def test_loop_equals_the_official_trajectory(file: File) -> None:
    arrays, meta = load_golden(file)
    path, _ = golden_path(meta)
    denoise = golden_denoiser(meta)
    denoise = guided(denoise, meta) if meta["cond"] else denoise
    solver = DDPM() if meta["sampler"] == "ddpm" else DDIM(eta=meta["eta"])
    recorder = Recorder()
    start, draws = torch.from_numpy(arrays["in.xT"]), list(torch.from_numpy(arrays["in.z"]))
    integrate(denoise, solver, path, start, noise=Replay(draws), callback=recorder)
    assert_close(torch.stack(recorder.images), arrays["out.all"], TRAJECTORY)


@pytest.mark.parametrize("file", golden_files("diffusion/inversion_*"), ids=lambda file: file.stem)
def test_inversion_and_sampling_equal_the_official_run(file: File) -> None:
    arrays, meta = load_golden(file)
    down, _ = golden_path(meta)
    top = Level(1000.0, 0.0)  # the official code goes beyond the last level, to pure noise
    up = Path.from_levels([*(move.here for move in reversed(down)), top], T=1000, kind="invert")
    denoise = golden_denoiser(meta | {"clip_denoised": False})
    climbed, descended = Recorder(), Recorder()
    x = integrate(denoise, DDIM(), up, torch.from_numpy(arrays["in.x0"]), callback=climbed)
    integrate(denoise, DDIM(), down, x, callback=descended)
    assert down.end == CLEAN
    assert_close(torch.stack(climbed.images), arrays["out.up"], TRAJECTORY)
    assert_close(torch.stack(descended.images), arrays["out.down"], TRAJECTORY)


def denoised(x: Tensor, level: Level) -> Prediction:
    """The golden README's formula for k-diffusion, whose x is ours divided by ``sqrt(alpha_bar)``."""
    sigma, x = level.sigma, x / math.sqrt(level.alpha_bar)
    root = math.sqrt(1 + sigma**2)
    x0 = x / (1 + sigma**2) + 0.3 * torch.sin(x / root + 0.2 * sigma) * sigma / (1 + sigma)
    return Prediction(x0, (x - x0) / sigma)


K_DIFFUSION = {"euler": Euler(), "heun": Heun(), "dpmpp_2m": DPMSolver2M()}


@pytest.mark.parametrize("file", golden_files("kdiffusion/samplers*"), ids=lambda file: file.stem)
@pytest.mark.parametrize("name", sorted(K_DIFFUSION))
def test_solvers_equal_those_of_k_diffusion(file: File, name: str) -> None:
    arrays, _ = load_golden(file)
    sigmas = arrays["in.sigmas"].astype(np.float64)
    levels = [Level(float(-i), 1 / (1 + sigma**2)) for i, sigma in enumerate(sigmas[:-1])]
    path = Path.from_levels([*levels, CLEAN], T=1000)
    recorder = Recorder()
    x = torch.from_numpy(arrays["in.x"]) * math.sqrt(levels[0].alpha_bar)
    integrate(denoised, K_DIFFUSION[name], path, x, callback=recorder)
    pairs = zip(recorder.images, recorder.moves, strict=True)
    ours = torch.stack([image / math.sqrt(move.there.alpha_bar) for image, move in pairs])
    assert_close(ours, arrays[f"out.{name}"][1:], TRAJECTORY)  # row 0 is the start

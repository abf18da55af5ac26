"""Whole runs of the official code through our one loop."""

from __future__ import annotations

import math
from pathlib import Path as File

import pytest
import torch

from steerdiff.samplers import CLEAN, DDIM, DDPM, Level, Path, Recorder, integrate

from ..helpers import golden_files, load_golden
from .karras import sigma_path, solver_of, visited
from .replay import Replay, assert_close, golden_denoiser, golden_path, guided

TRAJECTORY = 1e-4  # of the largest value, from the golden README
FLOAT32 = 1e-6  # theirs ran in float32, ours in float64: measured 3e-7 at most


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


def k_diffusion_cases() -> list[tuple[File, str]]:
    return [(file, name) for file in golden_files("kdiffusion/samplers*") for name in load_golden(file)[1]["samplers"]]


@pytest.mark.parametrize(("file", "name"), k_diffusion_cases(), ids=lambda value: str(getattr(value, "stem", value)))
def test_every_sampler_of_k_diffusion_is_met_row_by_row(file: File, name: str) -> None:
    arrays, meta = load_golden(file)
    options = dict(meta["samplers"][name])
    path = sigma_path(arrays["in.sigmas"])
    a_step = math.ceil(options.pop("noises_used") / len(path))
    draws = list(torch.from_numpy(arrays["in.z"]).double())
    rows = visited(solver_of(name, options), path, torch.from_numpy(arrays["in.x"]).double(), draws, a_step)
    for row, expected in zip(rows, arrays[f"out.{name}"], strict=True):
        assert_close(row, expected, FLOAT32)


def test_k_diffusion_golden_files_are_there() -> None:
    assert len(k_diffusion_cases()) >= 32

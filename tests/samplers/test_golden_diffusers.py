"""Whole runs of diffusers' schedulers, with Stable Diffusion's betas, through our paths and solvers."""

from __future__ import annotations

import math
from pathlib import Path as File

import pytest
import torch
from torch import Tensor

from steerdiff.samplers import (
    CONVENTIONS,
    DDIM,
    Denoiser,
    DiffusersInverse,
    DiffusersTimes,
    Level,
    NetworkDenoiser,
    NoiseSchedule,
    Path,
    Prediction,
    Recorder,
    Solver,
    integrate,
)

from ..helpers import eps_fn, golden_files, load_golden
from .diffusers import denoiser_of, rounded_schedule, scheduler_of
from .replay import Replay, assert_close

FLOAT32 = 1e-6  # of each row's largest value: theirs ran in float32, ours in float64 on their table; measured 6e-7
BASE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
IN_SIGMA = ("Euler", "EulerAncestral", "Heun", "LMS")  #: their images are ours divided by ``sqrt(alpha_bar)``


def cases() -> list[tuple[File, str]]:
    return [(file, name) for file in golden_files("diffusers/schedulers_*") for name in load_golden(file)[1]["cases"]]


class Watched:
    """A denoiser that remembers each question."""

    def __init__(self, denoise: Denoiser) -> None:
        self.denoise, self.asked = denoise, list[tuple[Tensor, Level]]()

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        self.asked.append((x, level))
        return self.denoise(x, level)


def run(denoise: Denoiser, solver: Solver, path: Path, start: Tensor, draws: Tensor) -> tuple[Watched, Recorder]:
    watched, recorder = Watched(denoise), Recorder()
    integrate(watched, solver, path, start, noise=Replay(list(draws)), callback=recorder)
    return watched, recorder


def samples(watched: Watched, images: list[Tensor], moves: list[Level], in_sigma: bool) -> list[Tensor]:
    """What each call of the scheduler's step returned: a solver asks at each of them but the last."""
    states = [*watched.asked[1:], (images[-1], moves[-1])]
    return [x / math.sqrt(level.alpha_bar) if in_sigma else x for x, level in states]


@pytest.mark.parametrize(("file", "name"), cases(), ids=lambda value: str(getattr(value, "stem", value)))
def test_every_scheduler_of_diffusers_is_met_step_by_step(file: File, name: str) -> None:
    arrays, meta = load_golden(file)
    case = meta["cases"][name]
    scheduler = scheduler_of(case, meta["base config"], meta["num_inference_steps"])
    path, in_sigma = scheduler.path, case["class"].removesuffix("DiscreteScheduler") in IN_SIGMA
    start = torch.from_numpy(arrays["in.x"]).double() * case["init_noise_sigma"]
    start = start * math.sqrt(path.start.alpha_bar) if in_sigma else start
    draws = torch.from_numpy(arrays["in.z"]).double()
    watched, recorder = run(denoiser_of(case, scheduler.schedule), scheduler.solver, path, start, draws)
    times = torch.tensor([level.t for _, level in watched.asked], dtype=torch.float64)
    expected = torch.from_numpy(arrays[f"timesteps_{name}"])
    if expected.is_floating_point():  # float32 logarithms of sigma, in which time is steep
        torch.testing.assert_close(times, expected.double(), rtol=0, atol=2e-3)
    else:
        assert times.tolist() == expected.tolist()
    ours = samples(watched, recorder.images, [move.there for move in recorder.moves], in_sigma)
    for row, one in zip(ours, arrays[f"out.{name}"], strict=True):
        assert_close(row, one, FLOAT32)


@pytest.mark.parametrize("file", golden_files("diffusers/inverse_*"), ids=lambda file: file.stem)
def test_inverse_scheduler_and_the_way_back_are_met(file: File) -> None:
    arrays, meta = load_golden(file)
    config, steps, schedule = dict(meta["config"]), meta["num_inference_steps"], rounded_schedule(BASE)
    assert meta["class"] == "DDIMInverseScheduler, then DDIMScheduler back"
    assert (config.pop("clip_sample"), config.pop("set_alpha_to_one")) == (False, False)
    offset = config.pop("steps_offset")
    assert not config
    up = DiffusersInverse(offset=offset)(schedule, steps)
    down = DiffusersTimes(offset=offset, alpha_one=False)(schedule, steps)
    assert up.end == down.start
    assert [move.here.t for move in up] == arrays["inverse_timesteps"].tolist()
    assert [move.here.t for move in down] == arrays["ddim_timesteps"].tolist()
    denoise = denoiser_of({"config": {}}, schedule)
    _, climbed = run(denoise, DDIM(), up, torch.from_numpy(arrays["in.x"]).double(), torch.empty(0))
    _, descended = run(denoise, DDIM(), down, torch.from_numpy(arrays["out.up"][-1]).double(), torch.empty(0))
    for row, expected in zip(climbed.images, arrays["out.up"], strict=True):
        assert_close(row, expected, 2 * FLOAT32)  # 50 steps in float32, whose errors add up: measured 1.2e-6
    for row, expected in zip(descended.images, arrays["out.down"], strict=True):
        assert_close(row, expected, 2 * FLOAT32)


def test_presets_of_stable_diffusion_are_what_the_configurations_ask_for() -> None:
    """The named presets go through the same golden runs, wherever a case has their configuration."""
    presets = {
        "ddim": "diffusers-ddim",
        "ddim_alpha_one": "diffusers-ddim-default",
        "ddim_trailing": "diffusers-ddim-trailing",
        "ddim_linspace": "diffusers-ddim-linspace",
        "pndm": "diffusers-pndm",
        "euler": "diffusers-euler",
        "euler_karras": "diffusers-euler-karras",
        "dpmpp_2m": "diffusers-dpm++",
        "dpmpp_2m_karras": "diffusers-dpm++-karras",
        "unipc": "diffusers-dpm++",
        "dpmpp_2s": "diffusers-dpm++",
    }
    met = set()
    for file, name in cases():
        _, meta = load_golden(file)
        if name in presets:
            scheduler = scheduler_of(meta["cases"][name], meta["base config"], meta["num_inference_steps"])
            assert CONVENTIONS[presets[name]](scheduler.schedule, meta["num_inference_steps"]) == scheduler.path
            met.add(name)
    assert met == set(presets)


def test_a_scheduler_or_an_option_that_is_unknown_fails_loudly() -> None:
    case = {"class": "DDIMScheduler", "config": {}, "step kwargs": {}}
    with pytest.raises(KeyError, match="KarrasVeScheduler"):
        scheduler_of(case | {"class": "KarrasVeScheduler"}, BASE, 10)
    with pytest.raises(AssertionError, match="thresholding"):
        scheduler_of(case | {"config": {"thresholding": True}}, BASE, 10)
    with pytest.raises(TypeError, match="use_clipped_model_output"):
        scheduler_of(case | {"step kwargs": {"use_clipped_model_output": True}}, BASE, 10)


def test_golden_cases_of_diffusers_are_there() -> None:
    assert len(cases()) >= 34
    assert golden_files("diffusers/inverse_*")


@pytest.mark.parametrize("file", golden_files("p2p/ddim_inversion_*"), ids=lambda file: file.stem)
def test_the_inversion_of_null_text_is_that_of_diffusers_without_offset(file: File) -> None:
    arrays, meta = load_golden(file)
    schedule = NoiseSchedule.scaled_linear()
    up = DiffusersInverse(offset=0)(schedule, meta["num_inference_steps"])
    assert [move.here.t for move in up] == [float(reached) for _, reached in arrays["pairs"]]
    kept: list[Tensor] = []
    x = torch.from_numpy(arrays["in.x"]).double()
    denoise = NetworkDenoiser(network=eps_fn)
    integrate(denoise, DDIM(), up, x, callback=lambda record: kept.append(record.step.x))
    expected = torch.from_numpy(arrays["out.up"]).double()
    assert float((torch.stack(kept) - expected).abs().max() / expected.abs().max()) <= 2e-6  # theirs is in float32
    assert golden_files("p2p/ddim_inversion_*")

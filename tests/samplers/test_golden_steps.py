"""Single steps of the official code: every quantity of every file, at the tolerance of the golden README."""

from __future__ import annotations

import math
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steerdiff.samplers import (
    DDIM,
    DDPM,
    Level,
    Move,
    NetworkDenoiser,
    NoiseSchedule,
    Path,
    Prediction,
    Step,
    model_variance,
    posterior_mean,
    prior_bits,
    vlb_terms,
)

from ..helpers import golden_files, load_golden
from .replay import Replay, assert_close, golden_denoiser, golden_path, guided, time_scale

STEP = 2e-5  # one step of a sampler, from the golden README
FILES = golden_files("diffusion/steps_*")


class Case:
    """One golden file: its process, its inputs, and the index of each of its steps."""

    def __init__(self, file: File) -> None:
        self.arrays, self.meta = load_golden(file)
        self.path, self.process = golden_path(self.meta)
        self.denoise = golden_denoiser(self.meta)
        self.x, self.noise, self.x0 = (torch.from_numpy(self.arrays[f"in.{name}"]) for name in ("x", "noise", "x0"))
        self.steps: list[int] = self.meta["steps"]
        self.variance: Any = {"learned_range": "learned"}.get(self.meta["var"], self.meta["var"])

    def move(self, i: int) -> Move:
        return self.path[len(self.path) - 1 - i]

    def upward(self, i: int) -> Move:
        """From respaced time i to the next; guided-diffusion puts alpha_bar = 0 above the last."""
        top = i == len(self.path) - 1
        there = Level(self.move(i).here.t + 1, 0.0) if top else self.move(i + 1).here
        return Move(here=self.move(i).here, there=there, kind="invert")

    def replay(self) -> Replay:
        return Replay([self.noise])

    def expect(self, name: str, values: list[Tensor], allowed: list[float] | None = None) -> None:
        extra = allowed or [0.0] * len(values)
        for value, expected, more in zip(values, self.arrays[f"out.{name}"], extra, strict=True):
            assert_close(value, expected, STEP + more)

    def expect_ddim(self, name: str, steps: list[Step], moves: list[Move]) -> None:
        """Official DDIM takes ``sqrt(1 - alpha_bar)`` of float32 numbers: off by ``ulp / (2 sqrt(1 - alpha_bar))``.

        That is multiplied by eps, which is in the hundreds where a clipped x0 is far from x at a low level. Ours takes
        it in float64 and agrees with a float64 run to 2e-7.
        """
        extra = []
        for step, move in zip(steps, moves, strict=True):
            added = [1 - level.alpha_bar for level in (move.here, move.there) if not level.clean]
            largest_eps = float(step.prediction.eps.abs().max())
            extra.append(2.0**-25 * largest_eps / (2 * math.sqrt(min(added))))
        self.expect(name, [step.x for step in steps], extra)


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_golden_step_files_are_there() -> None:
    assert FILES


def test_prediction_mean_and_variance_equal_the_official_step(case: Case) -> None:
    moves = [case.move(i) for i in case.steps]
    predictions = [case.denoise(case.x, move.here) for move in moves]
    pairs = list(zip(predictions, moves, strict=True))
    variances = [model_variance(prediction, move, case.variance) for prediction, move in pairs]
    case.expect("pred_xstart", [prediction.x0 for prediction in predictions])
    case.expect("mean", [posterior_mean(prediction.x0, case.x, move) for prediction, move in pairs])
    case.expect("variance", [torch.as_tensor(variance) for variance, _ in variances])
    case.expect("log_variance", [torch.as_tensor(log_variance) for _, log_variance in variances])


def test_ddpm_equals_p_sample_with_and_without_guidance(case: Case) -> None:
    solver = DDPM(variance=case.variance)
    for name, denoise in (("p_sample", case.denoise), ("p_sample_cond", guided(case.denoise, case.meta))):
        case.expect(name, [solver.step(denoise, case.x, case.move(i), None, case.replay()).x for i in case.steps])


def test_ddim_equals_the_official_one_with_eta_and_guidance(case: Case) -> None:
    moves = [case.move(i) for i in case.steps]

    def steps(denoise: Any, eta: float) -> list[Any]:
        return [DDIM(eta=eta).step(denoise, case.x, move, None, case.replay()) for move in moves]

    case.expect_ddim("ddim", steps(case.denoise, 0.0), moves)
    case.expect_ddim("ddim_eta", steps(case.denoise, case.meta["ddim_eta"]), moves)
    conditioned = steps(guided(case.denoise, case.meta), case.meta["ddim_cond_eta's eta"])
    case.expect_ddim("ddim_cond_eta", conditioned, moves)
    case.expect("ddim_cond_pred_xstart", [step.prediction.x0 for step in conditioned])


def test_ddim_upwards_equals_ddim_reverse_sample(case: Case) -> None:
    moves = [case.upward(i) for i in case.steps]
    case.expect_ddim("ddim_reverse", [DDIM().step(case.denoise, case.x, m, None, case.replay()) for m in moves], moves)


def test_forward_process_and_posterior_mean_equal_the_official_ones(case: Case) -> None:
    case.expect("q_sample", [case.process.q_sample(case.x0, case.move(i).here, case.noise) for i in case.steps])
    by_time = [case.process.q_sample(case.x0, torch.tensor([i, i]), case.noise) for i in case.steps]
    case.expect("q_sample", by_time)
    case.expect("q_posterior_mean", [posterior_mean(case.x0, case.x, case.move(i)) for i in case.steps])


def test_variational_bound_equals_the_official_bits(case: Case) -> None:
    values = []
    for i in case.steps:
        here = case.move(i).here
        x_t = case.process.q_sample(case.x0, here, case.noise)
        t = torch.tensor([i, i])
        values.append(vlb_terms(case.process, case.denoise(x_t, here), case.x0, x_t, t, case.variance))
    case.expect("vb_bpd", values)
    assert_close(prior_bits(case.process, case.x0), case.arrays["out.prior_bpd"][0], STEP)


def test_training_losses_equal_the_official_ones(case: Case) -> None:
    squared, bound = [], []
    for i in case.steps:
        t = torch.tensor([i, i])
        x_t = case.process.q_sample(case.x0, t, case.noise)
        prediction, output = raw_prediction(case, x_t, i)
        target = case.noise if case.meta["predict"] == "eps" else case.x0
        squared.append((output[:, : x_t.shape[1]] - target).square().flatten(1).mean(1))
        bound.append(vlb_terms(case.process, prediction, case.x0, x_t, t, case.variance))
    case.expect("train_mse", squared)
    if case.meta["learn_sigma"]:
        case.expect("train_vb", bound)
        case.expect("train_loss", [mse + vb for mse, vb in zip(squared, bound, strict=True)])
    else:
        case.expect("train_loss", squared)


def raw_prediction(case: Case, x_t: Tensor, i: int) -> tuple[Prediction, Tensor]:
    """As training reads the network: no clipping, and alpha_bar per image."""
    denoise: NetworkDenoiser = golden_denoiser(case.meta, clips=False)
    output = denoise.network(x_t, torch.full((2,), case.move(i).here.t * time_scale(case.meta)))
    alpha_bars = torch.from_numpy(np.array(case.process.alpha_bars))[[i, i]]
    arguments = (denoise.parameterization, denoise.learns_variance)
    return Prediction.from_output(output, x_t, alpha_bars, *arguments), output


def test_a_path_and_its_respaced_process_have_the_same_betas(case: Case) -> None:
    path: Path = case.path
    process: NoiseSchedule = case.process
    np.testing.assert_allclose([move.beta for move in reversed(path)], process.betas, rtol=1e-10)

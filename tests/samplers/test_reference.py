"""Every solver against its formula, written apart from the library, in float64: to 1e-10, where golden files end."""

from __future__ import annotations

import math

import pytest
import torch

from steerdiff.samplers import Noise, Recorder, integrate, karras_sigmas
from steerdiff.scripts.solver_text import solver_from_text

from .karras import denoised, formula, sigma_path
from .reference import RUNS
from .replay import Replay

EXACT = 1e-10  # of the largest value
SIGMAS = [*(float(sigma) for sigma in karras_sigmas(11, 0.03, 14.0, 5.0)), 0.0]


@pytest.mark.parametrize("name", sorted(RUNS))
def test_solver_equals_its_formula_to_ten_digits(name: str) -> None:
    noise = Noise(5, (2, 3, 4, 4), dtype=torch.float64)
    y, draws = SIGMAS[0] * noise(), [noise() for _ in range(30)]
    path, recorder = sigma_path(torch.tensor(SIGMAS, dtype=torch.float64).numpy()), Recorder()
    start = math.sqrt(path.start.alpha_bar) * y
    integrate(denoised, solver_from_text(name), path, start, noise=Replay(draws), callback=recorder)
    expected = RUNS[name](formula, y, SIGMAS, Replay(draws))
    for image, move, row in zip(recorder.images, recorder.moves, expected, strict=True):
        ours = image / math.sqrt(move.there.alpha_bar)
        assert (ours - row).abs().max() <= EXACT * max(1.0, float(row.abs().max()))

"""The continuous diffusions: their own identities, and sampling with them through the ordinary solvers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.samplers import (
    CLEAN,
    DDPM,
    SDE,
    VESDE,
    VPSDE,
    EulerMaruyama,
    Heun,
    Noise,
    NoiseSchedule,
    ScoreDenoiser,
    Solver,
    SubVPSDE,
    integrate,
    sde_level,
    sde_path,
    sde_scale,
    sde_time,
)

from .mixture import TWO, two_sample_p

SDES: list[SDE] = [VPSDE(), SubVPSDE(), VESDE()]
each_sde = pytest.mark.parametrize("sde", SDES, ids=repr)
TIMES = (0.01, 0.2, 0.5, 0.9)


def slope_at(function: Any, t: float, h: float = 1e-5) -> float:
    return float((function(t + h) - function(t - h)) / (2 * h))


@each_sde
@pytest.mark.parametrize("t", TIMES)
def test_marginals_solve_their_own_equations(sde: SDE, t: float) -> None:
    pull = float(sde.drift(torch.ones(1, dtype=torch.float64), t))  # the drift is linear in x
    assert slope_at(sde.signal, t) == pytest.approx(pull * sde.signal(t), rel=1e-6, abs=1e-12)
    growth = 2 * pull * sde.std(t) ** 2 + sde.diffusion(t) ** 2
    assert slope_at(lambda s: sde.std(s) ** 2, t) == pytest.approx(growth, rel=1e-6)
    assert torch.equal(sde.drift(torch.full((2,), 3.0), t), torch.full((2,), 3.0) * pull)


@each_sde
def test_time_of_a_level_is_the_time_it_was_made_from(sde: SDE) -> None:
    for t in (0.0 if isinstance(sde, VESDE) else 1e-5, *TIMES, 1.0):
        assert sde_time(sde, sde_level(sde, t)) == pytest.approx(t, rel=1e-12)
    with pytest.raises(UserError, match="the level t = -1 with alpha_bar 1 is none of"):
        sde_time(sde, CLEAN)


@each_sde
def test_discrete_steps_add_up_to_the_marginal(sde: SDE) -> None:
    """Forward through all levels, the discrete process has the diffusion's own signal and noise."""
    times = np.linspace(1e-3, 1, 2000)
    signal, variance = sde.signal(times[0]), sde.std(times[0]) ** 2
    for there, t in zip(times, times[1:], strict=False):
        kept, added = sde.discretize(t, there)
        signal, variance = kept * signal, kept**2 * variance + added
    exact = pytest.approx if isinstance(sde, SubVPSDE) else lambda value, rel: pytest.approx(value, rel=1e-9)
    assert signal == exact(sde.signal(1.0), rel=0.02)  # sub-VP's is the step of Euler and Maruyama, of first order
    assert variance == exact(sde.std(1.0) ** 2, rel=0.02)


def test_vp_is_the_limit_of_the_linear_betas() -> None:
    schedule, sde = NoiseSchedule.linear(), VPSDE()
    for t in (99, 499, 999):
        assert math.log(sde.signal((t + 1) / 1000) ** 2) == pytest.approx(math.log(schedule.alpha_bar(t)), rel=0.01)


def test_published_values_at_both_ends() -> None:
    assert (VPSDE().signal(0), VPSDE().std(0), VPSDE().prior_std) == (1, 0, 1)
    assert VPSDE().signal(1) == pytest.approx(math.exp(-10.05 / 2))
    assert SubVPSDE().std(0.5) == pytest.approx(1 - SubVPSDE().signal(0.5) ** 2)
    assert (VESDE().std(0), VESDE().std(1), VESDE().prior_std) == (0.01, pytest.approx(50), 50)
    assert VESDE(sigma_max=348).diffusion(1) == pytest.approx(348 * math.sqrt(2 * math.log(34800)))


@each_sde
def test_levels_have_the_signal_to_noise_ratio_of_the_diffusion(sde: SDE) -> None:
    for t in TIMES:
        level = sde_level(sde, t)
        assert level.t == 999 * t
        assert level.sigma == pytest.approx(sde.std(t) / sde.signal(t))
        assert math.sqrt(level.alpha_bar) * sde_scale(sde, t) == pytest.approx(sde.signal(t))
    path = sde_path(sde, 10, t_end=0.01)
    assert (len(path), path.start, path.end) == (10, sde_level(sde, 1.0), CLEAN)
    assert path[-1].here.t == pytest.approx(9.99)


def sampled(sde: SDE, solver: Solver, steps: int, t_end: float, n: int = 4000) -> np.ndarray:
    def score(x: Tensor, t: float) -> Tensor:
        return TWO.score(x, sde.signal(t), sde.std(t))

    start = Noise(21, (1, 2, 1, n))().double() * sde.prior_std / sde_scale(sde, 1)
    path = sde_path(sde, steps, t_end)
    x = integrate(ScoreDenoiser(score=score, sde=sde), solver, path, start, noise=Noise(22, like=start))
    return x[0, :, 0].T.numpy()


@each_sde
@pytest.mark.parametrize(("solver", "steps"), [(EulerMaruyama(), 400), (Heun(), 80), (DDPM(), 250)], ids=repr)
def test_solvers_reach_the_exact_distribution_in_every_diffusion(sde: SDE, solver: Solver, steps: int) -> None:
    t_end = 1e-5 if isinstance(sde, VESDE) else 1e-3
    assert two_sample_p(sampled(sde, solver, steps, t_end), TWO.draw(20_000, seed=8)) > 0.01


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPSDE(beta_min=20.0, beta_max=0.1), "beta_min is 20.0 and beta_max 0.1; they must obey 0 < beta_min"),
        (lambda: VESDE(sigma_min=0.0), "sigma_min is 0.0 and sigma_max 50.0"),
        (lambda: sde_level(VPSDE(), 1.5), r"t is 1.5; the time of a continuous diffusion lies in \[0, 1\]"),
        (lambda: sde_path(VPSDE(), 1), "steps is 1; a path of a continuous diffusion needs at least 2"),
        (lambda: sde_path(VPSDE(), 10, 0.0), r"t_end is 0.0; it must lie in \(0, 1\)"),
    ],
)
def test_bad_diffusions_get_a_clear_error(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()

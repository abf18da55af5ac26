"""The solvers proved on mixtures of Gaussians, whose score and probability flow are known exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from steerdiff.samplers import (
    DDIM,
    DDPM,
    DPM2,
    LMS,
    PLMS,
    RK45,
    SOLVERS,
    Denoiser,
    DPM2Ancestral,
    DPMSolver2M,
    DPMSolver2MSDE,
    DPMSolver2S,
    DPMSolver3M,
    DPMSolver3MSDE,
    DPMSolverSDE,
    Euler,
    EulerAncestral,
    EulerMaruyama,
    Heun,
    Level,
    Noise,
    Path,
    Prediction,
    PredictorCorrector,
    ReverseDiffusion,
    Solver,
    UniPC,
    VarianceKind,
    integrate,
)

from .mixture import ONE, SCHEDULE, TWO, Mixture, even_path, slope, two_sample_p

DETERMINISTIC: list[tuple[Solver, float]] = [  # with the order that is measured, where it is not the declared one
    (DDIM(), 1),
    (Euler(), 1),
    (Heun(), 2),
    (DPM2(), 2),
    (DPMSolver2M(), 2),
    (DPMSolver2M(variant="heun"), 2),
    (DPMSolver2M(predicted="eps"), 2),
    (DPMSolver3M(), 2),
    (DPMSolver3M(predicted="eps"), 2),
    (DPMSolver2S(), 2),
    (DPMSolver2S(variant="heun"), 2),
    (DPMSolver2S(inner="path"), 2),
    (UniPC(order=1), 2),
    (UniPC(), 3),
    (UniPC(b="bh1"), 3),
    (UniPC(predicted="eps"), 3),
    (UniPC(order=3), 3),
    (LMS(order=1), 1),
    (LMS(order=2), 2),
    (LMS(order=3), 3),
    (LMS(), 4),
    (PLMS(), 2),
]
STOCHASTIC: list[Solver] = [
    DDPM(variance="fixed_small"),
    DDPM(variance="fixed_large"),
    DDPM(variance="learned"),
    DDIM(eta=0.5),
    DDIM(eta=1.0),
    EulerMaruyama(),
    ReverseDiffusion(),
    Euler(s_churn=10.0),
    Heun(s_churn=10.0),
    DPM2(s_churn=10.0),
    EulerAncestral(),
    EulerAncestral(eta=0.5),
    DPM2Ancestral(),
    DPMSolver2S(eta=1.0),
    DPMSolverSDE(),
    DPMSolver2MSDE(),
    DPMSolver2MSDE(eta=0.5, variant="heun"),
    DPMSolver3MSDE(),
]
MULTISTEP: list[tuple[Solver, int]] = [  # with the order of a step once the history is full
    (DPMSolver2M(lower_order_final=False), 2),
    (DPMSolver2M(lower_order_final=False, predicted="eps", variant="heun"), 2),
    (DPMSolver3M(lower_order_final=False), 2),
    (UniPC(order=1, lower_order_final=False), 1),
    (UniPC(lower_order_final=False), 2),
    (UniPC(order=3, lower_order_final=False), 3),
    (UniPC(order=3, predicted="eps", lower_order_final=False), 3),
    (LMS(order=2), 2),
    (LMS(order=3), 3),
    (LMS(), 4),
    (PLMS(), 2),
]
STEPS = [40, 80, 160]
each_deterministic = pytest.mark.parametrize(("solver", "order"), DETERMINISTIC, ids=str)


def grid(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, 41, dtype=torch.float64).reshape(1, 1, 1, -1)


def test_every_solver_is_proved_here() -> None:
    here = {type(solver) for solver in [solver for solver, _ in DETERMINISTIC] + STOCHASTIC}
    elsewhere = {RK45, PredictorCorrector}  # by its tolerance, and not linear on a Gaussian: their own files
    assert here >= set(SOLVERS.values()) - elsewhere
    assert all(order >= solver.order for solver, order in DETERMINISTIC)


def test_score_of_the_mixture_is_the_gradient_of_its_log_density() -> None:
    x = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    signal, std = 0.8, 0.6
    parts = []
    for weight, mean, spread in zip(TWO.weights, TWO.means, TWO.stds, strict=True):
        normal = torch.distributions.Normal(
            signal * torch.tensor(mean, dtype=x.dtype).reshape(1, 2, 1, 1), ((signal * spread) ** 2 + std**2) ** 0.5
        )
        parts.append(np.log(weight) + normal.log_prob(x).sum(1))
    torch.logsumexp(torch.stack(parts), dim=0).sum().backward()
    torch.testing.assert_close(TWO.score(x.detach(), signal, std), x.grad)


def test_exact_flow_agrees_with_a_very_fine_solution() -> None:
    path = even_path(1000)
    fine = integrate(ONE, Heun(), path, grid(-2.5, 2.5))
    assert (fine - ONE.flow(grid(-2.5, 2.5), path.start, path.end)).abs().max() < 2e-5


@each_deterministic
def test_deterministic_solver_converges_at_its_order(solver: Solver, order: int) -> None:
    x = grid(-2.5, 2.5)
    exact = ONE.flow(x, even_path(2).start, even_path(2).end)
    errors = [float((integrate(ONE, solver, even_path(n), x) - exact).abs().mean()) for n in STEPS]
    # steep starts of long multistep methods, which begin with order 1, still show at 160 steps
    assert slope(STEPS, errors) == pytest.approx(order, abs=0.1 if order < 3 else 0.4)
    assert errors[-1] < {1: 1e-2, 2: 6e-4, 3: 7e-5, 4: 2e-5}[order]


@pytest.mark.parametrize(("solver", "order"), MULTISTEP, ids=str)
def test_one_step_with_exact_history_has_the_order_of_its_values(solver: Solver, order: int) -> None:
    """The error of a single step is one order above: this is the order, free of the start."""
    steps, x, errors = [160, 320, 640], grid(-2.0, 2.0), []
    for n in steps:
        path = even_path(n)
        state, moves = None, path[n // 2 : n // 2 + order + 1]
        for move in moves:
            exact = ONE.flow(x, path.start, move.here)
            step = solver.step(ONE, exact, move, state, Constant(0.0))
            state = replace(step.state, x=exact) if isinstance(solver, UniPC) else step.state  # what it corrects
        errors.append(float((step.x - ONE.flow(x, path.start, moves.end)).abs().mean()))
    assert slope(steps, errors) == pytest.approx(order + 1, abs=0.3)


@each_deterministic
def test_inversion_then_sampling_returns_the_input_at_the_solvers_order(solver: Solver, order: int) -> None:
    y = grid(-1.0, 1.0)
    errors = []
    for n in STEPS:
        path = even_path(n)
        noise = integrate(ONE, solver, path.inverted(), y)
        errors.append(float((integrate(ONE, solver, path, noise) - y).abs().mean()))
    # second-order solvers gain one order on the way back: the leading error of going up is undone coming down
    assert slope(STEPS, errors) > order - 0.1
    assert errors[-1] < {1: 2e-2, 2: 1e-4, 3: 2e-4, 4: 1e-5}[order]


def test_inversion_of_an_image_reaches_the_noise_that_the_exact_flow_reaches() -> None:
    y, path = grid(-1.0, 1.0), even_path(200)
    noise = integrate(ONE, Heun(), path.inverted(), y)
    torch.testing.assert_close(noise, ONE.flow(y, path.end, path.start), atol=1e-3, rtol=0)


def test_errors_equal_the_reference_numbers_of_the_gaussian() -> None:
    """Computed beforehand by other code: N(0.3, 0.5**2), start x = 1.1, and the round trip of y = 0.8."""
    one = Mixture((1.0,), ((0.3,),), (0.5,))
    x, y = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (1.1, 0.8))
    steps = [20, 40, 80, 160]
    paths = [even_path(n) for n in steps]
    exact = one.flow(x, paths[0].start, paths[0].end)

    def errors(solver: Solver) -> list[float]:
        return [float((integrate(one, solver, path, x) - exact).abs()) for path in paths]

    trips = [float((integrate(one, DDIM(), p, integrate(one, DDIM(), p.inverted(), y)) - y).abs()) for p in paths]
    assert errors(DDIM()) == pytest.approx([0.0625, 0.0322, 0.0163, 0.0082], abs=6e-5)
    assert trips == pytest.approx([0.107, 0.057, 0.029, 0.015], abs=6e-4)
    assert errors(DPMSolver2M()) == pytest.approx([7.3e-3, 2.0e-3, 5.0e-4, 1.25e-4], rel=0.03)


def with_half_learned_variance(x: Tensor, level: Level) -> Prediction:
    return replace(TWO(x, level), log_variance_fraction=torch.zeros_like(x))


def sampled(solver: Solver, path: Path, denoise: Denoiser = with_half_learned_variance, n: int = 4000) -> np.ndarray:
    start = Noise(11, (1, 2, 1, n))().double()
    return integrate(denoise, solver, path, start, noise=Noise(12, like=start))[0, :, 0].T.numpy()


@pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)
def test_stochastic_solver_reaches_the_exact_distribution(solver: Solver) -> None:
    path = Path.respaced(SCHEDULE, 500) if solver.order == 1 else Path.sigmas(SCHEDULE, 100, "log_snr")
    ours = sampled(solver, path)
    assert two_sample_p(ours, TWO.draw(20_000, seed=7)) > 0.01


class Constant(Noise):
    """Always the same number."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self) -> Tensor:
        return torch.full((1, 1, 1, 1), self.value, dtype=torch.float64)


class OneHot(Noise):
    """Draw ``i`` is 1 in image ``i + 2`` of a batch, and 0 in all others."""

    def __init__(self, count: int) -> None:
        self.count, self.drawn = count, 0

    def __call__(self) -> Tensor:
        draw = torch.zeros(self.count, 1, 1, 1, dtype=torch.float64)
        draw[self.drawn + 2] = 1.0
        self.drawn += 1
        return draw


def moments(solver: Solver, path: Path, gaussian: Mixture) -> tuple[float, float]:
    """Mean and variance at the end of a path from the exact start, without sampling.

    On a Gaussian a run is linear in its start and in its draws: one image of a batch has neither, one has a start of 1
    and each of the others one draw of 1.
    """
    mean, variance = marginal(gaussian, path.start)

    def denoise(x: Tensor, level: Level) -> Prediction:
        return replace(gaussian(x, level), log_variance_fraction=torch.zeros_like(x))

    noise = OneHot(2 * len(path) + 2)
    start = torch.zeros(noise.count, 1, 1, 1, dtype=torch.float64)
    start[1] = 1.0
    end = integrate(denoise, solver, path, start, noise=noise).flatten()
    offset, gain, *spreads = [float(end[0]), *(float(value - end[0]) for value in end[1 : noise.drawn + 2])]
    return gain * mean + offset, gain**2 * variance + sum(spread**2 for spread in spreads)


def marginal(gaussian: Mixture, level: Level) -> tuple[float, float]:
    ((mean,),), (std,) = gaussian.means, gaussian.stds
    return level.alpha_bar**0.5 * mean, level.alpha_bar * std**2 + 1 - level.alpha_bar


@pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)
def test_moments_of_a_stochastic_solver_converge_at_its_order(solver: Solver) -> None:
    gaussian = Mixture((1.0,), ((0.5,),), (0.6,))
    steps = [50, 100, 200]
    means, variances = [], []
    for n in steps:
        path = even_path(n)
        mean, variance = moments(solver, path, gaussian)
        exact_mean, exact_variance = marginal(gaussian, path.end)
        means.append(abs(mean - exact_mean))
        variances.append(abs(variance - exact_variance))
    assert slope(steps, variances) == pytest.approx(solver.order, abs=0.15)
    assert variances[-1] < 0.05 * exact_variance
    assert means[-1] < 1e-12 or slope(steps, means) > solver.order - 0.15


def test_small_variance_spreads_too_little_and_large_variance_too_much() -> None:
    gaussian, path = Mixture((1.0,), ((0.5,),), (0.6,)), even_path(50)
    _, exact = marginal(gaussian, path.end)
    kinds: list[VarianceKind] = ["fixed_small", "learned", "fixed_large"]
    small, learned, large = (moments(DDPM(variance=kind), path, gaussian)[1] for kind in kinds)
    assert small < learned < exact < large


@pytest.mark.parametrize(
    "path",
    [Path.sigmas(SCHEDULE, 80, "karras"), Path.spaced(SCHEDULE, 200, "trailing"), Path.respaced(SCHEDULE, "20,40,80")],
    ids=["karras", "trailing", "sections"],
)
def test_second_order_solver_reaches_the_exact_distribution_in_few_steps(path: Path) -> None:
    assert two_sample_p(sampled(Heun(), path), TWO.draw(20_000, seed=7)) > 0.01


@pytest.mark.parametrize(
    "spoil",
    [
        lambda prediction: replace(prediction, x0=prediction.x0 * 0.97),
        lambda prediction: replace(prediction, x0=prediction.x0 + 0.03),
        lambda prediction: replace(prediction, log_variance_fraction=torch.full_like(prediction.x0, 3.0)),
    ],
    ids=["too small", "off centre", "too much noise"],
)
def test_two_sample_test_notices_a_slightly_wrong_sampler(spoil: Callable[[Prediction], Prediction]) -> None:
    ours = sampled(DDPM(), Path.respaced(SCHEDULE, 250), lambda x, level: spoil(with_half_learned_variance(x, level)))
    assert two_sample_p(ours, TWO.draw(20_000, seed=7)) < 1e-3


def test_two_sample_test_notices_too_few_steps() -> None:
    assert two_sample_p(sampled(DDPM(), Path.respaced(SCHEDULE, 10)), TWO.draw(20_000, seed=7)) < 1e-9


def test_time_travel_keeps_the_distribution() -> None:
    path = Path.respaced(SCHEDULE, 200).with_jumps(10, 2)
    assert two_sample_p(sampled(DDPM(), path), TWO.draw(20_000, seed=7)) > 0.01

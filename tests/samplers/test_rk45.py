"""The adaptive probability flow: scipy's numbers, exact flows, and images that keep their own steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.samplers import (
    CLEAN,
    RK45,
    SDE,
    VESDE,
    VPSDE,
    Heun,
    Level,
    Move,
    NetworkDenoiser,
    Noise,
    NoiseSchedule,
    Path,
    Prediction,
    ScoreDenoiser,
    Step,
    SubVPSDE,
    Tolerance,
    integrate,
    predict_rows,
    sde_level,
    sde_path,
    sde_scale,
    trajectory,
)
from steerdiff.samplers.runge_kutta import solve

from ..helpers import learned_fn
from .mixture import ONE, SCHEDULE, TWO, slope, two_sample_p

SDES: list[SDE] = [VPSDE(), SubVPSDE(), VESDE()]
each_sde = pytest.mark.parametrize("sde", SDES, ids=repr)
DOWN = Path.from_levels([SCHEDULE.level(999), SCHEDULE.level(0)], T=1000, schedule=SCHEDULE)
UP = DOWN.inverted()
LINE = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64).reshape(1, 1, 1, -1)


def only(denoise: Any, solver: RK45, path: Path, x: Tensor) -> Step:
    """The step of a path of one move."""
    (record,) = trajectory(denoise, solver, path, x)
    return record.step


def exact(sde: SDE) -> ScoreDenoiser:
    return ScoreDenoiser(score=lambda x, t: TWO.score(x, sde.signal(t), sde.std(t)), sde=sde)


# The method itself


def spiral(y: Tensor, times: Sequence[float]) -> Tensor:
    t = torch.tensor(times, dtype=y.dtype)[:, None]
    return torch.stack([-0.3 * y[:, 0] - y[:, 1] * t[:, 0], y[:, 0] * t[:, 0] - 0.3 * y[:, 1]], dim=1)


def spiralled(y: Tensor, start: float, stop: float) -> Tensor:
    angle, shrunk = torch.tensor((stop**2 - start**2) / 2), math.exp(-0.3 * (stop - start))
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=y.dtype)
    return shrunk * y @ turn.T


STARTS = torch.tensor([[1.0, 0.0], [-20.0, 4.0], [0.01, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize("stop", [4.0, -3.0])
def test_rows_take_exactly_the_steps_of_scipy(stop: float) -> None:
    """Same controller, same tableau: the same evaluations, and results that differ by rounding."""
    found, evaluations = solve(spiral, STARTS, 0.5, stop, Tolerance(rtol=1e-6, atol=1e-8))
    for i, start in enumerate(STARTS):
        theirs = solve_ivp(
            lambda t, y: spiral(torch.from_numpy(y)[None], [t])[0].numpy(), (0.5, stop), start, rtol=1e-6, atol=1e-8
        )
        assert evaluations[i] == theirs.nfev
        np.testing.assert_allclose(found[i], theirs.y[:, -1], rtol=1e-10, atol=1e-12)
    assert len(set(evaluations)) > 1


def test_rows_are_bit_for_bit_the_rows_alone() -> None:
    found, evaluations = solve(spiral, STARTS, 0.5, 4.0, Tolerance())
    for i in range(3):
        alone, count = solve(spiral, STARTS[i : i + 1], 0.5, 4.0, Tolerance())
        assert torch.equal(alone, found[i : i + 1]) and count == (evaluations[i],)


def test_error_falls_with_the_tolerance_and_cost_as_its_fifth_root() -> None:
    tolerances = [1e-4, 1e-6, 1e-8, 1e-10]
    errors, costs = [], []
    for value in tolerances:
        found, evaluations = solve(spiral, STARTS[:1], 0.0, 10.0, Tolerance(rtol=value, atol=value))
        errors.append(float((found - spiralled(STARTS[:1], 0.0, 10.0)).abs().max()))
        costs.append(float(evaluations[0]))
    assert errors[-1] < 1e-9
    falls = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert falls == pytest.approx(1, abs=0.15)
    assert slope(costs, errors) == pytest.approx(5, abs=0.6)  # type: ignore[arg-type]


def test_row_that_has_arrived_stays_while_others_go_on() -> None:
    asked: list[list[float]] = []

    def watched(y: Tensor, times: Sequence[float]) -> Tensor:
        asked.append(list(times))
        return spiral(y, times)

    _, evaluations = solve(watched, STARTS, 0.5, 4.0, Tolerance())
    fewest, most = evaluations.index(min(evaluations)), max(evaluations)
    assert len(asked) == most
    assert all(times[fewest] == 4.0 for times in asked[evaluations[fewest] :])
    assert all(0.5 <= time <= 4.0 for times in asked for time in times)


# The probability flow


@each_sde
def test_flow_of_a_diffusion_is_scipys_with_its_evaluations(sde: SDE) -> None:
    start, t_end = Noise(1, (1, 2, 1, 50))().double(), 1e-5
    path = sde_path(sde, 2, t_end)[:1]
    step = only(exact(sde), RK45(between=sde), path, start)

    def drift(t: float, y: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(y).reshape(start.shape)
        flow = sde.drift(x, t) - sde.diffusion(t) ** 2 / 2 * TWO.score(x, sde.signal(t), sde.std(t))
        return flow.flatten().numpy()

    y0 = (start * sde_scale(sde, 1)).flatten().numpy()
    theirs = solve_ivp(drift, (1.0, t_end), y0, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose((step.x * sde_scale(sde, t_end)).flatten(), theirs.y[:, -1], rtol=0, atol=1e-9)
    assert step.state == (theirs.nfev,)


@each_sde
def test_flow_pushes_the_prior_to_the_data(sde: SDE) -> None:
    start = Noise(41, (1, 2, 1, 4000))().double() * sde.prior_std / sde_scale(sde, 1)
    t_end = 1e-5 if isinstance(sde, VESDE) else 1e-3
    x = integrate(exact(sde), RK45(between=sde), sde_path(sde, 2, t_end), start)
    assert two_sample_p(x[0, :, 0].T.numpy(), TWO.draw(20_000, seed=9)) > 0.01


@each_sde
@pytest.mark.parametrize("rtol", [1e-5, 1e-7])
def test_flow_there_and_back_returns_the_image_to_twenty_tolerances(sde: SDE, rtol: float) -> None:
    y = torch.from_numpy(TWO.draw(40, seed=3).T.reshape(1, 2, 1, 40).copy()) / sde_scale(sde, 1e-3)
    up = Path.from_levels([sde_level(sde, 1e-3), sde_level(sde, 1.0)], T=1000, kind="invert")
    down = Path.from_levels([sde_level(sde, 1.0), sde_level(sde, 1e-3)], T=1000)
    solver = RK45(between=sde, rtol=rtol, atol=rtol)
    back = integrate(exact(sde), solver, down, integrate(exact(sde), solver, up, y))
    error = (back - y).square().mean().sqrt()  # the norm that the tolerance is for
    assert float(error) < 20 * rtol  # measured 4 to 16: a hundred evaluations' errors, up and down


@pytest.mark.parametrize("rtol", [1e-4, 1e-5, 1e-6, 1e-8])
def test_flow_between_levels_is_exact_to_its_tolerance_and_costs_little(rtol: float) -> None:
    step = only(ONE, RK45(rtol=rtol, atol=rtol), DOWN, LINE)
    error = (step.x - ONE.flow(LINE, DOWN.start, DOWN.end)).square().mean().sqrt()
    assert float(error) < 10 * rtol
    assert step.state[0] < 60 * (1e-4 / rtol) ** 0.25
    back = integrate(ONE, RK45(rtol=rtol, atol=rtol), UP, step.x)
    assert float((back - LINE).square().mean().sqrt()) < 20 * rtol


def test_a_path_in_parts_arrives_where_one_move_does() -> None:
    whole = integrate(ONE, RK45(rtol=1e-8, atol=1e-8), DOWN, LINE)
    parts = Path.from_levels([SCHEDULE.level(t) for t in (999, 640.5, 200, 0)], T=1000, schedule=SCHEDULE)
    counts = []
    x = integrate(
        ONE, RK45(rtol=1e-8, atol=1e-8), parts, LINE, callback=lambda record: counts.append(record.step.state[0])
    )
    torch.testing.assert_close(x, whole, atol=1e-7, rtol=0)
    assert counts == sorted(counts) and counts[0] > 8  # evaluations of the run so far


def test_last_move_returns_the_predicted_image_and_a_move_that_stays_changes_nothing() -> None:
    last = Move(here=SCHEDULE.level(3), there=CLEAN)
    step = RK45().step(ONE, LINE, last, (5,), Noise(0, like=LINE))
    assert torch.equal(step.x, ONE(LINE, last.here).x0) and step.state == (6,)
    still = RK45().step(ONE, LINE, Move(here=last.here, there=last.here), None, Noise(0, like=LINE))
    assert torch.equal(still.x, LINE)


# Images of a batch

NETWORK = NetworkDenoiser(network=learned_fn, learns_variance=True)
IMAGES = Noise(5, (3, 3, 4, 4))() * torch.tensor([0.3, 1.0, 3.0]).reshape(3, 1, 1, 1)


class Slow:
    """A denoiser without ``rows``."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        self.calls += 1
        return NETWORK(x, level)


def test_image_of_a_batch_takes_the_steps_that_it_takes_alone() -> None:
    for denoise in (NETWORK, Slow()):
        together = only(denoise, RK45(), DOWN, IMAGES)
        for i in range(3):
            alone = only(denoise, RK45(), DOWN, IMAGES[i : i + 1])
            assert torch.equal(alone.x, together.x[i : i + 1])
            assert alone.state == together.state[i : i + 1]
        assert len(set(together.state)) > 1


def test_denoiser_with_rows_is_called_once_for_all_images() -> None:
    calls = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x))
        return learned_fn(x, t)

    denoise = dataclasses.replace(NETWORK, network=network)
    step = only(denoise, RK45(), DOWN, IMAGES)
    assert calls == [3] * max(step.state)
    slow = Slow()
    other = only(slow, RK45(), DOWN, IMAGES)
    assert slow.calls > max(other.state)
    torch.testing.assert_close(other.x, step.x, atol=1e-5, rtol=1e-5)
    assert other.state == step.state


def test_rows_of_any_denoiser_are_its_answers_at_each_level() -> None:
    levels = [SCHEDULE.level(t) for t in (0.5, 700, 700)]

    def scored(x: Tensor, level: Level) -> Prediction:
        return dataclasses.replace(NETWORK(x, level), score=x * level.t)

    for denoise in (NETWORK, dataclasses.replace(NETWORK, clip="clip"), Slow(), scored):
        rows = predict_rows(denoise, IMAGES, levels)
        for i, level in enumerate(levels):
            alone = denoise(IMAGES, level)
            for field in ("x0", "eps", "log_variance_fraction", "score"):
                expected, found = getattr(alone, field), getattr(rows, field)
                assert (found is None) == (expected is None)
                if found is not None:
                    torch.testing.assert_close(found[i], expected[i])
    same = predict_rows(scored, IMAGES, [levels[1]] * 3)
    assert torch.equal(same.score, IMAGES * 700)


def test_guidance_by_a_score_bends_the_flow() -> None:
    def guided(x: Tensor, level: Level) -> Prediction:
        return dataclasses.replace(ONE(x, level), score=0.3 * torch.cos(x))

    fine = Path.from_levels([SCHEDULE.level(SCHEDULE.t_of_log_snr(v)) for v in np.linspace(-10, 9, 801)], T=1000)
    ends = Path.from_levels([fine.start, fine.end], T=1000, schedule=SCHEDULE)
    expected = integrate(guided, Heun(), fine, LINE)
    torch.testing.assert_close(integrate(guided, RK45(), ends, LINE), expected, atol=2e-4, rtol=0)
    assert not torch.allclose(expected, integrate(ONE, Heun(), fine, LINE), atol=0.1)


def test_gradients_flow_through_the_steps() -> None:
    x = LINE.clone().requires_grad_()
    step = only(ONE, RK45(rtol=1e-8, atol=1e-8), DOWN, x)
    step.x.sum().backward()
    h = 1e-4
    expected = (ONE.flow(LINE + h, DOWN.start, DOWN.end) - ONE.flow(LINE - h, DOWN.start, DOWN.end)) / (2 * h)
    torch.testing.assert_close(x.grad, expected, rtol=1e-3, atol=1e-4)


def test_every_field_changes_something() -> None:
    other = NoiseSchedule.cosine()
    plain = integrate(NETWORK, RK45(), DOWN, IMAGES)
    for changes in ({"rtol": 1e-3}, {"atol": 1e-3}, {"between": other}):
        path = DOWN if "between" not in changes else Path.from_levels([DOWN.start, other.level(900), DOWN.end], T=1000)
        assert not torch.equal(integrate(NETWORK, RK45(**changes), path, IMAGES), plain), changes
    assert {field.name for field in dataclasses.fields(RK45)} == {"rtol", "atol", "max_evaluations", "between"}
    with pytest.raises(UserError, match="raise max_evaluations, which is 20"):
        integrate(NETWORK, RK45(max_evaluations=20), DOWN, IMAGES)


def jumps(x: Tensor, level: Level) -> Prediction:
    nan = float("nan") if level.t < 500 else 1.0
    return Prediction.from_output(0.5 * x * nan, x, level)


TO_NOISE = Move(here=Level(1000.0, 0.0), there=SCHEDULE.level(900))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RK45(rtol=0.0), "rtol is 0.0 and atol 1e-05; both must be positive"),
        (lambda: RK45(atol=-1.0), "rtol is 1e-05 and atol -1.0"),
        (lambda: RK45(max_evaluations=7), "max_evaluations is 7; one step with its start takes 8 already"),
        (lambda: only(ONE, RK45(between="linear"), DOWN, LINE), "between is 'linear'; give a NoiseSchedule"),
        (
            lambda: only(ONE, RK45(), Path.from_levels([SCHEDULE.level(9), SCHEDULE.level(0)], T=1000), LINE),
            "this path does not know the times between its levels; give between=schedule",
        ),
        (lambda: only(ONE, RK45(between=VESDE()), DOWN, LINE), "is none of VESDE"),
        (lambda: only(jumps, RK45(), DOWN, LINE), "the steps of image 0 shrank to nothing at"),
        (
            lambda: only(ONE, RK45(max_evaluations=30), DOWN, LINE),
            "image 0 took 26 evaluations to get to .* raise max_evaluations, which is 30, or loosen rtol and atol",
        ),
        (lambda: RK45().step(ONE, LINE, TO_NOISE, None, Noise(0, like=LINE)), "RK45 works in sigma"),
        (
            lambda: RK45().step(
                ONE, LINE, Move(here=CLEAN, there=SCHEDULE.level(3), kind="invert"), None, Noise(0, like=LINE)
            ),
            "the flow cannot start at the clean image",
        ),
    ],
)
def test_impossible_flows_get_a_clear_error(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()

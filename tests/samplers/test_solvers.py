"""Single steps of the solvers: limits that are exact, identities between solvers, and clear errors."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.samplers import (
    CLEAN,
    DDIM,
    DDPM,
    SOLVERS,
    DPMSolver2M,
    Euler,
    EulerMaruyama,
    Heun,
    Level,
    Move,
    Noise,
    NoiseSchedule,
    Path,
    Prediction,
    Solver,
    Step,
    integrate,
    model_variance,
    renoise,
)

from ..helpers import eps_fn

SCHEDULE = NoiseSchedule.linear()
NOISE = Noise(0, (2, 3, 4, 4), dtype=torch.float64)
X = Noise(1, (2, 3, 4, 4), dtype=torch.float64)()
IMAGE = Noise(2, (2, 3, 4, 4), dtype=torch.float64)().clamp(-1, 1)
DETERMINISTIC: list[Solver] = [DDIM(), Euler(), Heun(), DPMSolver2M()]


def smooth(x: Tensor, level: Level) -> Prediction:
    return Prediction.from_output(eps_fn(x, level.t), x, level)


def knows_the_image(x: Tensor, level: Level) -> Prediction:
    """The exact denoiser of data that is one image."""
    return Prediction.from_output(IMAGE, x, level, "x0")


def between(high: float, low: float, **arguments: Any) -> Move:
    return Move(here=SCHEDULE.level(high), there=SCHEDULE.level(low), **arguments)


def stepped(solver: Solver, move: Move, denoise: Any = smooth, x: Tensor = X) -> Tensor:
    return solver.step(denoise, x, move, None, Noise(7, like=x)).x


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_last_move_returns_the_predicted_image(name: str) -> None:
    move = Move(here=SCHEDULE.level(30), there=CLEAN, index=3)
    torch.testing.assert_close(stepped(SOLVERS[name](), move), smooth(X, move.here).x0)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_data_of_one_image_is_reached_exactly(name: str) -> None:
    for path in (Path.respaced(SCHEDULE, 1), Path.respaced(SCHEDULE, 5), Path.sigmas(SCHEDULE, 3)):
        x = integrate(knows_the_image, SOLVERS[name](), path, X, noise=Noise(3, like=X))
        torch.testing.assert_close(x, IMAGE)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(times=st.lists(st.floats(0, 999), min_size=2, max_size=2, unique=True), upwards=st.booleans())
def test_deterministic_solvers_solve_one_image_exactly_in_one_step_up_or_down(
    times: list[float], upwards: bool
) -> None:
    here, there = (SCHEDULE.level(t) for t in sorted(times, reverse=not upwards))
    move = Move(here=here, there=there, kind="invert" if upwards else "denoise")
    eps = NOISE.fork("exact")()
    x, expected = SCHEDULE.q_sample(IMAGE, here, eps), SCHEDULE.q_sample(IMAGE, there, eps)
    for solver in DETERMINISTIC:
        torch.testing.assert_close(stepped(solver, move, knows_the_image, x), expected, atol=1e-9, rtol=1e-9)


def test_first_order_steps_are_all_ddim() -> None:
    for move in (between(800, 500), between(10, 3.5), Move(here=SCHEDULE.level(4), there=CLEAN)):
        expected = stepped(DDIM(), move)
        torch.testing.assert_close(stepped(Euler(), move), expected)
        torch.testing.assert_close(stepped(DPMSolver2M(), move), expected)


def test_ddim_with_eta_one_is_ddpm_with_the_posterior_variance() -> None:
    for move in Path.respaced(SCHEDULE, 20):
        torch.testing.assert_close(stepped(DDIM(eta=1.0), move), stepped(DDPM(variance="fixed_small"), move))


def test_ddim_between_equal_levels_changes_nothing() -> None:
    move = between(20, 20)
    for solver in (DDIM(), DDIM(eta=0.5), Euler(), Heun(), DDPM(), EulerMaruyama(), DPMSolver2M()):
        torch.testing.assert_close(stepped(solver, move), X)


def test_ddim_takes_x0_and_eps_as_they_are_where_they_disagree() -> None:
    def split(x: Tensor, level: Level) -> Prediction:
        return Prediction(x0=IMAGE, eps=torch.ones_like(x))

    move = between(500, 400)
    b = move.there.alpha_bar
    torch.testing.assert_close(stepped(DDIM(), move, split), math.sqrt(b) * IMAGE + math.sqrt(1 - b))


def test_ddim_steps_to_pure_noise_and_from_it() -> None:
    up = Move(here=SCHEDULE.level(999), there=Level(1000.0, 0.0), kind="invert")
    torch.testing.assert_close(stepped(DDIM(), up), smooth(X, up.here).eps)

    def by_v(x: Tensor, level: Level) -> Prediction:
        return Prediction.from_output(eps_fn(x, level.t), x, level, "v")

    down = Move(here=Level(1000.0, 0.0), there=SCHEDULE.level(900))
    expected = math.sqrt(down.there.alpha_bar) * -eps_fn(X, 1000.0) + math.sqrt(1 - down.there.alpha_bar) * X
    for solver in (DDIM(), DPMSolver2M(), DDIM(eta=0.0)):
        torch.testing.assert_close(stepped(solver, down, by_v), expected)
    path = Path.from_levels([down.here, *(SCHEDULE.level(t) for t in (900, 600, 300)), CLEAN], T=1000)
    for solver in (DDIM(), DPMSolver2M(), DDPM()):
        assert integrate(by_v, solver, path, X, noise=Noise(0, like=X)).isfinite().all()


def test_ddpm_variances_are_the_documented_ones() -> None:
    path = Path.respaced(SCHEDULE, 20)
    v = torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(1, 1, 1, 5)
    learned = Prediction(v, v, log_variance_fraction=v)
    for move in path:
        small, large = move.posterior_log_variance_clipped, math.log(move.beta)
        _, log_variance = model_variance(learned, move)
        slope, middle = (large - small) / 2, (large + small) / 2
        torch.testing.assert_close(log_variance, middle + slope * v)  # beyond [-1, 1] too
        assert model_variance(learned, move, "fixed_small") == (move.posterior_variance, small)
        expected = small if move.there.clean else large
        assert model_variance(learned, move, "fixed_large")[1] == expected
    assert model_variance(replace(learned, log_variance_fraction=None), path[3])[0] == path[3].posterior_variance


def test_score_moves_the_mean_of_ddpm_by_the_variance_and_eps_of_the_others() -> None:
    score = NOISE.fork("score")()

    def guided(x: Tensor, level: Level) -> Prediction:
        return replace(smooth(x, level), score=score)

    def folded(x: Tensor, level: Level) -> Prediction:
        return guided(x, level).with_score(level.alpha_bar)

    move = between(500, 450)
    moved = stepped(DDPM(), move, guided) - stepped(DDPM(), move)
    torch.testing.assert_close(moved, move.posterior_variance * score)
    for solver in (DDIM(), DDIM(eta=0.5), Euler(), Heun(), DPMSolver2M(), EulerMaruyama()):
        torch.testing.assert_close(stepped(solver, move, guided), stepped(solver, move, folded))
        assert not torch.allclose(stepped(solver, move, guided), stepped(solver, move))


def count_calls(solver: Solver, path: Path) -> int:
    calls = []

    def denoise(x: Tensor, level: Level) -> Prediction:
        calls.append(level.t)
        return smooth(x, level)

    integrate(denoise, solver, path, X, noise=Noise(0, like=X))
    return len(calls)


def test_solvers_ask_the_network_as_often_as_documented() -> None:
    path = Path.respaced(SCHEDULE, 10)
    assert count_calls(Heun(), path) == 19  # the last step, to the clean image, is Euler's
    for name in set(SOLVERS) - {"heun"}:
        assert count_calls(SOLVERS[name](), path) == 10


def state_after(solver: DPMSolver2M, move: Move) -> Step:
    return solver.step(smooth, X, move, None, NOISE)


def test_2m_is_second_order_in_the_middle_and_first_order_at_a_short_end() -> None:
    solver, first = DPMSolver2M(), between(800, 600)
    history = state_after(solver, first)

    def second(move: Move, chosen: DPMSolver2M = solver) -> bool:
        with_history = chosen.step(smooth, history.x, move, history.state, NOISE).x
        without = chosen.step(smooth, history.x, move, None, NOISE).x
        return not torch.allclose(with_history, without, rtol=1e-12)

    assert second(between(600, 400, index=1, following="denoise"))
    assert not second(between(600, 400, index=8))
    assert second(between(600, 400, index=9))
    assert second(between(600, 400, index=1), DPMSolver2M(lower_order_final=False))
    assert not second(Move(here=SCHEDULE.level(600), there=CLEAN, index=50))
    assert not second(between(600, 700, index=1, following="invert"))  # the direction turned
    assert not second(between(800, 600, index=1, following="denoise"))  # no change of level since the last value


def test_renoise_keeps_the_marginal() -> None:
    up = Move(here=SCHEDULE.level(300), there=SCHEDULE.level(450), kind="renoise")
    a, b = up.here.alpha_bar, up.there.alpha_bar
    assert (1 - up.beta) * a == pytest.approx(b)  # the image's part
    assert (1 - up.beta) * (1 - a) + up.beta == pytest.approx(1 - b)  # the noise's variance
    z = Noise(9, like=X)()
    torch.testing.assert_close(renoise(X, up, Noise(9, like=X)), math.sqrt(b / a) * X + math.sqrt(1 - b / a) * z)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_solvers_are_frozen_and_documented(name: str) -> None:
    solver = SOLVERS[name]()
    assert solver == SOLVERS[name]()
    assert solver.order in (1, 2)
    assert SOLVERS[name].__doc__
    fields = dataclasses.fields(solver)  # type: ignore[arg-type]
    for field in fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(solver, field.name, None)


UP = between(300, 500, kind="invert")
TO_NOISE = Move(here=Level(1000.0, 0.0), there=SCHEDULE.level(900))
FROM_CLEAN = Move(here=CLEAN, there=CLEAN)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stepped(DDPM(), UP), r"DDPM cannot move towards noise \(t = 300 to 500\); invert with DDIM"),
        (lambda: stepped(DDIM(eta=0.1), UP), r"DDIM with eta > 0 cannot move towards noise"),
        (lambda: stepped(EulerMaruyama(), UP), "Euler-Maruyama cannot move towards noise"),
        (lambda: stepped(Euler(), TO_NOISE), "Euler works in sigma, which is infinite at alpha_bar = 0"),
        (lambda: stepped(Heun(), TO_NOISE), "Heun works in sigma"),
        (lambda: stepped(EulerMaruyama(), TO_NOISE), "Euler-Maruyama works in sigma"),
        (lambda: stepped(DDIM(), FROM_CLEAN), "the denoiser was asked at the clean level"),
        (lambda: stepped(EulerMaruyama(), FROM_CLEAN), "the denoiser was asked at the clean level"),
        (lambda: stepped(DPMSolver2M(), FROM_CLEAN), "the denoiser was asked at the clean level"),
        (lambda: DDIM(eta=1.5), r"eta is 1.5; it must lie in \[0, 1\]"),
        (lambda: DDIM(eta=-0.1), "eta is -0.1"),
        (lambda: DDPM(variance="big"), "variance is 'big'; known are auto, learned, fixed_small, fixed_large"),
        (lambda: stepped(DDPM(variance="learned"), between(500, 400)), "the network predicts none; use 'auto'"),
        (
            lambda: renoise(X, between(500, 400), NOISE),
            "a renoise move from t = 500 to t = 400 would go towards the image",
        ),
    ],
)
def test_impossible_steps_get_a_clear_error(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()

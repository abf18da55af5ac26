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
    DPM2,
    LMS,
    PLMS,
    SOLVERS,
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
    Move,
    Noise,
    NoiseSchedule,
    Path,
    Prediction,
    Solver,
    Step,
    UniPC,
    integrate,
    model_variance,
    renoise,
    trajectory,
)

from ..helpers import eps_fn

SCHEDULE = NoiseSchedule.linear()
NOISE = Noise(0, (2, 3, 4, 4), dtype=torch.float64)
X = Noise(1, (2, 3, 4, 4), dtype=torch.float64)()
IMAGE = Noise(2, (2, 3, 4, 4), dtype=torch.float64)().clamp(-1, 1)
DETERMINISTIC: list[Solver] = [
    DDIM(),
    Euler(),
    Heun(),
    DPM2(),
    DPMSolver2M(),
    DPMSolver2M(predicted="eps"),
    DPMSolver3M(),
    DPMSolver2S(),
    DPMSolver2S(inner="path"),
    UniPC(),
    UniPC(predicted="eps"),
    LMS(),
    PLMS(),
]
STOCHASTIC: list[Solver] = [  # whose noise is a choice
    DDIM(eta=0.1),
    EulerAncestral(),
    DPM2Ancestral(),
    DPMSolver2S(eta=0.5),
    DPMSolverSDE(),
    DPMSolver2MSDE(),
    DPMSolver3MSDE(),
    Euler(s_churn=1.0),
    Heun(s_churn=1.0),
    DPM2(s_churn=1.0),
]
WITHOUT_NOISE: list[tuple[Solver, Solver]] = [  # and the same by another name
    (EulerAncestral(eta=0.0), Euler()),
    (DPM2Ancestral(eta=0.0), DPM2()),
    (DPMSolverSDE(eta=0.0), DPMSolver2S()),
    (DPMSolver2MSDE(eta=0.0), DPMSolver2M(lower_order_final=False)),
    (DPMSolver2MSDE(eta=0.0, variant="heun"), DPMSolver2M(lower_order_final=False, variant="heun")),
    (LMS(order=1), Euler()),
]
IN_SIGMA: list[Solver] = [Euler(), Heun(), DPM2(), EulerAncestral(), DPM2Ancestral(), DPMSolverSDE(), LMS(), PLMS()]
FROM_NOISE: list[Solver] = [
    DDIM(),
    DPMSolver2M(),
    DPMSolver3M(),
    DPMSolver2S(),
    DPMSolver2S(inner="path"),
    UniPC(),
]


def smooth(x: Tensor, level: Level) -> Prediction:
    return Prediction.from_output(eps_fn(x, level.t), x, level)


def knows_the_image(x: Tensor, level: Level) -> Prediction:
    """The exact denoiser of data that is one image."""
    return Prediction.from_output(IMAGE, x, level, "x0")


def between(high: float, low: float, **arguments: Any) -> Move:
    return Move(here=SCHEDULE.level(high), there=SCHEDULE.level(low), **arguments)


def stepped(solver: Solver, move: Move, denoise: Any = smooth, x: Tensor = X) -> Tensor:
    return solver.step(denoise, x, move, None, Noise(7, like=x)).x


@pytest.mark.parametrize("name", sorted(set(SOLVERS) - {"predictor-corrector"}))  # which corrects before it predicts
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
    first = [
        Euler(),
        DPMSolver2M(),
        DPMSolver2M(predicted="eps"),
        DPMSolver3M(),
        UniPC(),
        UniPC(predicted="eps"),
        LMS(),
    ]
    for move in (between(800, 500), between(10, 3.5), Move(here=SCHEDULE.level(4), there=CLEAN)):
        for solver in [*first, DPMSolver2S(inner="path")]:
            torch.testing.assert_close(stepped(solver, move), stepped(DDIM(), move))
    for solver in DETERMINISTIC:  # a step from the last level to the clean image is nobody's second order
        torch.testing.assert_close(stepped(solver, move), stepped(DDIM(), move))


@pytest.mark.parametrize(("solver", "same"), WITHOUT_NOISE, ids=repr)
def test_solver_without_its_noise_is_the_deterministic_one_and_draws_nothing(solver: Solver, same: Solver) -> None:
    for path in (Path.sigmas(SCHEDULE, 7), Path.spaced(SCHEDULE, 5, end=SCHEDULE.level(0))):
        torch.testing.assert_close(integrate(smooth, solver, path, X), integrate(smooth, same, path, X))


@pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)
def test_solver_with_noise_draws_none_for_the_clean_image_unless_it_churns(solver: Solver) -> None:
    class Counting(Noise):
        count = 0

        def __call__(self) -> Tensor:
            self.count += 1
            return super().__call__()

    noise = Counting(3, like=X)
    integrate(smooth, solver, Path.sigmas(SCHEDULE, 6), X, noise=noise)
    draws = 2 if isinstance(solver, DPMSolverSDE) else 1
    assert noise.count == (6 if getattr(solver, "s_churn", 0) else 5 * draws)


def test_churn_acts_only_between_its_sigmas_and_never_more_than_doubles_the_variance() -> None:
    move = between(500, 400)
    sigma = move.here.sigma
    plain = stepped(Euler(), move)
    for quiet in (Euler(s_churn=1.0, s_tmin=sigma * 1.01), Euler(s_churn=1.0, s_tmax=sigma * 0.99), Euler(s_noise=2.0)):
        assert torch.equal(stepped(quiet, move), plain)
    limit = stepped(Euler(s_churn=math.sqrt(2) - 1), move)
    assert torch.equal(stepped(Euler(s_churn=50.0), move), limit)
    assert not torch.allclose(stepped(Euler(s_churn=0.2), move), limit)
    assert not torch.allclose(stepped(Euler(s_churn=1.0, s_noise=1.1), move), limit)
    shared = replace(move, total=10)  # the run's churn is shared out over its moves
    torch.testing.assert_close(stepped(Euler(s_churn=2.0), shared), stepped(Euler(s_churn=0.2), move))


def test_churned_level_is_known_by_its_time_and_stays_within_the_trained_ones() -> None:
    asked = []

    def denoise(x: Tensor, level: Level) -> Prediction:
        asked.append(level)
        return smooth(x, level)

    path = Path.respaced(SCHEDULE, 2)
    integrate(denoise, Euler(s_churn=0.2), path, X, noise=NOISE)
    assert [level.t for level in asked] == [999, pytest.approx(SCHEDULE.t_of_sigma(path[1].here.sigma * 1.1))]
    assert asked[0].sigma == pytest.approx(1.1 * path.start.sigma)


def test_ddim_with_eta_one_is_ddpm_with_the_posterior_variance() -> None:
    for move in Path.respaced(SCHEDULE, 20):
        torch.testing.assert_close(stepped(DDIM(eta=1.0), move), stepped(DDPM(variance="fixed_small"), move))


def test_ddim_between_equal_levels_changes_nothing() -> None:
    move = between(20, 20)
    for solver in [*DETERMINISTIC, *STOCHASTIC[:-3], DDPM(), EulerMaruyama()]:
        torch.testing.assert_close(stepped(solver, move), X)
    for solver in (DDIM(), Euler(), PLMS(), LMS(), DPMSolver2M(), DPMSolver3M(), UniPC()):
        assert torch.equal(stepped(solver, move), X)


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
    for solver in FROM_NOISE:
        torch.testing.assert_close(stepped(solver, down, by_v), expected)
    path = Path.from_levels([down.here, *(SCHEDULE.level(t) for t in (900, 600, 300)), CLEAN], T=1000)
    for solver in [*FROM_NOISE, DDPM(), DPMSolver2S(eta=1.0), DPMSolver2MSDE(), DPMSolver3MSDE()]:
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
    for solver in [*DETERMINISTIC, *STOCHASTIC, EulerMaruyama()]:
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
    twice = {"heun", "dpm2", "dpm2-ancestral", "dpm++2s", "dpm++sde"}
    for name in twice:
        assert count_calls(SOLVERS[name](), path) == 19  # the last step, to the clean image, is of first order
    assert count_calls(PLMS(), path) == 11  # the first step averages two
    assert count_calls(SOLVERS["predictor-corrector"](), path) == 20
    assert count_calls(SOLVERS["rk45"](), path) > 9 * 8  # 2 a move and 6 a step, of two images
    for name in set(SOLVERS) - twice - {"plms", "predictor-corrector", "rk45"}:
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

    assert second(between(600, 400, index=1, total=9, following="denoise"))
    assert not second(between(600, 400, index=8, total=9))
    assert second(between(600, 400, index=9, total=10))
    assert not second(between(600, 400, index=13, total=14), DPMSolver2M(few_steps=15))
    assert second(between(600, 400, index=1, total=2), DPMSolver2M(lower_order_final=False))
    assert not second(Move(here=SCHEDULE.level(600), there=CLEAN, index=50, total=51))
    assert not second(between(600, 700, index=1, following="invert"))  # the direction turned
    assert not second(between(800, 600, index=1, following="denoise"))  # no change of level since the last value


def test_3m_and_unipc_end_short_runs_with_falling_order() -> None:
    path = Path.sigmas(SCHEDULE, 6, end=SCHEDULE.level(-0.5))
    for falls, stays in (
        (DPMSolver3M(), DPMSolver3M(lower_order_final=False)),
        (UniPC(order=3), UniPC(order=3, lower_order_final=False)),
    ):
        middle = [integrate(smooth, solver, path[:4], X) for solver in (falls, stays)]
        assert not torch.equal(*middle)  # its own end came
        whole = [trail(solver, path) for solver in (falls, stays)]
        equal = [torch.equal(ours, other) for ours, other in zip(*whole, strict=True)]
        assert equal == [True, True, True, True, False, False]
    kinds = [trail(solver, Path.sigmas(SCHEDULE, 12, end=SCHEDULE.level(-0.5))) for solver in (falls, stays)]
    assert not torch.equal(kinds[0][-1], kinds[1][-1])  # UniPC's falls however many steps there are
    long = [trail(DPMSolver3M(lower_order_final=flag), Path.sigmas(SCHEDULE, 12)) for flag in (True, False)]
    assert torch.equal(long[0][-1], long[1][-1])


def trail(solver: Solver, path: Path) -> list[Tensor]:
    """The image after each move."""
    return [record.step.x for record in trajectory(smooth, solver, path, X)]


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=repr)
def test_history_is_dropped_where_the_direction_turns(solver: Solver) -> None:
    """Down, up by fresh noise or by the solver, and down again: the last step knows nothing of those before."""
    down = Path.from_levels([SCHEDULE.level(t) for t in (800, 700, 600)], T=1000).moves
    back = between(600, 750, kind="invert")
    up = Path.from_moves([*down, back, between(750, 550)], T=1000)
    if isinstance(solver, UniPC):
        solver = replace(solver, lower_order_final=False)
    records = list(trajectory(smooth, solver, up, X))
    turned = solver.step(smooth, records[1].step.x, up[2], None, NOISE)
    state = records[1].step.state
    corrects = isinstance(solver, UniPC)  # whose correction of the step before is right in any direction
    equal = torch.equal(solver.step(smooth, records[1].step.x, up[2], state, NOISE).x, turned.x)
    assert equal != corrects


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
    assert solver.order in (1, 2, 3, 4, 5)
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
        (lambda: stepped(DPMSolver2M(predicted="eps"), TO_NOISE), "works in sigma"),
        (lambda: stepped(UniPC(predicted="eps"), TO_NOISE), "works in sigma"),
        (lambda: stepped(EulerMaruyama(), TO_NOISE), "Euler-Maruyama works in sigma"),
        (lambda: stepped(DDIM(), FROM_CLEAN), "the denoiser was asked at the clean level"),
        (lambda: stepped(EulerMaruyama(), FROM_CLEAN), "the denoiser was asked at the clean level"),
        (lambda: stepped(DPMSolver2M(), FROM_CLEAN), "the denoiser was asked at the clean level"),
        (lambda: DDIM(eta=1.5), r"eta is 1.5; it must lie in \[0, 1\]"),
        (lambda: DDIM(eta=-0.1), "eta is -0.1"),
        (lambda: EulerAncestral(eta=1.5), r"eta is 1.5; it must lie in \[0, 1\]"),
        (lambda: DPM2Ancestral(s_noise=-1.0), "s_noise is -1.0; it must be at least 0"),
        (lambda: DPMSolver2S(eta=-1.0), "eta is -1.0"),
        (lambda: DPMSolver2S(eta=0.5, inner="path"), "eta is 0.5; inner='path' needs eta=0"),
        (lambda: DPMSolver2S(inner="half"), "inner is 'half'; known are halfway, path"),
        (lambda: DPMSolver2S(variant="ralston"), "variant is 'ralston'; known are midpoint, heun"),
        (lambda: DPMSolver2M(variant="ralston"), "variant is 'ralston'"),
        (lambda: DPMSolver2M(predicted="v"), "predicted is 'v'; known are x0, eps"),
        (lambda: DPMSolver3M(predicted="v"), "predicted is 'v'"),
        (lambda: DPMSolverSDE(eta=2.0), "eta is 2.0"),
        (lambda: DPMSolver2MSDE(variant="ralston"), "variant is 'ralston'"),
        (lambda: DPMSolver3MSDE(eta=2.0), "eta is 2.0"),
        (lambda: UniPC(order=4), "order is 4; it must be 1, 2 or 3"),
        (lambda: UniPC(b="bh3"), "b is 'bh3'; known are bh1, bh2"),
        (lambda: UniPC(predicted="v"), "predicted is 'v'"),
        (lambda: LMS(order=0), "order is 0; it must be 1, 2, 3 or 4"),
        (lambda: LMS(order=2.0), "order is 2.0"),
        (lambda: UniPC(order=2.0), "order is 2.0"),
        (lambda: DPMSolver2M(few_steps=-1), "few_steps is -1; it must be at least 0"),
        (lambda: DPMSolver3M(few_steps=-1), "few_steps is -1"),
        (lambda: Euler(s_churn=-1.0), "s_churn is -1.0; it must be at least 0"),
        (lambda: Heun(s_tmin=2.0, s_tmax=1.0), "s_tmin is 2.0 and s_tmax 1.0; they must obey"),
        (lambda: DPM2(s_noise=-1.0), "s_noise is -1.0"),
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


@pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)
def test_solvers_that_add_noise_do_not_go_up(solver: Solver) -> None:
    with pytest.raises(UserError, match=r"cannot move towards noise \(t = 300 to 500\); invert with (eta|s_churn)=0"):
        stepped(solver, UP)


@pytest.mark.parametrize("solver", IN_SIGMA, ids=repr)
def test_solvers_in_sigma_do_not_start_from_pure_noise(solver: Solver) -> None:
    with pytest.raises(UserError, match="works in sigma, which is infinite at alpha_bar = 0"):
        stepped(solver, TO_NOISE)

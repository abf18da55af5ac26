"""The predictors and the corrector of the score-SDE paper, against their formulas and the exact distribution."""

from __future__ import annotations

import dataclasses
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
    Ancestral,
    EulerAncestral,
    EulerMaruyama,
    Heun,
    KnownRegion,
    Level,
    Move,
    Noise,
    NoiseSchedule,
    NoPredictor,
    Path,
    Prediction,
    PredictorCorrector,
    ReverseDiffusion,
    ScoreDenoiser,
    Solver,
    Step,
    SubVPSDE,
    integrate,
    sde_level,
    sde_path,
    sde_scale,
)

from ..guidance.toys import paired_eps
from .mixture import SCHEDULE, TWO

SDES: list[SDE] = [VPSDE(), SubVPSDE(), VESDE()]
each_sde = pytest.mark.parametrize("sde", SDES, ids=repr)
X = Noise(1, (2, 2, 3, 3), dtype=torch.float64)()
N = 1000


def score_of(x: Tensor, t: float) -> Tensor:
    return -torch.tanh(x) * (0.5 + t)


def stepped(solver: Solver, sde: SDE, t: float, there: float | None, x: Tensor) -> Tensor:
    """One step in the diffusion's own coordinates."""
    move = Move(here=sde_level(sde, t), there=CLEAN if there is None else sde_level(sde, there))
    denoise = ScoreDenoiser(score=score_of, sde=sde)
    after = solver.step(denoise, x / sde_scale(sde, t), move, None, Noise(7, like=x)).x
    return after * (1.0 if there is None else sde_scale(sde, there))


def published(kind: str, sde: SDE, t: float, x: Tensor, there: float, z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and image of the official steps of N times, written a second time; where ``there`` counts it is used."""
    score, i = score_of(x, t), int(t * (N - 1) + 1e-6)
    if kind == "euler" or (kind == "reverse" and isinstance(sde, SubVPSDE)):
        dt, g = 1 / N, sde.diffusion(t)
        mean = x - (sde.drift(x, t) - g**2 * score) * dt
        return mean, mean + g * math.sqrt(dt) * z
    if isinstance(sde, VPSDE):
        beta = float(np.linspace(0.1 / N, 20 / N, N)[i])
        if kind == "ancestral":
            mean = (x + beta * score) / math.sqrt(1 - beta)
        else:
            mean = x - (math.sqrt(1 - beta) * x - x) + beta * score
        return mean, mean + math.sqrt(beta) * z
    sigmas = np.exp(np.linspace(math.log(0.01), math.log(50), N))
    sigma, below = float(sigmas[i]), float(sigmas[i - 1]) if i else 0.0
    mean = x + (sigma**2 - below**2) * score
    spread = math.sqrt(sigma**2 - below**2)
    return mean, mean + z * (spread * below / sigma if kind == "ancestral" else spread)


KINDS = {"euler": EulerMaruyama, "reverse": ReverseDiffusion, "ancestral": Ancestral}


@each_sde
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", [0, 1, 400, 998])
def test_step_with_n_is_the_official_one(sde: SDE, kind: str, index: int) -> None:
    if kind == "ancestral" and isinstance(sde, SubVPSDE):
        return
    times = np.linspace(1, 1e-5 if isinstance(sde, VESDE) else 1e-3, N)
    x, z = X * sde.std(times[index]), Noise(7, like=X)()
    expected = published(kind, sde, times[index], x, times[index + 1], z)[1]
    found = stepped(KINDS[kind](sde=sde, N=N), sde, times[index], times[index + 1], x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@each_sde
@pytest.mark.parametrize("kind", KINDS)
def test_clean_end_returns_the_image_the_mean_or_a_noisy_one(sde: SDE, kind: str) -> None:
    if kind == "ancestral" and isinstance(sde, SubVPSDE):
        return
    t = 1e-5 if isinstance(sde, VESDE) else 1e-3
    x, z = X * sde.std(t), Noise(7, like=X)()
    mean, noisy = published(kind, sde, t, x, 0.0, z)
    found = {end: stepped(KINDS[kind](sde=sde, N=N, end=end), sde, t, None, x) for end in ("x0", "mean", "noisy")}
    torch.testing.assert_close(found["mean"], mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found["noisy"], noisy, rtol=1e-10, atol=1e-10)
    x0 = (x + sde.std(t) ** 2 * score_of(x, t)) / sde.signal(t)
    torch.testing.assert_close(found["x0"], x0, rtol=1e-10, atol=1e-10)


@each_sde
@pytest.mark.parametrize("kind", KINDS)
def test_step_without_n_goes_by_its_levels(sde: SDE, kind: str) -> None:
    """To first order in the distance it is the same step, and it is that of the distance and not of N."""
    if kind == "ancestral" and isinstance(sde, SubVPSDE):
        return
    t, x = 0.5, X * sde.std(0.5)
    errors = []
    for steps in (500, 1000, 2000):
        dt = 1 / steps
        z, g = Noise(7, like=X)(), sde.diffusion(t)
        plain = x - (sde.drift(x, t) - g**2 * score_of(x, t)) * dt + g * math.sqrt(dt) * z
        found = stepped(KINDS[kind](sde=sde), sde, t, t - dt, x)
        errors.append(float((found - plain).abs().max()) / sde.std(t))
        if kind == "euler":
            torch.testing.assert_close(found, plain)
    assert kind == "euler" or errors[2] < 0.5 * errors[1] < 0.25 * errors[0] * 1.1 or isinstance(sde, SubVPSDE)


def linear_eps(x: Tensor, level: Level) -> Prediction:
    return Prediction.from_output(0.8 * torch.tanh(x), x, level)


def test_euler_maruyama_between_levels_is_the_variance_preserving_step() -> None:
    move = Path.respaced(SCHEDULE, 50)[10]
    a, b = move.here.alpha_bar, move.there.alpha_bar
    h, eps = math.log(b / a), linear_eps(X, move.here).eps
    expected = X + h * (X / 2 - eps / math.sqrt(1 - a)) + math.sqrt(h) * Noise(7, like=X)()
    found = EulerMaruyama().step(linear_eps, X, move, None, Noise(7, like=X)).x
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_ancestral_steps_between_levels_are_solvers_that_exist() -> None:
    for move in (Path.respaced(SCHEDULE, 50)[10], Path.sigmas(SCHEDULE, 20)[7]):
        steps = [
            solver.step(linear_eps, X, move, None, Noise(7, like=X)).x
            for solver in (Ancestral(), DDPM(variance="fixed_large"))
        ]
        torch.testing.assert_close(*steps)
    sde = VESDE()
    path = sde_path(sde, 30, 1e-5)
    steps = [
        solver.step(linear_eps, X, path[12], None, Noise(7, like=X)).x
        for solver in (Ancestral(sde=sde), EulerAncestral())
    ]
    torch.testing.assert_close(*steps)


def test_reverse_diffusion_agrees_with_ddpm_to_second_order_in_beta() -> None:
    path = Path.respaced(SCHEDULE, 1000)
    for index in (0, 100, 500, 900):
        move = path[index]
        assert move.beta == pytest.approx(float(SCHEDULE.betas[999 - index]))
        steps = [
            solver.step(linear_eps, X, move, None, Noise(7, like=X)).x
            for solver in (ReverseDiffusion(), DDPM(variance="fixed_large"))
        ]
        score = linear_eps(X, move.here).eps / -math.sqrt(1 - move.here.alpha_bar)
        gap, second_order = (steps[1] - steps[0]), move.beta**2 * (X / 4 + score / 2)
        assert gap.abs().max() > 0
        torch.testing.assert_close(gap, second_order, rtol=0.05, atol=float(second_order.abs().max()) * 0.05)


# Distribution


def points(solver: Solver, sde: SDE, steps: int, n: int = 3000) -> np.ndarray:
    def score(x: Tensor, t: float) -> Tensor:
        return TWO.score(x, sde.signal(t), sde.std(t))

    start = Noise(31, (1, 2, 1, n))().double() * sde.prior_std / sde_scale(sde, 1)
    path = sde_path(sde, steps, 1e-5 if isinstance(sde, VESDE) else 1e-3)
    x = integrate(ScoreDenoiser(score=score, sde=sde), solver, path, start, noise=Noise(32, like=start))
    return x[0, :, 0].T.numpy()


def exact_moments() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and variance of the mixture in both coordinates, and the variance of a squared deviation."""
    shares, means, stds = (np.array(value) for value in (TWO.weights, TWO.means, TWO.stds))
    mean = shares @ means
    away = means - mean
    second = shares @ (away**2 + stds[:, None] ** 2)
    fourth = shares @ (away**4 + 6 * away**2 * stds[:, None] ** 2 + 3 * stds[:, None] ** 4)
    return mean, second, fourth - second**2


def assert_moments(found: np.ndarray, errors: float = 5.0) -> None:
    mean, variance, spread = exact_moments()
    n = len(found)
    assert (np.abs(found.mean(0) - mean) < errors * np.sqrt(variance / n)).all()
    assert (np.abs(((found - mean) ** 2).mean(0) - variance) < errors * np.sqrt(spread / n)).all()


SAMPLERS: list[tuple[type[Any], dict[str, Any]]] = [
    (EulerMaruyama, {}),
    (EulerMaruyama, {"N": 500, "end": "mean"}),
    (ReverseDiffusion, {}),
    (ReverseDiffusion, {"N": 500, "end": "mean"}),
    (Ancestral, {}),
    (Ancestral, {"N": 500, "end": "mean"}),
]


@each_sde
@pytest.mark.parametrize(("kind", "fields"), SAMPLERS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_moments_of_the_reverse_steps_are_exact_within_five_standard_errors(
    sde: SDE, kind: Any, fields: dict[str, Any]
) -> None:
    if kind is Ancestral and isinstance(sde, SubVPSDE):
        return
    assert_moments(points(kind(sde=sde, **fields), sde, 500))


@each_sde
@pytest.mark.parametrize("kind", [ReverseDiffusion, EulerMaruyama])
def test_moments_with_langevin_steps_are_exact_within_five_standard_errors(sde: SDE, kind: Any) -> None:
    assert_moments(points(PredictorCorrector(predictor=kind(sde=sde), snr=0.08), sde, 250))


def test_the_moments_notice_a_diffusion_that_is_not_the_right_one() -> None:
    with pytest.raises(AssertionError):
        assert_moments(points(ReverseDiffusion(sde=VPSDE()), VPSDE(), 12))


@each_sde
def test_langevin_steps_alone_carry_the_image_down(sde: SDE) -> None:
    solver = PredictorCorrector(predictor=NoPredictor(sde=sde), snr=0.25, n_steps=3)
    assert_moments(points(solver, sde, 250), errors=8.0)  # the step's own bias is of the size of snr**2


# The corrector


def corrected(x: Tensor, solver: PredictorCorrector, move: Move, seed: Any = 7) -> Tensor:
    return solver.step(linear_eps, x, move, None, Noise(seed, like=x)).x


def test_langevin_step_has_the_published_size_in_every_coordinates() -> None:
    for sde, there in ((VPSDE(), 0.49), (VESDE(), 0.49), (SubVPSDE(), 0.49)):
        t, snr = 0.5, 0.2
        x, draws = X * sde.std(t), Noise(7, like=X)
        solver = PredictorCorrector(predictor=NoPredictor(sde=sde, N=N), snr=snr, n_steps=2)
        found = stepped(solver, sde, t, there, x)
        alpha = 1.0 if isinstance(sde, VESDE) else 1 - float(np.linspace(0.1 / N, 20 / N, N)[int(t * (N - 1))])
        for _ in range(2):
            score, z = score_of(x, t), draws()
            size = 2 * alpha * (snr * z.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1)) ** 2
            size = size.reshape(-1, 1, 1, 1)
            x = x + size * score + (2 * size).sqrt() * z
        torch.testing.assert_close(found, x, rtol=1e-12, atol=1e-4 if isinstance(sde, SubVPSDE) else 1e-10)


def test_corrector_comes_before_the_predictor_at_the_same_level() -> None:
    asked: list[float] = []

    def denoise(x: Tensor, level: Level) -> Prediction:
        asked.append(level.t)
        return linear_eps(x, level)

    path = Path.respaced(SCHEDULE, 5)
    integrate(denoise, PredictorCorrector(n_steps=2), path, X, noise=Noise(1, like=X))
    assert asked == [move.here.t for move in path for _ in range(3)]
    asked.clear()
    integrate(denoise, PredictorCorrector(n_steps=2, predictor=NoPredictor()), path, X, noise=Noise(1, like=X))
    assert asked == [move.here.t for move in path for _ in range(2)] + [path[-1].here.t]


def test_without_langevin_steps_it_is_the_predictor() -> None:
    path = Path.respaced(SCHEDULE, 5)
    for predictor in (ReverseDiffusion(), DDPM(), Heun()):
        whole = integrate(linear_eps, predictor, path, X, noise=Noise(1, like=X))
        solver = PredictorCorrector(predictor=predictor, n_steps=0)
        assert torch.equal(integrate(linear_eps, solver, path, X, noise=Noise(1, like=X)), whole)
    still = corrected(X, PredictorCorrector(predictor=Heun(), snr=0.0), path[1])
    torch.testing.assert_close(still, Heun().step(linear_eps, X, path[1], None, Noise(7, like=X)).x)


def test_step_sizes_are_each_image_s_own_unless_the_batch_is_averaged() -> None:
    move, x = Path.respaced(SCHEDULE, 20)[4], torch.cat([X[:1], 3 * X[1:]])
    own, averaged = PredictorCorrector(), PredictorCorrector(batch_norms=True)
    together = corrected(x, own, move)
    alone = [corrected(x[i : i + 1], own, move, [7 + i]) for i in range(2)]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.allclose(corrected(x, averaged, move), together)
    assert torch.equal(corrected(x[:1], averaged, move), alone[0])
    score = linear_eps(x, move.here).eps / -math.sqrt(1 - move.here.alpha_bar)
    z = Noise(7, like=x)()
    ratio = z.flatten(1).norm(dim=1).mean() / score.flatten(1).norm(dim=1).mean()
    size = 2 * (1 - move.beta) * (0.16 * ratio) ** 2
    solver = PredictorCorrector(predictor=NoPredictor(), batch_norms=True)
    torch.testing.assert_close(corrected(x, solver, move), x + size * score + (2 * size).sqrt() * z)


def test_many_langevin_steps_reach_the_marginal_of_their_level() -> None:
    level, n = SCHEDULE.level(300), 4000
    move = Move(here=level, there=level)
    signal, std = math.sqrt(level.alpha_bar), math.sqrt(1 - level.alpha_bar)
    solver = PredictorCorrector(predictor=NoPredictor(), snr=0.1, n_steps=1000)
    x = 3 * Noise(2, (1, 2, 1, n))().double()
    found = solver.step(TWO, x, move, None, Noise(3, like=x)).x[0, :, 0].T.numpy()
    mean, variance, _ = exact_moments()
    np.testing.assert_allclose(found.mean(0), signal * mean, atol=5 * std / math.sqrt(n))
    np.testing.assert_allclose(found.var(0), signal**2 * variance + std**2, rtol=5 * math.sqrt(2 / n))


# Inpainting


def test_inpainting_by_the_published_rule_reaches_the_conditional_of_a_correlated_gaussian() -> None:
    """Pairs of pixels with correlation 0.8, the left one known: the right has mean 0.8 left, variance (1 - 0.64) s^2.

    The published rule alone is biased, since the right pixel hears of the left late; Langevin steps repair most of it.
    """
    correlation, std, side, left = 0.8, 0.5, 48, 0.6
    eps = paired_eps(SCHEDULE, correlation, std)

    def denoise(x: Tensor, level: Level) -> Prediction:
        return Prediction.from_output(eps(x, torch.tensor([level.t])), x, level)

    keep = torch.zeros(1, 1, side, side, dtype=torch.float64)
    keep[..., 0::2] = 1
    x0 = keep * left
    known = KnownRegion(x0, keep=keep, at="here")
    path = Path.respaced(SCHEDULE, 250)

    def filled(n_steps: int) -> Tensor:
        noise = Noise(4, like=x0)
        solver = PredictorCorrector(constraint=known, snr=0.2, n_steps=n_steps)
        x = integrate(denoise, solver, path, noise(), constraints=[known], noise=noise)
        return (keep * x0 + (1 - keep) * x)[..., 1::2].flatten()

    count = side * side // 2
    right = filled(4)
    assert float(right.mean()) == pytest.approx(correlation * left, abs=5 * std * 0.6 / math.sqrt(count) + 0.01)
    assert float(right.var()) == pytest.approx((1 - correlation**2) * std**2, rel=0.15)
    without = filled(0)
    assert abs(float(without.mean()) - correlation * left) > abs(float(right.mean()) - correlation * left)


def test_constraint_holds_between_corrector_and_predictor() -> None:
    seen: list[tuple[Level, Level]] = []

    def watch(step: Step, move: Move, noise: Noise) -> Tensor:
        seen.append((move.here, move.there))
        return torch.zeros_like(step.x)

    move = Path.respaced(SCHEDULE, 20)[4]
    found = corrected(X, PredictorCorrector(constraint=watch, predictor=Heun()), move)
    assert seen == [(move.here, move.here)]
    assert torch.equal(found, Heun().step(linear_eps, torch.zeros_like(X), move, None, Noise(7, like=X)).x)


# Fields and errors

CHANGES: list[tuple[Any, dict[str, Any]]] = [
    (EulerMaruyama, {"sde": VPSDE(), "N": 700, "end": "mean"}),
    (ReverseDiffusion, {"sde": VPSDE(), "N": 700, "end": "noisy"}),
    (Ancestral, {"sde": VPSDE(), "N": 700, "end": "mean"}),
    (NoPredictor, {"sde": VESDE(), "N": None, "end": "mean"}),
    (
        PredictorCorrector,
        {
            "predictor": Heun(),
            "snr": 0.3,
            "n_steps": 3,
            "batch_norms": True,
            "constraint": lambda step, move, noise: step.x * 0.9,
        },
    ),
]


@pytest.mark.parametrize(("kind", "changes"), CHANGES, ids=lambda value: getattr(value, "__name__", ""))
def test_every_field_changes_something(kind: Any, changes: dict[str, Any]) -> None:
    assert set(changes) == {field.name for field in dataclasses.fields(kind)}
    sde: SDE = VESDE() if kind is NoPredictor else VPSDE()
    path = sde_path(sde, 20, t_end=0.05)

    def run(**fields: Any) -> Tensor:
        if fields.get("N"):
            fields["sde"] = sde
        return integrate(linear_eps, kind(**fields), path, X, noise=Noise(1, like=X))

    plain = {"N": run(sde=sde)} if "N" in changes else {}
    for name, value in changes.items():
        if name == "N" and value is None:  # only the corrector reads N of a predictor that stays
            continue
        assert not torch.equal(run(**{name: value}), plain.get(name, run())), name


UP = Move(here=SCHEDULE.level(300), there=SCHEDULE.level(500), kind="invert")
TO_NOISE = Move(here=Level(1000.0, 0.0), there=SCHEDULE.level(900))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EulerMaruyama(end="last"), "end is 'last'; known are x0, mean, noisy"),
        (lambda: EulerMaruyama(N=1000), "N is 1000 without a diffusion to discretise; give sde too"),
        (lambda: ReverseDiffusion(sde=VPSDE(), N=1), "N is 1; the official code takes at least 2 steps"),
        (lambda: ReverseDiffusion(sde="vp"), r"sde is 'vp'; give a diffusion such as VPSDE\(\), or None"),
        (lambda: Ancestral(sde=SubVPSDE()), "there is no ancestral step for sub-VP; use ReverseDiffusion"),
        (lambda: PredictorCorrector(snr=-0.1), "snr is -0.1; it must be at least 0"),
        (lambda: PredictorCorrector(n_steps=-1), "n_steps is -1; it must be an integer of at least 0"),
        (lambda: PredictorCorrector(n_steps=1.5), "n_steps is 1.5; it must be an integer"),
        (lambda: PredictorCorrector(predictor="heun"), "predictor is 'heun'; give a solver such as ReverseDiffusion"),
        (lambda: corrected(X, PredictorCorrector(), UP), "PredictorCorrector cannot move towards noise"),
        (lambda: corrected(X, PredictorCorrector(), TO_NOISE), "PredictorCorrector works in sigma"),
        (
            lambda: ReverseDiffusion(sde=VESDE()).step(
                linear_eps, X, Path.respaced(SCHEDULE, 9)[2], None, Noise(0, like=X)
            ),
            r"the level t = 749 with alpha_bar 0.0\d+ is none of VESDE\(.*make the path with sde_path",
        ),
        (
            lambda: stepped(ReverseDiffusion(sde=VPSDE(), N=15), VPSDE(), 1.0, 0.9, X),
            "N is 15; the discrete betas reach beta_max / N, so N must be above 20",
        ),
    ],
)
def test_impossible_steps_get_a_clear_error(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_levels_of_a_linear_schedule_are_not_taken_for_those_of_its_limit() -> None:
    with pytest.raises(UserError, match="is none of VPSDE"):
        EulerMaruyama(sde=VPSDE()).step(
            linear_eps, X, Path.respaced(NoiseSchedule.linear(), 10)[3], None, Noise(0, like=X)
        )

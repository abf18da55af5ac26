"""Classifier guidance: its formula, its exact effect on Gaussian data, and the official numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steerdiff import UserError
from steerdiff.guidance import ClassifierFree, ClassifierGuidance, Condition
from steerdiff.guidance.scales import scale_at
from steerdiff.models import build
from steerdiff.samplers import (
    DDIM,
    DDPM,
    RK45,
    Heun,
    Level,
    NetworkDenoiser,
    Noise,
    NoiseSchedule,
    Path,
    Prediction,
    Recorder,
    Solver,
    integrate,
    posterior_mean,
)

from ..helpers import cond_fn, golden_files, golden_weight, load_golden
from ..samplers.mixture import SCHEDULE, even_path, slope
from ..samplers.replay import Replay, assert_close, golden_denoiser, golden_path, time_scale

X = Noise(3, (3, 3, 4, 4))()
LEVEL = SCHEDULE.level(400)
Y = torch.tensor([0, 4, 2])


def smooth(x: Tensor, t: Tensor) -> Tensor:
    """Five logits, from different sums over the image."""
    t = t.reshape(-1, 1, 1, 1)
    return torch.stack([torch.sin((k + 1) * x + 0.002 * k * t).sum((1, 2, 3)) for k in range(5)], dim=1)


def plain(x: Tensor, level: Level) -> Prediction:
    return Prediction.from_output(torch.tanh(x + 0.001 * level.t), x, level)


def guided(**fields: Any) -> ClassifierGuidance:
    return ClassifierGuidance(**{"denoise": plain, "classifier": smooth, "y": Y} | fields)


def score(x: Tensor = X, level: Level = LEVEL, **fields: Any) -> Tensor:
    found = guided(**fields)(x, level).score
    assert found is not None
    return found


def test_score_is_the_scaled_gradient_of_the_log_probability() -> None:
    for scale in (1.0, -0.5, 7.0):
        x = X.double().requires_grad_()
        log_p = torch.log_softmax(smooth(x, torch.full((3,), 400.0, dtype=x.dtype)), dim=1)
        log_p[torch.arange(3), Y].sum().backward()
        torch.testing.assert_close(score(X.double(), scale=scale), scale * x.grad)


def test_the_score_equals_finite_differences_of_the_log_probability() -> None:
    x, step = X.double(), 1e-5
    t = torch.full((3,), 400.0, dtype=x.dtype)
    found = score(x, scale=2.0)
    for place in [(0, 0, 0, 0), (1, 2, 3, 1), (2, 1, 0, 2)]:
        moved = torch.zeros_like(x)
        moved[place] = step
        up, down = (torch.log_softmax(smooth(x + sign * moved, t), 1)[place[0], Y[place[0]]] for sign in (1, -1))
        assert float(found[place]) == pytest.approx(float(2 * (up - down) / (2 * step)), abs=1e-7)


def test_each_image_s_gradient_is_the_one_it_has_alone() -> None:
    together = score()
    for i in range(3):
        alone = score(X[i : i + 1], y=Y[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-6)


def test_labels_and_scales_are_one_for_all_or_one_for_each() -> None:
    assert torch.equal(score(y=2), score(y=torch.tensor([2, 2, 2])))
    assert torch.equal(score(y=torch.tensor(2)), score(y=torch.tensor([2])))
    scales = torch.tensor([0.0, 1.0, -3.0])
    torch.testing.assert_close(score(scale=scales), score() * scales.reshape(3, 1, 1, 1))
    torch.testing.assert_close(score(scale=torch.tensor([2.0])), 2 * score())


def test_the_prediction_itself_stays_unguided_and_scores_add() -> None:
    prediction = guided()(X, LEVEL)
    assert torch.equal(prediction.x0, plain(X, LEVEL).x0) and torch.equal(prediction.eps, plain(X, LEVEL).eps)
    nested = guided(denoise=guided(y=1, scale=0.5), scale=2.0)(X, LEVEL)
    torch.testing.assert_close(nested.score, 0.5 * score(y=1) + 2 * score())


def test_scale_zero_is_the_unguided_denoiser_bit_for_bit_and_never_runs_the_classifier() -> None:
    def broken(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError

    path = Path.respaced(SCHEDULE, 10)
    for solver in (DDPM(), DDIM(), Heun()):
        runs = [
            integrate(denoise, solver, path, X, noise=Noise(1, like=X))
            for denoise in (plain, guided(classifier=broken, scale=0.0))
        ]
        assert torch.equal(*runs)
    zeros = integrate(guided(scale=torch.zeros(3)), DDIM(), path, X)
    assert torch.equal(zeros, integrate(plain, DDIM(), path, X))


def test_the_classifier_sees_the_level_s_time_and_float32() -> None:
    seen = []

    def watching(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x.dtype, t.dtype, t.tolist()))
        return smooth(x, t)

    assert score(X.bfloat16(), classifier=watching).dtype == torch.float32
    score(classifier=watching, time_scale=0.25)
    assert seen == [(torch.float32, torch.float32, [400.0] * 3), (torch.float32, torch.float32, [100.0] * 3)]


def test_half_precision_logits_are_read_in_float32() -> None:
    coarse = score(classifier=lambda x, t: smooth(x, t).bfloat16())
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, score(), atol=0.2, rtol=0.1)


def test_it_works_where_autograd_is_off_and_leaves_no_gradient_behind() -> None:
    expected = score()
    with torch.no_grad():
        assert torch.equal(score(), expected)
    with torch.inference_mode():
        assert torch.equal(score(X.clone()), expected)
    assert not expected.requires_grad
    x = X.clone().requires_grad_()
    assert not score(x).requires_grad and x.grad is None


def test_images_at_different_levels_are_guided_as_alone() -> None:
    levels = [SCHEDULE.level(t) for t in (900.5, 30.0, 30.0)]
    network = NetworkDenoiser(network=lambda x, t: torch.tanh(x + 0.001 * t.reshape(-1, 1, 1, 1)), clip="clip")
    for denoise in (plain, network):
        rows = guided(denoise=denoise).rows(X, levels)
        for i, level in enumerate(levels):
            alone = guided(denoise=denoise, y=Y[i : i + 1])(X[i : i + 1], level)
            for field in ("x0", "eps", "score"):
                torch.testing.assert_close(getattr(rows, field)[i : i + 1], getattr(alone, field))


def test_a_schedule_is_a_factor_on_the_scale_of_each_level() -> None:
    assert torch.equal(score(schedule="constant"), score())
    for level in (SCHEDULE.level(900), SCHEDULE.level(30.5)):
        expected = scale_at("cosine", level, SCHEDULE.T) * score(level=level, scale=3.0)
        torch.testing.assert_close(score(level=level, scale=3.0, schedule="cosine", T=SCHEDULE.T), expected)
    levels = [SCHEDULE.level(t) for t in (900, 30, 500)]
    rows = guided(schedule="linear", T=SCHEDULE.T).rows(X, levels).score
    for i, level in enumerate(levels):
        alone = score(X[i : i + 1], level, y=Y[i : i + 1], schedule="linear", T=SCHEDULE.T)
        torch.testing.assert_close(rows[i : i + 1], alone)


def test_where_the_schedule_is_zero_the_classifier_is_not_run() -> None:
    def only_early(x: Tensor, t: Tensor) -> Tensor:
        assert float(t.min()) >= SCHEDULE.T / 2
        return smooth(x, t)

    denoise = guided(classifier=only_early, schedule="early", T=SCHEDULE.T)
    assert denoise(X, SCHEDULE.level(SCHEDULE.T // 2 - 1)).score is None
    path = Path.respaced(SCHEDULE, 10)
    early, plainly = integrate(denoise, DDIM(), path, X), integrate(plain, DDIM(), path, X)
    assert not torch.equal(early, plainly)


def test_at_the_mean_of_the_step_the_classifier_is_asked_as_in_the_derivation() -> None:
    path = Path.respaced(SCHEDULE, 10)
    move = path[3]
    mean = posterior_mean(plain(X, move.here).x0, X, move)
    expected = score(mean, move.there)
    torch.testing.assert_close(score(X, move.here, path=path), expected)
    assert not torch.allclose(score(X, move.here), expected)
    rows = guided(path=path).rows(X, [path[3].here, path[5].here, path[3].here]).score
    torch.testing.assert_close(rows[::2], expected[::2])


def test_the_last_step_is_asked_at_the_image_with_the_time_of_the_least_noise() -> None:
    seen = []

    def watching(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t.tolist()))
        return smooth(x, t)

    path = Path.respaced(SCHEDULE, 10)
    score(X, path[-1].here, path=path, classifier=watching)
    torch.testing.assert_close(seen[0][0], plain(X, path[-1].here).x0)
    assert seen[0][1] == [0.0] * 3


def test_it_wraps_classifier_free_guidance() -> None:
    def network(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return torch.tanh(x) + context.sum((1, 2)).reshape(-1, 1, 1, 1)

    cond, uncond = (Condition(context=torch.full((1, 1, 1), value)) for value in (0.3, -0.1))
    inner = NetworkDenoiser(network=ClassifierFree(network=network, cond=cond, uncond=uncond, scale=2.0))
    outer = guided(denoise=inner)(X, LEVEL)
    assert torch.equal(outer.eps, inner(X, LEVEL).eps)
    torch.testing.assert_close(outer.score, score())


# Two classes N(+-m, s^2) of equal share: p(x) p(y = 1 | x)^scale is known, and so is the classifier at every level.

MEAN, STD = 0.6, 0.4


@dataclass(frozen=True)
class TwoClasses:
    schedule: NoiseSchedule = SCHEDULE

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits of classes -m and +m, for images of one pixel in any number of rows."""
        signal, variance = self._marginal(float(t[0]))
        return torch.stack([-(x - sign * signal * MEAN).square().sum((1, 2, 3)) for sign in (-1, 1)], 1) / (
            2 * variance
        )

    def denoise(self, x: Tensor, level: Level) -> Prediction:
        signal, variance = math.sqrt(level.alpha_bar), level.alpha_bar * STD**2 + 1 - level.alpha_bar
        score = (signal * MEAN * torch.tanh(signal * MEAN * x / variance) - x) / variance
        eps = -math.sqrt(1 - level.alpha_bar) * score
        return Prediction((x - math.sqrt(1 - level.alpha_bar) * eps) / signal, eps)

    def _marginal(self, t: float) -> tuple[float, float]:
        kept = self.schedule.alpha_bar(t)
        return math.sqrt(kept), kept * STD**2 + 1 - kept


def guided_gaussian(solver: Solver, steps: int, scale: float, n: int = 6000) -> np.ndarray:
    toy = TwoClasses()
    denoise = ClassifierGuidance(denoise=toy.denoise, classifier=toy, y=1, scale=scale)
    start = Noise(5, (1, n, 1, 1))()[0].reshape(n, 1, 1, 1).double()
    noise = Rows(n)
    return integrate(denoise, solver, even_path(steps), start, noise=noise).flatten().numpy()


class Rows(Noise):
    """One stream for all rows: thousands of one-pixel images need no generator each."""

    def __init__(self, n: int) -> None:
        super().__init__(6, (1, n, 1, 1), dtype=torch.float64)

    def __call__(self) -> Tensor:
        return super().__call__().reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("solver", [DDPM(), DDIM(), Heun()], ids=repr)
def test_scale_one_gives_the_class_exactly(solver: Solver) -> None:
    """With the exact classifier, p(x_t) p(y | x_t) is the class's own marginal at every level."""
    found = guided_gaussian(solver, 300, 1.0)
    standard_error = STD / math.sqrt(found.size)
    assert abs(found.mean() - MEAN) < 5 * standard_error + 2e-3
    assert found.std() == pytest.approx(STD, rel=0.05)


def test_guided_mean_moves_with_the_scale() -> None:
    """For other scales the noised ``p(x) p(y | x)^scale`` has another score than the one that guidance follows."""
    means = [guided_gaussian(DDIM(), 60, scale, 1000).mean() for scale in (-1.0, 0.0, 0.5, 1.0, 4.0)]
    assert means == sorted(means)
    assert abs(means[1]) < 5 * math.hypot(MEAN, STD) / math.sqrt(1000)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("solver", [DDPM(), DDIM()], ids=repr)
def test_guided_mean_shifts_as_the_tilted_density_predicts(solver: Solver, scale: float) -> None:
    """Data N(m, s^2) and log p(y | x) of slope a: every scale tilts exactly, to the mean m + scale a s^2."""
    slope_of_y, n, steps = 1.5, 4000, 150

    def posterior_slope(t: float) -> float:  # of E[x0 | x_t] in x_t
        kept = SCHEDULE.alpha_bar(t)
        return math.sqrt(kept) * STD**2 / (kept * STD**2 + 1 - kept)

    def classifier(x: Tensor, t: Tensor) -> Tensor:
        log_p = slope_of_y * posterior_slope(float(t[0])) * x.sum((1, 2, 3)) - 500
        return torch.stack([log_p, torch.zeros_like(log_p)], dim=1)

    def denoise(x: Tensor, level: Level) -> Prediction:
        kept = level.alpha_bar
        x0 = MEAN + posterior_slope(level.t) * (x - math.sqrt(kept) * MEAN)
        return Prediction.from_output(x0, x, level, "x0")

    start = Noise(5, (1, n, 1, 1))()[0].reshape(n, 1, 1, 1).double()
    guide = ClassifierGuidance(denoise=denoise, classifier=classifier, y=0, scale=scale)
    found = integrate(guide, solver, even_path(steps), start, noise=Rows(n))
    standard_error = STD / math.sqrt(n)
    expected = MEAN + scale * slope_of_y * STD**2
    assert abs(float(found.mean()) - expected) < 5 * standard_error + 0.02 * abs(scale)  # 0.02: 150 steps of order 1
    assert float(found.std()) == pytest.approx(STD, rel=0.07)


def test_ddpm_and_ddim_agree_better_with_more_steps() -> None:
    """In the mean over one noise, to the limit where both follow the guided diffusion with its own score."""
    reference = guided_gaussian(Heun(), 200, 1.0).mean()
    steps = [25, 50, 100]
    gaps = [abs(guided_gaussian(DDIM(), n, 1.0).mean() - reference) for n in steps]
    assert slope(steps, gaps) == pytest.approx(1, abs=0.2)
    between = [abs(guided_gaussian(DDPM(), n, 1.0).mean() - guided_gaussian(DDIM(), n, 1.0).mean()) for n in (10, 200)]
    assert between[1] < 0.5 * between[0] and between[1] < 5 * STD / math.sqrt(6000)


def stands_for(y: Tensor) -> Any:
    """A classifier whose log-probabilities have the golden files' formula as gradient.

    Its logits are the antiderivative, far below the logit 0 of one more class, so that the softmax leaves them as they
    are.
    """

    def classifier(x: Tensor, t: Tensor) -> Tensor:
        t = t.reshape(-1, 1, 1, 1)
        logits = [
            (0.5 * torch.sin(x + 0.1 * label) + 0.0002 * t * x).sum((1, 2, 3)) - 500
            for label in range(int(y.max()) + 1)
        ]
        return torch.stack([*logits, torch.zeros_like(logits[0])], dim=1)

    return classifier


def test_the_stand_in_has_the_formula_as_gradient() -> None:
    found = score(classifier=stands_for(Y))
    torch.testing.assert_close(found, cond_fn(X, 400.0, Y))


@pytest.mark.parametrize("file", golden_files("diffusion/loop_*_cond"), ids=lambda file: file.stem)
def test_guided_loop_equals_the_official_trajectory(file: File) -> None:
    arrays, meta = load_golden(file)
    path, _ = golden_path(meta)
    y = torch.tensor(meta["y"])
    denoise = ClassifierGuidance(
        denoise=golden_denoiser(meta), classifier=stands_for(y), y=y, time_scale=time_scale(meta)
    )
    recorder = Recorder()
    solver = DDPM() if meta["sampler"] == "ddpm" else DDIM(eta=meta["eta"])
    draws = list(torch.from_numpy(arrays["in.z"]))
    integrate(denoise, solver, path, torch.from_numpy(arrays["in.xT"]), noise=Replay(draws), callback=recorder)
    assert_close(torch.stack(recorder.images), arrays["out.all"], 1e-4)


@pytest.mark.parametrize("file", golden_files("adm/classifier_*"), ids=lambda file: file.stem)
def test_score_of_a_published_classifier_is_the_official_gradient(file: File) -> None:
    arrays, meta = load_golden(file)
    network = build(meta["class"], meta["kwargs"]).eval()
    weights = {key: golden_weight(key, shape, meta["weight_scale"]) for key, shape in meta["keys"].items()}
    network.load_state_dict({key: torch.from_numpy(value).float() for key, value in weights.items()})
    x, t, y = (torch.from_numpy(arrays[f"in.{name}"]) for name in ("x", "t", "y"))
    levels = [Level(float(one), 0.5) for one in t]
    found = ClassifierGuidance(denoise=plain, classifier=network, y=y).rows(x, levels).score
    expected = arrays["out.grad_x"]
    assert np.abs(found.numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guided(y=torch.tensor([0.5])), r"y is \[1\] torch.float32; give one class, or an int64 tensor \[B\]"),
        (lambda: guided(y=torch.zeros(2, 2).long()), r"y is \[2, 2\] torch.int64"),
        (lambda: guided(y=torch.tensor([], dtype=torch.long)), r"y is \[0\] torch.int64"),
        (lambda: guided(y=True), r"y is \[\] torch.bool"),
        (lambda: guided(y=-1), "y holds the label -1; labels count from 0"),
        (lambda: guided(scale=math.inf), "scale is inf; it must be a finite number"),
        (lambda: guided(scale=torch.tensor([1.0, math.nan, 1.0])), "it must be a finite number, or a tensor"),
        (lambda: guided(time_scale=0.0), "time_scale is 0.0; it must be positive"),
        (lambda: guided(schedule="square"), "schedule is 'square'; known are constant, linear"),
        (
            lambda: score(level=SCHEDULE.level(401.5), path=Path.respaced(SCHEDULE, 10)),
            "the path of the guidance has no step down from t = 401.5",
        ),
        (lambda: score(y=5), "y holds the label 5; this classifier has 5 classes, 0 to 4"),
        (lambda: score(y=torch.tensor([1, 2])), "2 labels were given for 3 images; give one, or one for each"),
        (lambda: score(scale=torch.ones(2)), "2 scales were given for 3 images; give one, or one for each"),
        (lambda: score(classifier=lambda x, t: x), r"logits are \[3, 3, 4, 4\] for 3 images; expected \[B, classes\]"),
        (lambda: score(classifier=lambda x, t: smooth(x, t).detach()), "logits carry no gradient"),
    ],
)
def test_bad_guidance_gets_a_clear_error(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_guidance_follows_the_adaptive_flow_too() -> None:
    toy = TwoClasses()
    x = torch.linspace(-2, 2, 3, dtype=torch.float64).reshape(3, 1, 1, 1)
    denoise = ClassifierGuidance(denoise=toy.denoise, classifier=lambda x, t: by_rows(toy, x, t), y=1)
    fine = integrate(denoise, Heun(), even_path(400), x)
    torch.testing.assert_close(integrate(denoise, RK45(between=SCHEDULE), even_path(1), x), fine, atol=1e-3, rtol=0)


def by_rows(toy: TwoClasses, x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([toy(x[i : i + 1], t[i : i + 1]) for i in range(x.shape[0])])

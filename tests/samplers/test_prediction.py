"""Predictions: conversions between parameterisations, clipping, guidance, and the network's wrapper."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.samplers import CLEAN, Level, NetworkDenoiser, NoiseSchedule, Parameterization, Prediction
from steerdiff.samplers.combined import combined

FORMS: tuple[Parameterization, ...] = get_args(Parameterization)
LEVEL = NoiseSchedule.linear().level(400)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*(shape or (2, 3, 4, 4)), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def noised(x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    return math.sqrt(level.alpha_bar) * x0 + math.sqrt(1 - level.alpha_bar) * eps


def output_of(form: Parameterization, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    signal, std = math.sqrt(level.alpha_bar), math.sqrt(1 - level.alpha_bar)
    return {"eps": eps, "x0": x0, "v": signal * eps - std * x0, "score": -eps / std}[form]


@settings(derandomize=True, deadline=None)
@given(seed=st.integers(0, 1000), alpha_bar=st.floats(1e-6, 1 - 1e-6), form=st.sampled_from(FORMS))
def test_every_parameterisation_says_the_same(seed: int, alpha_bar: float, form: Parameterization) -> None:
    x0, eps, level = normal(seed), normal(seed + 1), Level(5.0, alpha_bar)
    x = noised(x0, eps, level)
    prediction = Prediction.from_output(output_of(form, x0, eps, level), x, level, form)
    # dividing by the smaller root enlarges float64's rounding by it
    torch.testing.assert_close(prediction.x0, x0, atol=1e-14 / math.sqrt(alpha_bar), rtol=1e-12)
    torch.testing.assert_close(prediction.eps, eps, atol=1e-14 / math.sqrt(1 - alpha_bar), rtol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_levels_per_image_agree_with_single_levels(form: Parameterization) -> None:
    schedule, output, x = NoiseSchedule.linear(), normal(1), normal(2)
    alpha_bars = torch.tensor([schedule.alpha_bar(3), schedule.alpha_bar(900)], dtype=torch.float64)
    mixed = Prediction.from_output(output, x, alpha_bars, form)
    for row, t in enumerate((3, 900)):
        single = Prediction.from_output(output, x, schedule.level(t), form)
        torch.testing.assert_close(mixed.x0[row], single.x0[row])
        torch.testing.assert_close(mixed.eps[row], single.eps[row])


@pytest.mark.parametrize("form", ["eps", "score"])
def test_x0_that_eps_implies_is_computed_once_when_it_is_looked_at(form: Parameterization) -> None:
    x0, eps = normal(40), normal(41)
    x = noised(x0, eps, LEVEL)
    prediction = Prediction.from_output(output_of(form, x0, eps, LEVEL), x, LEVEL, form)
    assert "x0" not in vars(prediction)
    found = prediction.x0
    assert found is prediction.x0
    torch.testing.assert_close(found, x0)
    for factor in (1.0, -0.3):
        terms = prediction.x0_terms(factor)
        torch.testing.assert_close(combined(*terms), factor * x0)
        assert [image is part for (_, image), part in zip(terms, (x, prediction.eps), strict=True)] == [True, True]
    assert torch.equal(combined(*prediction.x0_terms()), found)


def test_x0_is_there_at_once_where_it_is_not_implied_or_gradients_are_kept() -> None:
    x, output = normal(42), normal(43)
    made = [Prediction.from_output(output, x, LEVEL, form) for form in ("v", "x0")]
    made.append(Prediction.from_output(output, x, torch.full((2,), 0.5, dtype=torch.float64)))
    made += [Prediction.from_output(output.clone().requires_grad_(), x, LEVEL)]
    made += [Prediction.from_output(output, x.clone().requires_grad_(), LEVEL)]
    made.append(Prediction.from_output(output, x, LEVEL).clipped(LEVEL, x))
    for prediction in made:
        assert prediction.x0_terms(2.0) == ((2.0, vars(prediction)["x0"]),)
    assert [prediction.x0.requires_grad for prediction in made] == [False, False, False, True, True, False]


def test_what_is_made_of_a_prediction_with_an_implied_x0_has_one_of_its_own() -> None:
    x, other = normal(44), normal(45)
    prediction = Prediction.from_output(normal(46), x, LEVEL)
    noisier, cleaner = replace(prediction, eps=other), replace(prediction, x0=other)
    assert torch.equal(noisier.x0, prediction.x0) and torch.equal(noisier.eps, other)
    assert torch.equal(cleaner.x0, other) and torch.equal(cleaner.eps, prediction.eps)
    for made in (noisier, cleaner):
        assert [image is made.x0 for _, image in made.x0_terms()] == [True]
    for copied in (copy.copy(prediction), copy.deepcopy(prediction), pickle.loads(pickle.dumps(prediction))):
        assert torch.equal(copied.x0, prediction.x0)
    assert "log_variance_fraction=None" in repr(prediction)
    with pytest.raises(AttributeError, match="no 'image'"):
        getattr(prediction, "image")  # noqa: B009


def test_a_score_moves_an_implied_x0_as_it_moves_a_given_one() -> None:
    x, output, score, other = normal(47), normal(48), normal(49), normal(50)
    implied = Prediction.from_output(output, x, LEVEL)
    given = Prediction(implied.x0, implied.eps)
    moved, expected = (
        one.adding(score).adding(None).adding(other).with_score(LEVEL.alpha_bar) for one in (implied, given)
    )
    torch.testing.assert_close(moved.eps, expected.eps)
    torch.testing.assert_close(moved.x0, expected.x0)
    assert moved.score is None and len(moved.x0_terms()) == 2
    tuned = implied.adding(score.clone().requires_grad_()).with_score(LEVEL.alpha_bar)
    assert tuned.x0.requires_grad and tuned.eps.requires_grad


def test_learned_variance_is_split_off_and_never_clamped() -> None:
    output = normal(3, 2, 6, 4, 4) * 3
    prediction = Prediction.from_output(output, normal(4), LEVEL, "eps", learns_variance=True)
    assert torch.equal(prediction.eps, output[:, :3])
    assert prediction.log_variance_fraction is not None
    assert torch.equal(prediction.log_variance_fraction, output[:, 3:])


def test_half_precision_is_widened_before_the_arithmetic() -> None:
    x, output = normal(5).bfloat16(), normal(6).bfloat16()
    prediction = Prediction.from_output(output, x, LEVEL)
    assert prediction.x0.dtype == prediction.eps.dtype == torch.float32
    exact = Prediction.from_output(output.double(), x.double(), LEVEL)
    torch.testing.assert_close(prediction.x0.double(), exact.x0, atol=1e-5, rtol=1e-5)


def test_clipping_bounds_x0_and_takes_eps_from_it() -> None:
    x = normal(7) * 3
    prediction = Prediction.from_output(normal(8), x, LEVEL).clipped(LEVEL, x)
    assert prediction.x0.abs().max() == 1
    torch.testing.assert_close(noised(prediction.x0, prediction.eps, LEVEL), x)


def test_clipping_leaves_a_prediction_in_range_as_it_is() -> None:
    x0, eps = normal(9).clamp(-0.9, 0.9), normal(10)
    x = noised(x0, eps, LEVEL)
    for changed in (Prediction(x0, eps).clipped(LEVEL, x), Prediction(x0, eps).thresholded(LEVEL, x)):
        torch.testing.assert_close(changed.x0, x0)
        torch.testing.assert_close(changed.eps, eps)


def test_dynamic_thresholding_divides_by_a_quantile_image_by_image() -> None:
    x = normal(11)
    x0 = torch.stack([normal(12, 3, 4, 4) * 5, normal(13, 3, 4, 4) * 0.1])
    prediction = Prediction(x0, x).thresholded(LEVEL, x, quantile=0.9)
    bound = torch.quantile(x0[0].abs().flatten(), 0.9)
    torch.testing.assert_close(prediction.x0[0], x0[0].clamp(-bound, bound) / bound)
    torch.testing.assert_close(prediction.x0[1], x0[1])
    torch.testing.assert_close(noised(prediction.x0, prediction.eps, LEVEL), x)


def test_a_score_moves_eps_and_x0_together() -> None:
    x0, eps, score = normal(14), normal(15), normal(16)
    x = noised(x0, eps, LEVEL)
    moved = Prediction(x0, eps, score=score).with_score(LEVEL.alpha_bar)
    torch.testing.assert_close(moved.eps, eps - math.sqrt(1 - LEVEL.alpha_bar) * score)
    torch.testing.assert_close(noised(moved.x0, moved.eps, LEVEL), x)
    assert moved.score is None
    assert moved.with_score(LEVEL.alpha_bar) is moved


def test_a_score_moves_disagreeing_x0_and_eps_each_by_itself() -> None:
    x0, eps, score = normal(17), normal(18), normal(19)
    moved = Prediction(x0, eps, score=score).with_score(LEVEL.alpha_bar)
    plain = Prediction(x0, eps + 1, score=score).with_score(LEVEL.alpha_bar)
    assert torch.equal(moved.x0, plain.x0)
    torch.testing.assert_close(plain.eps, moved.eps + 1)


def test_network_is_told_scaled_real_times_per_image() -> None:
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return x

    NetworkDenoiser(network=network, time_scale=0.25)(normal(20).float(), Level(401.5, 0.3))
    assert seen[0].shape == (2,)
    assert seen[0].dtype == torch.float32
    assert seen[0].tolist() == [401.5 * 0.25] * 2


def test_network_sees_its_own_dtype_and_the_state_keeps_its() -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        assert x.dtype == torch.bfloat16
        assert t.dtype == torch.float32
        return x

    prediction = NetworkDenoiser(network=network, dtype=torch.bfloat16)(normal(21), LEVEL)
    assert prediction.x0.dtype == torch.float64


@pytest.mark.parametrize(("clip", "changed"), [("none", False), ("clip", True), ("dynamic", True)])
def test_clip_policy_of_the_denoiser_is_applied(clip: Any, changed: bool) -> None:
    x = normal(22)
    plain = NetworkDenoiser(network=lambda x, t: -3 * x)(x, LEVEL)
    prediction = NetworkDenoiser(network=lambda x, t: -3 * x, clip=clip)(x, LEVEL)
    assert torch.equal(prediction.x0, plain.x0) != changed
    assert (prediction.x0.abs().max() <= 1) == changed


def test_v_and_x0_networks_answer_at_pure_noise() -> None:
    noise, x = Level(999.0, 0.0), normal(23)
    prediction = Prediction.from_output(normal(24), x, noise, "v")
    assert torch.equal(prediction.x0, -normal(24))
    assert torch.equal(prediction.eps, x)
    assert torch.equal(Prediction.from_output(normal(24), x, noise, "x0").x0, normal(24))


def identity(x: Tensor, t: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Prediction.from_output(normal(1), normal(2), LEVEL, "epsilon"),
            "parameterization is 'epsilon'; known are",
        ),
        (
            lambda: Prediction.from_output(normal(1), normal(2), LEVEL, "eps", True),
            r"output is \[2, 3, 4, 4\] for an input of \[2, 3, 4, 4\]; expected 6 channels with learns_variance=True",
        ),
        (
            lambda: Prediction.from_output(normal(1, 2, 6, 4, 4), normal(2), LEVEL),
            "expected 3 channels with learns_variance=False",
        ),
        (lambda: Prediction.from_output(normal(1), normal(2), CLEAN), "the denoiser was asked at the clean level"),
        (
            lambda: Prediction.from_output(normal(1), normal(2), Level(999.0, 0.0)),
            "alpha_bar is 0 at t = 999, where 'eps' says nothing about the image; only v and x0 do",
        ),
        (
            lambda: Prediction(normal(1), normal(2)).thresholded(LEVEL, normal(3), 0.0),
            r"quantile is 0.0; it must lie in",
        ),
        (
            lambda: Prediction(normal(1), normal(2), score=normal(3)).with_score(0.0),
            "needs a level with alpha_bar above 0",
        ),
        (lambda: NetworkDenoiser(network=identity, clip="hard"), "clip is 'hard'; known are none, clip, dynamic"),
        (lambda: NetworkDenoiser(network=identity, parameterization="f"), "parameterization is 'f'"),
        (lambda: NetworkDenoiser(network=identity, quantile=1.5), "quantile is 1.5"),
        (lambda: NetworkDenoiser(network=identity, time_scale=0.0), "time_scale is 0.0; it must be positive"),
    ],
)
def test_bad_predictions_get_a_clear_error(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_quantile_of_the_denoiser_is_used() -> None:
    x = normal(25)
    low, high = (
        NetworkDenoiser(network=lambda x, t: -3 * x, clip="dynamic", quantile=quantile)(x, LEVEL).x0
        for quantile in (0.5, 0.995)
    )
    assert not torch.allclose(low, high)

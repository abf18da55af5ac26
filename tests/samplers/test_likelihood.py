"""Likelihoods: closed forms, Hutchinson's estimator within its error, and images that do not touch each other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.samplers import (
    RK45,
    SDE,
    VESDE,
    VPSDE,
    Level,
    Likelihood,
    NetworkDenoiser,
    Noise,
    NoiseSchedule,
    Path,
    Prediction,
    ScoreDenoiser,
    SubVPSDE,
    Tolerance,
    dequantised,
    integrate,
    log_likelihood,
    sde_level,
)

from .mixture import ONE, SCHEDULE, TWO, Mixture

SDES: list[SDE] = [VPSDE(), SubVPSDE(), VESDE()]
MEAN, STD = 0.05, 0.5
DATA = (MEAN + STD * Noise(1, (4, 3, 2, 2))()).double()


def mixing(x: Tensor, t: Tensor) -> Tensor:
    """A noise whose pixels mix; rows do not."""
    return 0.9 * x + 0.2 * torch.tanh(x - 0.7 * x.roll(1, 3) + 0.5 * x.roll(1, 1) + 0.001 * t.reshape(-1, 1, 1, 1))


NETWORK = NetworkDenoiser(network=mixing)
GAUSSIAN = Mixture((1.0,), ((MEAN,) * 3,), (STD,))


def denoiser_of(between: Any, mixture: Mixture) -> Callable[[Tensor, Level], Prediction]:
    if isinstance(between, NoiseSchedule):
        return mixture
    return ScoreDenoiser(score=lambda x, t: mixture.score(x, between.signal(t), between.std(t)), sde=between)


def marginal(between: Any, t_end: float) -> tuple[float, float]:
    """Signal and noise of the marginal whose density is measured."""
    if isinstance(between, NoiseSchedule):
        kept = between.alpha_bar(t_end * (between.T - 1))
        return math.sqrt(kept), math.sqrt(1 - kept)
    return between.signal(t_end), between.std(t_end)


def end_of(between: Any) -> tuple[float, float, float]:
    """Signal and noise of the last marginal, and the deviation of the prior that stands for it."""
    if isinstance(between, NoiseSchedule):
        kept = float(between.alpha_bars[-1])
        return math.sqrt(kept), math.sqrt(1 - kept), 1.0
    return between.signal(1.0), between.std(1.0), between.prior_std


@pytest.mark.parametrize("between", [*SDES, SCHEDULE, NoiseSchedule.cosine()], ids=lambda value: repr(value)[:30])
def test_likelihood_of_a_gaussian_is_the_closed_form(between: Any) -> None:
    found = log_likelihood(denoiser_of(between, GAUSSIAN), DATA, between, trace="exact")
    (signal, noise), (last_signal, last_noise, prior) = marginal(between, 1e-5), end_of(between)
    std, last_std = math.hypot(signal * STD, noise), math.hypot(last_signal * STD, last_noise)
    density = torch.distributions.Normal(signal * MEAN, std)
    expected = -density.log_prob(DATA).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(found.bits_per_dim(0.0), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.bits_per_dim(), expected + 7, atol=1e-3, rtol=0)
    # most of that is the prior, from which the last marginal differs; with the prior the flow is affine and exact
    latent = (DATA - signal * MEAN) * (last_std / std) + last_signal * MEAN
    log_p = torch.distributions.Normal(0.0, prior).log_prob(latent) + math.log(last_std / std)
    torch.testing.assert_close(found.log_prob, log_p.flatten(1).sum(1), atol=2e-4 * 12, rtol=0)
    torch.testing.assert_close(found.latent * math.hypot(last_signal, last_noise), latent, atol=2e-4 * prior, rtol=0)


def log_density(mixture: Mixture, x: Tensor, signal: float, noise: float) -> Tensor:
    """Of points [B, D, 1, 1]."""
    parts = []
    for weight, mean, spread in zip(mixture.weights, mixture.means, mixture.stds, strict=True):
        normal = torch.distributions.Normal(
            signal * torch.tensor(mean, dtype=x.dtype).reshape(1, -1, 1, 1), math.hypot(signal * spread, noise)
        )
        parts.append(math.log(weight) + normal.log_prob(x).flatten(1).sum(1))
    return torch.logsumexp(torch.stack(parts), dim=0)


POINTS = torch.from_numpy(TWO.draw(6, seed=5)).reshape(6, 2, 1, 1)


@pytest.mark.parametrize("between", [*SDES, SCHEDULE], ids=lambda value: repr(value)[:30])
def test_likelihood_of_a_mixture_is_its_density(between: Any) -> None:
    tight = Tolerance(rtol=1e-6, atol=1e-6)  # far below the one asserted
    found = log_likelihood(denoiser_of(between, TWO), POINTS, between, trace="exact", t_end=1e-3, tolerance=tight)
    expected = log_density(TWO, POINTS, *marginal(between, 1e-3))
    torch.testing.assert_close(found.log_prob, expected, atol=6e-3, rtol=0)  # the prior's part, signal(1) is 0.0066


def test_hutchinson_s_mean_is_the_exact_trace_within_its_error() -> None:
    n, image = 300, DATA[:1]
    exact = log_likelihood(NETWORK, image, SCHEDULE, trace="exact").log_prob
    spreads = {}
    for trace in ("rademacher", "gaussian"):
        found = log_likelihood(NETWORK, image.expand(n, -1, -1, -1), SCHEDULE, trace=trace, seed=3).log_prob
        assert abs(float(found.mean() - exact)) < 4 * float(found.std()) / math.sqrt(n)
        spreads[trace] = float(found.std())
    assert 0 < spreads["rademacher"] < spreads["gaussian"]


def test_more_probes_scatter_less() -> None:
    many = DATA[:1].expand(200, -1, -1, -1)
    one, nine = (float(log_likelihood(NETWORK, many, SCHEDULE, probes=k).log_prob.std()) for k in (1, 9))
    assert nine == pytest.approx(one / 3, rel=0.3)


def test_random_signs_are_exact_where_pixels_do_not_mix() -> None:
    x = DATA[:, :1]
    exact, signs, normals = (
        log_likelihood(ONE, x, SCHEDULE, trace=trace, t_end=1e-3).log_prob
        for trace in ("exact", "rademacher", "gaussian")
    )
    torch.testing.assert_close(signs, exact, atol=1e-6, rtol=0)
    assert not torch.allclose(normals, exact, atol=1e-2)


IMAGES = (Noise(2, (3, 3, 4, 4))() * torch.tensor([0.2, 0.5, 2.0]).reshape(3, 1, 1, 1)).clamp(-1, 1)


def test_image_of_a_batch_has_the_likelihood_it_has_alone() -> None:
    x0 = IMAGES.double() * torch.tensor([0.01, 1, 30]).reshape(3, 1, 1, 1)
    together = log_likelihood(NETWORK, x0, SCHEDULE, seed=[4, 9, 2])
    for i, seed in enumerate([4, 9, 2]):
        alone = log_likelihood(NETWORK, x0[i : i + 1], SCHEDULE, seed=[seed])
        assert torch.equal(alone.log_prob, together.log_prob[i : i + 1])
        assert torch.equal(alone.latent, together.latent[i : i + 1])
        assert alone.evaluations == together.evaluations[i : i + 1]
    assert len(set(together.evaluations)) > 1


def test_float32_images_give_nearly_the_same() -> None:
    single, double = (log_likelihood(NETWORK, x, SCHEDULE) for x in (IMAGES, IMAGES.double()))
    assert single.latent.dtype == torch.float32 and single.log_prob.dtype == torch.float64
    torch.testing.assert_close(single.bits_per_dim(), double.bits_per_dim(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("between", [*SDES, SCHEDULE], ids=lambda value: repr(value)[:30])
def test_latent_flows_back_to_the_image(between: Any) -> None:
    denoise = denoiser_of(between, TWO)
    found = log_likelihood(denoise, POINTS, between, t_end=1e-3)
    if isinstance(between, NoiseSchedule):
        low, high = between.level(1e-3 * (between.T - 1)), between.level(between.T - 1)
    else:
        low, high = sde_level(between, 1e-3), sde_level(between, 1.0)
    back = integrate(denoise, RK45(between=between), Path.from_levels([high, low], T=1000), found.latent)
    scale = 1.0 if isinstance(between, NoiseSchedule) else math.hypot(*marginal(between, 1e-3))
    torch.testing.assert_close(back * scale, POINTS, atol=1e-3, rtol=0)


def test_it_works_where_autograd_is_off_and_leaves_no_gradient_behind() -> None:
    expected = log_likelihood(NETWORK, IMAGES, SCHEDULE)
    with torch.no_grad():
        assert torch.equal(log_likelihood(NETWORK, IMAGES, SCHEDULE).log_prob, expected.log_prob)
    with torch.inference_mode():
        assert torch.equal(log_likelihood(NETWORK, IMAGES.clone(), SCHEDULE).log_prob, expected.log_prob)
    assert not expected.log_prob.requires_grad and not expected.latent.requires_grad


def test_every_argument_changes_something() -> None:
    def bits(**arguments: Any) -> Tensor:
        return log_likelihood(NETWORK, IMAGES, arguments.pop("between", SCHEDULE), **arguments).bits_per_dim()

    plain = bits()
    assert torch.equal(bits(seed=0, t_end=1e-5, trace="rademacher", probes=1, tolerance=Tolerance()), plain)
    for change in (
        {"seed": 1},
        {"t_end": 1e-3},
        {"trace": "gaussian"},
        {"probes": 2},
        {"tolerance": Tolerance(rtol=1e-3)},
        {"between": NoiseSchedule.cosine()},
    ):
        assert not torch.equal(bits(**change), plain), change
    assert {field.name for field in dataclasses.fields(Likelihood)} == {"log_prob", "latent", "evaluations"}


# Eight bits


def test_dequantisation_spreads_each_grey_level_over_its_own_bin() -> None:
    grey = torch.arange(256).repeat(40).reshape(1, 1, 40, 256)
    image = (grey / 127.5 - 1).float()
    spread = dequantised(image, seed=1)
    bins = (spread.double() + 1) * 128
    assert torch.equal(bins.floor().long(), grey)
    inside = (bins - grey).flatten()
    assert float(inside.mean()) == pytest.approx(0.5, abs=5 * 0.289 / 101)
    assert float(inside.var()) == pytest.approx(1 / 12, rel=0.05)
    assert not torch.equal(dequantised(image, seed=2), spread)
    pair = torch.cat([image, image])
    assert torch.equal(dequantised(pair, seed=[1, 7])[:1], spread)


def test_bits_of_grey_levels_are_the_entropy_of_the_levels() -> None:
    """Normal data in 256 bins: the mean of the bits per dimension is the entropy of the bins."""
    std, n = 0.3, 4000
    pixels = (Noise(5, (1, 1, 1, n))() * std * 127.5 - 0.5).round().clamp(-127, 127) + 0.5
    image = pixels / 127.5  # half levels: the middles of the bins of a centred distribution
    model = Mixture((1.0,), ((0.0,),), (std,))
    found = log_likelihood(model, dequantised(image.double(), seed=3), SCHEDULE).bits_per_dim()
    levels = np.arange(-127.5, 128)
    density = np.exp(-((levels / 127.5) ** 2) / (2 * std**2))
    density /= density.sum()
    entropy = -float((density * np.log2(density)).sum())
    assert float(found) == pytest.approx(
        entropy, abs=0.06
    )  # 4000 pixels: 0.72 / sqrt(4000) / ln 2 = 0.016 at one sigma


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: log_likelihood(NETWORK, IMAGES[0], SCHEDULE), r"x0 is \[3, 4, 4\] torch.float32; expected finite"),
        (lambda: log_likelihood(NETWORK, IMAGES.half(), SCHEDULE), "x0 is torch.float16; a likelihood needs float32"),
        (lambda: log_likelihood(NETWORK, IMAGES / 0, SCHEDULE), "expected finite floating-point images"),
        (lambda: log_likelihood(NETWORK, IMAGES, SCHEDULE, t_end=0.0), r"t_end is 0.0; it must lie in \(0, 1\)"),
        (lambda: log_likelihood(NETWORK, IMAGES, SCHEDULE, trace="signs"), "trace is 'signs'; known are rademacher"),
        (lambda: log_likelihood(NETWORK, IMAGES, SCHEDULE, probes=0), "probes is 0; it must be at least 1"),
        (
            lambda: log_likelihood(NETWORK, IMAGES, SCHEDULE, trace="exact", probes=2),
            "probes is 2, but an exact trace needs none",
        ),
        (
            lambda: log_likelihood(NETWORK, torch.zeros(1, 3, 64, 64), SCHEDULE, trace="exact"),
            "an exact trace of images of 12288 values .* 4096 at most, use 'rademacher'",
        ),
        (
            lambda: log_likelihood(NETWORK, IMAGES, NoiseSchedule.linear().zero_terminal_snr()),
            "the schedule ends in pure noise",
        ),
        (
            lambda: log_likelihood(torch.no_grad()(NETWORK), IMAGES, SCHEDULE),
            "the denoiser's answer carries no gradient, but a likelihood needs its derivative",
        ),
        (
            lambda: log_likelihood(lambda x, level: dataclasses.replace(NETWORK(x, level), score=x), IMAGES, SCHEDULE),
            "the denoiser is guided by a score, which has no likelihood",
        ),
        (
            lambda: log_likelihood(NETWORK, IMAGES, SCHEDULE, tolerance=Tolerance(max_evaluations=20)),
            "raise max_evaluations, which is 20",
        ),
        (lambda: dequantised(IMAGES), "image is off its nearest grey level by up to 0.4"),
        (lambda: dequantised(torch.full((1, 1, 1, 1), 1 + 2 / 255)), "or outside"),
    ],
)
def test_impossible_likelihoods_get_a_clear_error(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()

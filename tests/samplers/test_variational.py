"""The variational bound beyond the golden files: closed forms, gradients, and mixed times in one batch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.samplers import (
    Noise,
    NoiseSchedule,
    Prediction,
    discretised_log_likelihood,
    normal_kl,
    posterior_tables,
    prior_bits,
    vlb_terms,
)

from ..helpers import learned_fn

SCHEDULE = NoiseSchedule.linear(100)
X0 = (torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 127.5 - 1).double()
T = torch.tensor([0, 1, 50, 99])
EPS = Noise(1, like=X0)()


def predicted(x: Tensor, output: Tensor) -> Prediction:
    alpha_bars = torch.from_numpy(np.array(SCHEDULE.alpha_bars))[T]
    return Prediction.from_output(output, x, alpha_bars, "eps", learns_variance=True)


def test_kl_of_normals_is_torchs() -> None:
    a, b, c, d = (Noise(seed, (1, 1, 2, 5), dtype=torch.float64)() for seed in range(4))
    first, second = torch.distributions.Normal(a, (b / 2).exp()), torch.distributions.Normal(c, (d / 2).exp())
    torch.testing.assert_close(normal_kl(a, b, c, d), torch.distributions.kl_divergence(first, second))


def test_likelihoods_of_all_grey_levels_add_up_to_one() -> None:
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, std in ((0.1, 0.3), (0.95, 0.2), (-3.0, 0.5), (0.0, 0.01)):
        log = discretised_log_likelihood(levels, torch.tensor(mean).double(), torch.tensor(math.log(std)).double())
        assert float(log.exp().sum()) == pytest.approx(1, abs=3e-10)  # each is at least 1e-12
        exact = torch.distributions.Normal(mean, std)
        inside = (exact.cdf(levels + 1 / 255) - exact.cdf(levels - 1 / 255))[1:-1]
        assert (log.exp()[1:-1] - inside).abs().max() < 4e-4  # the tanh approximation


def test_each_row_of_mixed_times_is_the_row_alone() -> None:
    x = SCHEDULE.q_sample(X0, T, EPS)
    prediction = predicted(x, learned_fn(x, T))
    mixed = vlb_terms(SCHEDULE, prediction, X0, x, T)
    for row in range(4):
        part = slice(row, row + 1)
        fraction = prediction.log_variance_fraction
        assert fraction is not None
        single = Prediction(prediction.x0[part], prediction.eps[part], fraction[part])
        alone = vlb_terms(SCHEDULE, single, X0[part], x[part], T[part])
        torch.testing.assert_close(alone, mixed[part])


def test_the_true_image_with_the_posterior_variance_costs_nothing_above_time_zero() -> None:
    x = SCHEDULE.q_sample(X0, T, EPS)
    terms = vlb_terms(SCHEDULE, Prediction(X0, EPS, torch.full_like(X0, -1.0)), X0, x, T)
    assert terms[1:].abs().max() < 1e-10
    assert terms[0] > 0
    small = vlb_terms(SCHEDULE, Prediction(X0, EPS), X0, x, T, "fixed_small")
    torch.testing.assert_close(small, terms)
    large = vlb_terms(SCHEDULE, Prediction(X0, EPS), X0, x, T, "fixed_large")
    widest = vlb_terms(SCHEDULE, Prediction(X0, EPS, torch.full_like(X0, 1.0)), X0, x, T, "learned")
    torch.testing.assert_close(large[1:], widest[1:])
    assert bool((large[1:] > 0).all())


def test_detached_images_train_the_variance_alone() -> None:
    x = SCHEDULE.q_sample(X0, T, EPS)
    output = learned_fn(x, T).requires_grad_()
    prediction = predicted(x, output)
    vlb_terms(SCHEDULE, replace(prediction, x0=prediction.x0.detach()), X0, x, T).mean().backward()
    assert output.grad is not None
    assert output.grad[:, :3].abs().max() == 0
    assert bool((output.grad[:, 3:].flatten(1).abs().amax(1) > 0).all())
    assert output.grad.isfinite().all()


def test_bound_of_gaussian_data_is_above_its_entropy_and_tightens_with_more_times() -> None:
    """Data N(0, 0.3**2) in 256 bins, exact denoiser: the sum over all times is the bound in bits per dimension."""
    std, n = 0.3, 100
    entropy = math.log2(std * math.sqrt(2 * math.pi * math.e) / (2 / 255))
    x0 = (Noise(5, (1, 1, n, n), dtype=torch.float64)() * std * 127.5).round() / 127.5 - 1 / 255
    totals = []
    for count in (20, 80, 320):
        alpha_bars = 1 / (1 + np.geomspace(0.01, 100, count) ** 2)  # from about a bin's width to noise alone
        schedule = NoiseSchedule.from_betas(1 - alpha_bars / np.append(1.0, alpha_bars[:-1]))
        total, noise = float(prior_bits(schedule, x0)), Noise(6, like=x0)
        for t in range(count):
            level = schedule.level(t)
            x, a = schedule.q_sample(x0, level, noise()), level.alpha_bar
            exact = math.sqrt(a) * std**2 / (a * std**2 + 1 - a) * x
            v = torch.full_like(x, 1.0 if t == 0 else -1.0)  # at the end the variance is beta, the noise that is left
            total += float(vlb_terms(schedule, Prediction(exact, exact, v), x0, x, torch.tensor([t])))
        totals.append(total)
    gaps = [total - entropy for total in totals]
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2] > 0  # about as 1 / T
    assert gaps[2] < 0.15


def test_tables_of_a_single_time_exist() -> None:
    tables = posterior_tables(NoiseSchedule.from_betas([0.1]))
    assert np.isfinite(tables.log_variance_clipped).all()
    assert (tables.coef_x0[0], tables.coef_x[0]) == (pytest.approx(1), 0)


def test_posterior_of_the_mean_is_the_mean() -> None:
    tables, before = posterior_tables(SCHEDULE), np.append(1.0, SCHEDULE.alpha_bars[:-1])
    np.testing.assert_allclose(
        tables.coef_x0 + tables.coef_x * np.sqrt(SCHEDULE.alpha_bars), np.sqrt(before), rtol=1e-12
    )


def test_missing_or_unknown_variance_gets_a_clear_error() -> None:
    x, prediction = SCHEDULE.q_sample(X0, T, EPS), Prediction(X0, EPS)
    with pytest.raises(UserError, match="variance is 'learned' but the prediction has none"):
        vlb_terms(SCHEDULE, prediction, X0, x, T, "learned")
    with pytest.raises(UserError, match="variance is 'big'"):
        vlb_terms(SCHEDULE, prediction, X0, x, T, "big")  # type: ignore[arg-type]

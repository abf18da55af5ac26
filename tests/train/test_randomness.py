from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from steerdiff.train.ema import EMA
from steerdiff.train.randomness import SampleRandom, mix


@given(seed=st.integers(0, 2**40), indices=st.lists(st.integers(0, 2**50), min_size=1, max_size=5))
def test_a_sample_sees_the_same_numbers_in_any_batch(seed: int, indices: list[int]) -> None:
    together = SampleRandom(seed, indices)
    for row, index in enumerate(indices):
        alone = SampleRandom(seed, [index])
        assert torch.equal(together.normal("noise", (3, 4, 4))[row], alone.normal("noise", (3, 4, 4))[0])
        assert together.uniform("time")[row] == alone.uniform("time")[0]


def test_seeds_streams_and_samples_differ() -> None:
    draws = [SampleRandom(seed, range(3)).normal(name, (20,)) for seed in (0, 1) for name in ("a", "b")]
    rows = torch.cat(draws)
    assert len({tuple(row.tolist()) for row in rows}) == 12


def test_uniform_numbers_are_uniform() -> None:
    n = 100_000
    u = SampleRandom(3, range(n)).uniform("time")
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * (1 / 12) ** 0.5 / n**0.5
    counts = np.histogram(u.numpy(), bins=20, range=(0, 1))[0]
    assert np.abs(counts - n / 20).max() < 5 * (n / 20) ** 0.5
    pairs = np.corrcoef(u[:-1].numpy(), u[1:].numpy())[0, 1]
    assert abs(pairs) < 5 / n**0.5


def test_normal_numbers_are_normal_across_samples() -> None:
    n = 2000
    z = SampleRandom(0, range(n)).normal("noise", (16,))
    assert abs(z.mean()) < 5 / (16 * n) ** 0.5
    assert abs(z.var() - 1) < 5 * (2 / (16 * n)) ** 0.5
    covariance = z.T @ z / n - torch.eye(16)
    assert covariance.abs().max() < 5 * 2**0.5 / n**0.5


def test_mix_is_the_published_splitmix64() -> None:
    # The finaliser of Steele et al. 2014 is a bijection: distinct inputs never collide.
    assert len(set(mix(0, "x", range(10_000)).tolist())) == 10_000


def test_ema_follows_its_closed_form() -> None:
    model = torch.nn.Linear(2, 1)
    ema = EMA(model, 0.5)
    expected = model.weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            model.weight.add_(1.0)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(ema.parameters["weight"], expected)


def test_ema_lends_its_weights_and_takes_them_back() -> None:
    model = torch.nn.BatchNorm1d(3)
    ema = EMA(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(7)
        model.running_mean.fill_(2)  # type: ignore[union-attr, operator]
    with ema.swapped_into(model):
        assert (model.weight == 1).all()
    assert (model.weight == 7).all()
    state = ema.state_dict()
    assert list(state) == list(model.state_dict()) and (state["running_mean"] == 2).all()

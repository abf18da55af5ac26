"""Noise: one stream per image, whatever the batch; named forks; seeds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steerdiff.errors import UserError
from steerdiff.samplers import Noise, resolve_seeds

SHAPE = (3, 2, 4, 4)


@settings(derandomize=True, deadline=None)
@given(seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4), draws=st.integers(1, 3))
def test_image_of_a_batch_gets_the_noise_it_gets_alone(seeds: list[int], draws: int) -> None:
    batch = Noise(seeds, (len(seeds), 2, 3, 3))
    alone = [Noise(seed, (1, 2, 3, 3)) for seed in seeds]
    for _ in range(draws):
        assert torch.equal(batch(), torch.cat([one() for one in alone]))
    assert torch.equal(batch.fork("a")(), torch.cat([one.fork("a")() for one in alone]))


def test_an_int_counts_on_from_image_to_image() -> None:
    assert torch.equal(Noise(5, SHAPE)(), Noise([5, 6, 7], SHAPE)())
    assert torch.equal(Noise(5, SHAPE)()[2:], Noise(7, (1, *SHAPE[1:]))())


def test_draws_are_standard_normal_and_never_repeat() -> None:
    n = 20_000
    noise = Noise(0, (2, 1, 100, n // 200))
    first, second = noise(), noise()
    values = torch.cat([first, second]).flatten()
    assert abs(float(values.mean())) < 5 / n**0.5
    assert abs(float(values.var()) - 1) < 5 * (2 / n) ** 0.5
    for a, b in ((first[0], first[1]), (first, second)):
        correlation = float((a * b).mean())
        assert abs(correlation) < 5 / a.numel() ** 0.5


def test_forks_are_independent_of_when_they_are_taken_and_go_on_when_asked_again() -> None:
    early, late = Noise(1, SHAPE), Noise(1, SHAPE)
    reference = early.fork("reference")()
    plain = early()
    assert torch.equal(late(), plain)
    assert torch.equal(late.fork("reference")(), reference)
    assert not torch.equal(early.fork("reference")(), reference)
    assert early.fork("reference") is early.fork("reference")


def test_forks_differ_by_name_seed_and_from_their_parent() -> None:
    draws = [
        Noise(1, SHAPE)(),
        Noise(1, SHAPE).fork("a")(),
        Noise(1, SHAPE).fork("b")(),
        Noise(1, SHAPE).fork("a").fork("a")(),
        Noise(9, SHAPE).fork("a")(),
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_dtype_changes_the_rounding_but_not_the_numbers() -> None:
    assert torch.equal(Noise(2, SHAPE, dtype=torch.float64)(), Noise(2, SHAPE)().double())
    assert torch.equal(Noise(2, SHAPE, dtype=torch.bfloat16)(), Noise(2, SHAPE)().bfloat16())


def test_like_takes_shape_and_dtype_from_a_tensor() -> None:
    x = torch.zeros(SHAPE, dtype=torch.float64)
    assert torch.equal(Noise(3, like=x)(), Noise(3, SHAPE, dtype=torch.float64)())


def test_noise_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Noise(4, SHAPE)()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.gpu
def test_noise_on_a_gpu_is_the_noise_of_the_cpu() -> None:
    noise, expected = Noise(4, SHAPE, device="cuda"), Noise(4, SHAPE)
    for _ in range(20):  # pinned memory is reused: a draw must not overwrite the one before it
        assert torch.equal(noise().cpu(), expected())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Noise(0), r"noise needs its size: give either shape=\[B, C, H, W\] or like=x"),
        (lambda: Noise(0, SHAPE, like=torch.zeros(SHAPE)), "give either shape"),
        (lambda: Noise(0, ()), "noise needs a batch dimension"),
        (lambda: Noise([1, 2], SHAPE), "2 seeds for 3 images; give one int, or one seed per image"),
        (lambda: Noise(-1, SHAPE), r"seed is -1; it must be an integer in \[0, 2\*\*63\)"),
        (lambda: Noise(1.5, SHAPE), "seed is 1.5; it must be an integer"),
        (lambda: Noise("12", SHAPE), "seed is '12'; it must be an integer"),
        (lambda: Noise(True, SHAPE), "seed is True; it must be an integer"),
        (lambda: Noise([1, 2, 2**63], SHAPE), "seed is 9223372036854775808; it must be an integer"),
        (lambda: resolve_seeds(2**63 - 1, 2), "seed is 9223372036854775808"),
    ],
)
def test_bad_seeds_get_a_clear_error(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()

"""Noise schedules: their tables, real times and inverses, and how they are stored."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steerdiff.errors import UserError
from steerdiff.samplers import CLEAN, Level, NoiseSchedule

SCHEDULES = [
    NoiseSchedule.linear(),
    NoiseSchedule.linear(T=50, start=0.001, end=0.3),
    NoiseSchedule.scaled_linear(),
    NoiseSchedule.cosine(),
    NoiseSchedule.cosine(T=100, shift=0.25),
    NoiseSchedule.from_betas([0.1, 0.2, 0.5]),
    NoiseSchedule.cosine(T=100).zero_terminal_snr(),
]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)


def test_linear_has_the_published_values() -> None:
    schedule = NoiseSchedule.linear()
    expected = {0: 0.9999, 299: 0.39642, 399: 0.19515, 499: 0.078587, 999: 4.0358e-5}
    for t, value in expected.items():
        assert schedule.alpha_bar(t) == pytest.approx(value, rel=2e-5)


def test_cosine_has_the_published_values_and_clips_only_its_last_beta() -> None:
    schedule = NoiseSchedule.cosine()
    assert schedule.betas[0] == pytest.approx(4.128e-5, rel=1e-3)
    assert schedule.alpha_bar(999) == pytest.approx(2.4e-9, rel=0.05)
    assert np.flatnonzero(schedule.betas == 0.999).tolist() == [999]


def test_scaled_linear_runs_between_the_two_betas() -> None:
    betas = NoiseSchedule.scaled_linear().betas
    assert (betas[0], betas[-1]) == (pytest.approx(0.00085), pytest.approx(0.012))
    assert np.diff(np.sqrt(betas)) == pytest.approx(np.full(999, np.sqrt(betas)[1] - np.sqrt(betas)[0]))


@pytest.mark.parametrize("shift", [0.25, 0.5, 2.0])
def test_shifted_cosine_moves_the_log_snr_by_twice_the_log_of_the_shift(shift: float) -> None:
    plain, shifted = NoiseSchedule.cosine(), NoiseSchedule.cosine(shift=shift)
    first = math.cos(0.008 / 1.008 * math.pi / 2) ** 2  # the curve's own value at the image, which betas divide by
    moved_first = shift**2 * first / (shift**2 * first + 1 - first)
    for t in (0, 10, 500, 900, 998):
        curve, moved = plain.alpha_bar(t) * first, shifted.alpha_bar(t) * moved_first
        difference = math.log(moved / (1 - moved)) - math.log(curve / (1 - curve))
        assert difference == pytest.approx(2 * math.log(shift), abs=1e-6)


def test_shift_of_one_is_the_classical_cosine_exactly() -> None:
    def curve(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    classical = [min(1 - curve((i + 1) / 64) / curve(i / 64), 0.999) for i in range(64)]
    assert NoiseSchedule.cosine(64, shift=1.0).betas.tolist() == classical


@each_schedule
def test_alpha_bar_is_the_table_at_integers_and_one_at_minus_one(schedule: NoiseSchedule) -> None:
    assert [schedule.alpha_bar(t) for t in range(schedule.T)] == schedule.alpha_bars.tolist()
    assert schedule.alpha_bar(-1) == 1.0
    assert schedule.level(-1) == CLEAN
    assert np.all(np.diff(schedule.alpha_bars) < 0)


@each_schedule
def test_alpha_bar_is_log_linear_between_integers(schedule: NoiseSchedule) -> None:
    for t in (-0.5, 0.5, schedule.T - 1.5):
        low, high = schedule.alpha_bar(math.floor(t)), schedule.alpha_bar(math.floor(t) + 1)
        if high == 0:  # no line leads to the logarithm of 0
            continue
        assert schedule.alpha_bar(t) == pytest.approx(math.sqrt(low * high), rel=1e-12)


@settings(derandomize=True, deadline=None)
@given(index=st.integers(0, len(SCHEDULES) - 1), share=st.floats(0, 1))
def test_inverses_return_the_time(index: int, share: float) -> None:
    schedule = SCHEDULES[index]
    t = -1 + share * schedule.T
    level = schedule.level(t)
    assert schedule.t_of_alpha_bar(level.alpha_bar) == pytest.approx(t, abs=1e-6)
    assert schedule.t_of_sigma(level.sigma) == pytest.approx(t, abs=1e-6)
    assert schedule.t_of_log_snr(level.log_snr) == pytest.approx(t, abs=1e-6)


def test_inverses_give_whole_times_at_table_entries() -> None:
    schedule = NoiseSchedule.linear()
    assert [schedule.t_of_sigma(schedule.level(t).sigma) for t in range(0, 1000, 37)] == list(range(0, 1000, 37))
    assert schedule.t_of_sigma(0.0) == -1


@each_schedule
def test_a_schedule_survives_json_and_pickle(schedule: NoiseSchedule) -> None:
    again = NoiseSchedule.from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert pickle.loads(pickle.dumps(schedule)) == schedule


def test_schedules_differ_by_value_and_cannot_be_changed() -> None:
    assert len(set(SCHEDULES)) == len(SCHEDULES)
    assert NoiseSchedule.linear() != NoiseSchedule.cosine()
    assert NoiseSchedule.linear() != "linear"
    with pytest.raises(ValueError, match="read-only"):
        SCHEDULES[0].betas[0] = 0.5


def test_respacing_to_every_time_changes_nothing() -> None:
    schedule = NoiseSchedule.cosine()
    np.testing.assert_allclose(schedule.respaced(range(1000)).betas, schedule.betas, rtol=1e-10)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_time() -> None:
    schedule = NoiseSchedule.scaled_linear()
    ended = schedule.zero_terminal_snr()
    assert (ended.alpha_bars[-1], ended.betas[-1], ended.T) == (0.0, 1.0, 1000)
    assert ended.alpha_bars[0] == pytest.approx(schedule.alpha_bars[0], rel=1e-14)
    roots, before = np.sqrt(ended.alpha_bars), np.sqrt(schedule.alpha_bars)
    np.testing.assert_allclose((roots[500] - roots[0]) / roots[0], (before[500] - before[0]) / (before[0] - before[-1]))
    assert ended.level(999).sigma == math.inf
    assert ended.respaced([0, 500, 999]).alpha_bars[-1] == 0
    assert ended.zero_terminal_snr().alpha_bars.tolist() == pytest.approx(ended.alpha_bars.tolist(), rel=1e-9)


def test_times_towards_pure_noise_are_linear_in_what_is_left() -> None:
    ended = NoiseSchedule.scaled_linear().zero_terminal_snr()
    least = ended.alpha_bar(998)
    assert ended.alpha_bar(998.25) == pytest.approx(0.75 * least)
    for t in (999.0, 998.75, 998.25, 998.0, 997.5, 3.0, -0.5):
        assert ended.t_of_alpha_bar(ended.alpha_bar(t)) == pytest.approx(t, abs=1e-9)


def test_q_sample_by_level_and_by_times_agree() -> None:
    schedule = NoiseSchedule.linear()
    x0, eps = torch.full((2, 3, 4, 4), 0.5), torch.full((2, 3, 4, 4), -2.0)
    mixed = schedule.q_sample(x0, torch.tensor([10, 700]), eps)
    for row, t in enumerate((10, 700)):
        torch.testing.assert_close(mixed[row], schedule.q_sample(x0, schedule.level(t), eps)[row])
    assert torch.equal(schedule.q_sample(x0, CLEAN, eps), x0)
    assert schedule.q_sample(x0.double(), torch.tensor([10, 700]), eps.double()).dtype == torch.float64


def test_tables_become_tensors_rounded_once() -> None:
    schedule = NoiseSchedule.linear()
    table = schedule.tensor(schedule.alpha_bars)
    assert table.dtype == torch.float32
    assert np.array_equal(table.numpy(), schedule.alpha_bars.astype(np.float32))


def test_levels_know_sigma_and_log_snr_at_their_ends() -> None:
    assert (CLEAN.sigma, CLEAN.log_snr, CLEAN.clean) == (0.0, math.inf, True)
    noise = Level(1000.0, 0.0)
    assert (noise.sigma, noise.log_snr, noise.clean) == (math.inf, -math.inf, False)
    assert Level(3.0, 0.5).sigma == pytest.approx(1)
    assert Level(3.0, 0.5).log_snr == pytest.approx(0)
    assert Level(3.0, 0.2).log_snr == pytest.approx(-2 * math.log(Level(3.0, 0.2).sigma))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoiseSchedule.linear(0), "T is 0; a schedule needs at least 1 training time"),
        (lambda: NoiseSchedule.linear(10), r"betas reach from 0\.01 to 2; each must lie strictly between 0 and 1"),
        (lambda: NoiseSchedule.scaled_linear(start=-1.0), "both betas must be positive"),
        (lambda: NoiseSchedule.cosine(shift=0.0), r"shift is 0\.0; it must be a positive number"),
        (lambda: NoiseSchedule.from_betas([]), r"betas have the shape \[0\]"),
        (lambda: NoiseSchedule.from_betas([0.1, float("nan")]), "each must lie strictly between 0 and 1"),
        (lambda: NoiseSchedule.from_betas([0.99] * 1000), "leave alpha_bar at exactly 0"),
        (lambda: NoiseSchedule.from_betas([0.99] * 1000 + [1.0]), "leave alpha_bar at exactly 0"),
        (lambda: NoiseSchedule.from_betas([1.0, 0.5]), "each must lie strictly between 0 and 1"),
        (lambda: NoiseSchedule.from_betas([0.5]).zero_terminal_snr(), "has no last time to rescale"),
        (
            lambda: NoiseSchedule.from_dict({"name": "quadratic"}),
            "schedule name is 'quadratic'; known names are linear",
        ),
        (lambda: NoiseSchedule.from_dict({}), "schedule name is None"),
        (lambda: NoiseSchedule.from_dict({"name": "cosine", "shfit": 2}), r"does not take the arguments \['shfit'\]"),
        (lambda: NoiseSchedule.linear().alpha_bar(1000), "t is 1000; this schedule knows times from -1 .clean. to 999"),
        (lambda: NoiseSchedule.linear().level(-1.5), "t is -1.5; this schedule knows times"),
        (lambda: NoiseSchedule.linear().t_of_sigma(-1), "sigma is -1; it must not be negative"),
        (
            lambda: NoiseSchedule.linear().t_of_sigma(1000),
            r"this schedule holds alpha_bar from .* \(sigma from 0 to 157",
        ),
        (lambda: NoiseSchedule.linear().t_of_log_snr(-800.0), "this schedule holds alpha_bar from"),
        (lambda: NoiseSchedule.linear().respaced([]), "are not ascending integers"),
        (lambda: NoiseSchedule.linear().respaced([5, 5]), "are not ascending integers"),
        (lambda: NoiseSchedule.linear().respaced([0, 1000]), r"integers in \[0, 1000\)"),
        (lambda: Level(0.0, 1.5), r"alpha_bar is 1.5; a level needs a value in \[0, 1\]"),
        (lambda: Level(0.0, float("nan")), "alpha_bar is nan"),
    ],
)
def test_bad_schedules_get_a_clear_error(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()

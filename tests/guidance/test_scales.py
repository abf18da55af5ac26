"""Schedules of guidance scales: their values, and that they are factors."""

from __future__ import annotations

import math
from typing import get_args

import pytest

from steerdiff import UserError
from steerdiff.guidance.scales import ScaleSchedule, check_schedule, scale_at
from steerdiff.samplers import CLEAN, NoiseSchedule

SCHEDULE = NoiseSchedule.cosine(101)
NAMES = get_args(ScaleSchedule)
LEVELS = [CLEAN, *(SCHEDULE.level(t) for t in (0, 0.5, 25, 50, 75, 100))]


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_is_a_factor_between_0_and_1_that_never_jumps_out(name: ScaleSchedule) -> None:
    assert all(0 <= scale_at(name, level, 101) <= 1 for level in LEVELS)


@pytest.mark.parametrize("name", ["linear", "cosine", "sigma"])
def test_the_ramps_rise_with_the_noise_from_0_to_1(name: ScaleSchedule) -> None:
    values = [scale_at(name, level, 101) for level in LEVELS]
    assert values == sorted(values) and values[0] == 0
    assert values[-1] == pytest.approx(1, abs=1e-3)


def test_the_values_are_those_that_the_names_say() -> None:
    quarter = SCHEDULE.level(25)
    assert scale_at("constant", quarter, 101) == 1
    assert scale_at("linear", quarter, 101) == 0.25
    assert scale_at("cosine", quarter, 101) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert scale_at("sigma", quarter, 101) == pytest.approx(math.sqrt(1 - quarter.alpha_bar))


def test_early_and_late_share_the_times_between_them() -> None:
    for level in LEVELS:
        early, late = (scale_at(name, level, 101) for name in ("early", "late"))
        assert early + late == 1 and early == (level.t >= 50.5)


def test_a_schedule_of_one_time_has_values_too() -> None:
    assert scale_at("linear", SCHEDULE.level(0), 1) == 0


def test_an_unknown_schedule_is_named_with_those_that_exist() -> None:
    with pytest.raises(UserError, match="schedule is 'square'; known are constant, linear"):
        check_schedule("square")
    with pytest.raises(UserError, match="schedule is 'square'"):
        scale_at("square", CLEAN, 10)  # type: ignore[arg-type]

"""The presets of other libraries' paths: their lists of times, their last levels, and steps that lead out of range."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.samplers import (
    CLEAN,
    CONVENTIONS,
    DDIM,
    PLMS,
    CompVis,
    DiffusersInverse,
    DiffusersSigmas,
    DiffusersTimes,
    Level,
    Noise,
    NoiseSchedule,
    Path,
    Prediction,
    integrate,
)

from ..helpers import eps_fn

STABLE = NoiseSchedule.scaled_linear()
X = Noise(1, (1, 4, 32, 32), dtype=torch.float64)()  # many numbers: the formula rounds only some of them


def smooth(x: Tensor, level: Level) -> Prediction:
    return Prediction.from_output(eps_fn(x, level.t), x, level)


def times(path: Path) -> list[float]:
    return [move.here.t for move in path]


@pytest.mark.parametrize("name", sorted(CONVENTIONS))
@pytest.mark.parametrize("steps", [1, 2, 10, 30, 50])
def test_every_convention_makes_a_path_of_about_so_many_moves(name: str, steps: int) -> None:
    path = CONVENTIONS[name](STABLE, steps)
    assert len(path) == (31 if (name, steps) == ("compvis", 30) else steps)
    assert all(0 <= level.t < 1000 for level in path.levels if not level.clean)
    assert path.gaps == (name == "diffusers-ddim-linspace" and steps > 1 or name.endswith("m-trailing") and steps == 30)
    assert all(move.schedule is STABLE for move in path)


@pytest.mark.parametrize(("steps", "length", "first", "last"), [(50, 50, 981, 1), (30, 31, 991, 1), (4, 4, 751, 1)])
def test_compvis_visits_every_so_many_th_time_plus_one(steps: int, length: int, first: int, last: int) -> None:
    path = CONVENTIONS["compvis"](STABLE, steps)
    assert (len(path), path.start.t, path[-1].here.t) == (length, first, last)
    assert path.end == STABLE.level(0)
    before = [STABLE.alpha_bar(0), *(move.here.alpha_bar for move in list(path)[:0:-1])]
    assert [move.there.alpha_bar for move in reversed(path)] == before


def test_compvis_equals_the_ddim_of_diffusers_where_the_steps_divide_the_times() -> None:
    for steps in (1, 10, 50, 100, 500):
        for name in ("diffusers-ddim", "diffusers-pndm"):
            assert CONVENTIONS["compvis"](STABLE, steps) == CONVENTIONS[name](STABLE, steps)


def test_plms_asks_twice_at_the_second_time_as_pndm_lists_it() -> None:
    asked = []

    def denoise(x: Tensor, level: Level) -> Prediction:
        asked.append(level.t)
        return smooth(x, level)

    integrate(denoise, PLMS(), CONVENTIONS["compvis"](STABLE, 5), X)
    assert asked == [801, 601, 601, 401, 201, 1]


def last_step(offset: int, alpha_one: bool) -> tuple[Path, Tensor, Tensor, Prediction]:
    """The path of a row, the latent before and after its last step, and the last prediction."""
    path = DiffusersTimes(offset=offset, alpha_one=alpha_one)(STABLE, 50)
    before = integrate(smooth, DDIM(), path[:-1], X)
    return path, before, integrate(smooth, DDIM(), path[-1:], before), smooth(before, path[-1].here)


def test_offset_one_without_alpha_one_leaves_a_little_noise() -> None:
    path, _, after, prediction = last_step(1, alpha_one=False)
    assert path == CONVENTIONS["diffusers-ddim"](STABLE, 50)
    assert (path[-1].here.t, path.end) == (1, STABLE.level(0))
    kept, left = math.sqrt(path.end.alpha_bar), math.sqrt(1 - path.end.alpha_bar)
    assert (kept, left) == (pytest.approx(0.99957, abs=1e-5), pytest.approx(0.0292, abs=1e-4))
    torch.testing.assert_close(after, kept * prediction.x0 + left * prediction.eps)
    assert not torch.allclose(after, prediction.x0, atol=1e-3)


def test_offset_one_with_alpha_one_returns_the_predicted_image() -> None:
    path, _, after, prediction = last_step(1, alpha_one=True)
    assert path == CONVENTIONS["diffusers-ddim-alpha-one"](STABLE, 50)
    assert (path[-1].here.t, path.end) == (1, CLEAN)
    assert torch.equal(after, prediction.x0)


def test_default_of_the_class_is_shifted_by_one_time() -> None:
    path, _, after, prediction = last_step(0, alpha_one=True)
    assert path == CONVENTIONS["diffusers-ddim-default"](STABLE, 50)
    assert times(path) == [t - 1 for t in times(CONVENTIONS["diffusers-ddim"](STABLE, 50))]
    assert torch.equal(after, prediction.x0)


def test_offset_zero_without_alpha_one_ends_with_a_step_that_changes_nothing() -> None:
    path, before, after, _ = last_step(0, alpha_one=False)
    assert path[-1].here == path[-1].there == STABLE.level(0)
    assert torch.equal(after, before)
    unmoved = integrate(smooth, PLMS(), path[-1:], before)
    assert torch.equal(unmoved, before)


def test_above_half_the_times_the_level_below_the_last_is_trained() -> None:
    path = DiffusersTimes(offset=1)(STABLE, 600)
    assert (path[-1].here.t, path.end) == (1, STABLE.level(0))  # not the clean image: 1 - 1000 // 600 is time 0


def test_linspace_of_ddim_reaches_levels_that_the_next_step_does_not_start_from() -> None:
    path = DiffusersTimes(spacing="linspace")(STABLE, 10)
    assert path.gaps
    assert (path[0].there.t, path[1].here.t) == (899, 888)
    part = path[3:]
    assert (part.gaps, len(part), part[0].index, part[0].here) == (True, 7, 0, path[3].here)
    with pytest.raises(UserError, match="inverted needs moves that meet"):
        path.inverted()
    with pytest.raises(UserError, match="with_jumps needs moves that meet"):
        path.with_jumps(2, 2)


def test_inverse_tells_the_network_the_time_of_the_next_level() -> None:
    path = CONVENTIONS["diffusers-ddim-inverse"](STABLE, 5)
    assert times(path) == [1, 201, 401, 601, 801]
    reached = [level.alpha_bar for level in path.levels]
    assert reached == [STABLE.alpha_bar(t) for t in (0, 1, 201, 401, 601, 801)]
    assert path.end == CONVENTIONS["diffusers-ddim"](STABLE, 5).start


def test_sigmas_are_linear_between_the_times_of_the_table() -> None:
    path = CONVENTIONS["diffusers-euler"](STABLE, 25)
    assert times(path) == np.linspace(999, 0, 25).tolist()
    low, high = STABLE.level(957).sigma, STABLE.level(958).sigma
    assert path[1].here.sigma == pytest.approx(low + 0.375 * (high - low), rel=1e-12)
    assert path[1].here.sigma != pytest.approx(STABLE.level(957.375).sigma, rel=1e-9)
    assert path.end == CLEAN


def test_karras_sigmas_carry_real_times_for_euler_and_whole_ones_for_dpm() -> None:
    real, whole = (CONVENTIONS[f"diffusers-{name}-karras"](STABLE, 10) for name in ("euler", "dpm++"))
    assert [level.alpha_bar for level in real.levels] == [level.alpha_bar for level in whole.levels]
    assert [round(t) for t in times(real)] == times(whole)
    assert times(real)[1] == pytest.approx(916.284, abs=2e-3)


def test_other_spacings_of_the_sigma_samplers_are_theirs() -> None:
    assert times(DiffusersSigmas(spacing="leading", offset=1)(STABLE, 4)) == [751, 501, 251, 1]
    assert times(DiffusersSigmas(grid="dpm++", spacing="leading", offset=1)(STABLE, 4)) == [801, 601, 401, 201]
    assert times(DiffusersSigmas(grid="dpm++")(STABLE, 4)) == [999, 749, 500, 250]
    for grid in ("euler", "dpm++"):
        assert times(DiffusersSigmas(grid=grid, spacing="trailing")(STABLE, 4)) == [999, 749, 499, 249]  # type: ignore[arg-type]
    assert DiffusersSigmas(grid="dpm++", final="sigma_min")(STABLE, 4).end == STABLE.level(0)
    assert math.isinf(DiffusersTimes(spacing="trailing")(STABLE.zero_terminal_snr(), 4).start.sigma)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CompVis()(STABLE, 300), r"the times would reach from 1 to 1000, outside \[0, 1000\)"),
        (lambda: CompVis()(STABLE, 0), "steps is 0; it must be from 1 to T = 1000"),
        (lambda: CompVis()(STABLE, 1001), "steps is 1001"),
        (lambda: DiffusersTimes(offset=1)(STABLE, 1000), "the times would reach from 1 to 1000"),
        (lambda: DiffusersInverse()(STABLE, 1000), "the times would reach from 1 to 1000"),
        (lambda: DiffusersSigmas(spacing="leading", offset=1)(STABLE, 1000), "the times would reach 1000, outside"),
        (lambda: DiffusersSigmas()(STABLE, 0), "steps is 0; it must be from 1 to T = 1000"),
        (lambda: DiffusersSigmas()(STABLE.zero_terminal_snr(), 5), "ends in pure noise has no largest sigma"),
        (lambda: DiffusersTimes(spacing="even"), "spacing is 'even'; known are leading, trailing, linspace"),
        (lambda: DiffusersTimes(offset=-1), "offset is -1; it must be at least 0"),
        (lambda: DiffusersSigmas(grid="ddim"), "grid is 'ddim'; known are euler, dpm"),
        (lambda: DiffusersSigmas(final="one"), "final is 'one'; known are zero, sigma_min"),
    ],
)
def test_conventions_that_cannot_be_followed_get_a_clear_error(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()

"""ILVR on exact models: what its constraint must do to the result, and where it must do nothing."""

from __future__ import annotations

import pytest
import torch

from steerdiff import UserError
from steerdiff.guidance import Model
from steerdiff.methods import ILVR, LowPass
from steerdiff.samplers import NoiseSchedule

from ..guidance.toys import formula_model, gaussian_eps, pictures

SCHEDULE = NoiseSchedule.linear(1000)
STD = 0.25


def gaussian(size: int = 32) -> Model:
    return formula_model(gaussian_eps(SCHEDULE, 0.0, STD), size, SCHEDULE)


@pytest.mark.parametrize("level", ["paper", "official"])
def test_a_range_of_all_steps_is_plain_sampling_with_the_same_seed(level: str) -> None:
    model, y = gaussian(), pictures(2, 32)
    free = ILVR(steps=30, range_t=29, downsample=4, reference_level=level, clip="none")(model, y, seed=3)
    plain = model.sample(n=2, steps=30, spacing="respaced", solver="ddpm", seed=3, clip="none")
    assert torch.equal(free, plain)
    held = ILVR(steps=30, range_t=28, downsample=4, reference_level=level, clip="none")(model, y, seed=3)
    assert not torch.equal(held, plain)


def test_the_result_has_the_low_frequencies_of_the_reference_up_to_the_last_free_step() -> None:
    model, y = gaussian(), pictures(4, 32) * 0.5
    phi = LowPass.of(8, y)
    result = ILVR(steps=50, range_t=0, downsample=8, clip="none")(model, y)
    plain = ILVR(steps=50, range_t=49, downsample=8, clip="none")(model, y)
    missed = float((phi.down(result) - phi.down(y)).abs().mean())
    assert missed < 0.004 < 0.02 < float((phi.down(plain) - phi.down(y)).abs().mean())


def test_with_a_projection_and_the_box_kernel_low_frequencies_are_exactly_the_reference_s() -> None:
    model, y = gaussian(), pictures(2, 32) * 0.5
    phi = LowPass.of(8, y, "box")
    for range_t in (0, 15):
        method = ILVR(steps=20, range_t=range_t, downsample=8, kernel="box", final_projection=True, clip="none")
        torch.testing.assert_close(phi.down(method(model, y)), phi.down(y), rtol=0, atol=1e-6)


def test_without_reduction_the_result_is_the_reference() -> None:
    model, y = gaussian(), pictures(2, 32)
    result = ILVR(steps=50, range_t=0, downsample=1)(model, y)
    assert float((result - y).abs().mean()) < 0.01  # one step from the lowest noise level, sqrt(1 - alpha_bar) = 0.01


def test_results_differ_more_between_seeds_as_the_factor_and_the_range_grow() -> None:
    model, y = gaussian(), (pictures(1, 32) * 0.5).expand(12, -1, -1, -1)

    def spread(factor: int, range_t: int) -> float:
        return float(ILVR(steps=20, downsample=factor, range_t=range_t, clip="none")(model, y).std(0).mean())

    by_factor = [spread(factor, 0) for factor in (1, 2, 4, 16)]
    by_range = [spread(4, range_t) for range_t in (0, 3, 8, 19)]
    assert by_factor == sorted(by_factor) and by_range == sorted(by_range)
    assert by_factor[-1] > 3 * by_factor[0]


def test_the_official_level_slip_changes_little() -> None:
    model, y = gaussian(), pictures(2, 32) * 0.5
    paper, official = (
        ILVR(steps=20, downsample=4, reference_level=level, range_t=0, clip="none")(model, y)
        for level in ("paper", "official")
    )
    difference = float((paper - official).abs().mean())
    assert 1e-4 < difference < 0.2 * float(paper.abs().mean())


def test_a_factor_too_large_for_the_image_lists_the_allowed_ones() -> None:
    with pytest.raises(UserError, match=r"downsample is 32; images of 32 pixels can be reduced by \[1, 2, 4, 8, 16\]"):
        ILVR()(gaussian(), pictures(1, 32))


def test_the_default_factor_fits_images_of_64_pixels() -> None:
    assert ILVR(steps=2)(gaussian(64), pictures(1, 64)).shape == (1, 3, 64, 64)

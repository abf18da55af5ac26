"""SDEdit on exact models: the kept region, the two ends of t0, and the trade of faithfulness for realism."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from steerdiff.guidance import Model
from steerdiff.methods import SDEdit
from steerdiff.samplers import NoiseSchedule, Path

from ..guidance.toys import Recording, formula_model, gaussian_eps, half_mask, pictures

SCHEDULE = NoiseSchedule.linear(1000)
STD = 0.25


def gaussian(size: int = 16, std: float = STD) -> Model:
    return formula_model(gaussian_eps(SCHEDULE, 0.0, std), size, SCHEDULE)


def gain(t0: float, steps: int) -> float:
    """Factor on the guide in the mean of the result, from the exact linear steps: sqrt(ab) times a gain a step."""
    path = Path.respaced(SCHEDULE, steps).from_t0(t0)
    factor = math.sqrt(path.start.alpha_bar)
    for move in path:
        a, b = move.here.alpha_bar, move.there.alpha_bar
        of_x0 = math.sqrt(a) * STD**2 / (a * STD**2 + 1 - a)  # the exact x0 prediction for x
        factor *= (move.beta * math.sqrt(b) * of_x0 + (1 - b) * math.sqrt(1 - move.beta)) / (1 - a)
    return factor


def test_no_noise_returns_the_image_itself() -> None:
    image = pictures(2, 16)
    assert torch.equal(SDEdit(t0=0)(gaussian(), image), image)
    assert torch.equal(SDEdit(t0=0)(gaussian(), image, half_mask(16)), image)


def test_one_level_of_noise_returns_nearly_the_image() -> None:
    network = Recording(gaussian_eps(SCHEDULE, 0.0, 0.5))
    image = pictures(2, 16)
    result = SDEdit(t0=0.001, repeats=1)(formula_model(network, 16, SCHEDULE), image)
    assert network.rows == [2]
    psnr = 20 * math.log10(2) - 10 * math.log10(float((result - image).square().mean()))
    assert psnr > 40


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_kept_region_is_exact(repeats: int) -> None:
    image, mask = pictures(2, 16), half_mask(16)
    result = SDEdit(t0=0.5, steps=40, repeats=repeats)(gaussian(), image, mask)
    kept = (mask == 0).expand_as(image)
    assert torch.equal(result[kept], image[kept])
    assert not torch.equal(result[~kept], image[~kept])


def test_the_official_kept_region_ends_with_the_noise_of_the_lowest_level() -> None:
    image, mask = pictures(8, 16), half_mask(16)
    result = SDEdit(t0=0.5, steps=40, repeats=2, official=True)(gaussian(), image, mask)
    kept = (mask == 0).expand_as(image)
    left = float((result[kept] - math.sqrt(SCHEDULE.alpha_bar(0)) * image[kept]).std())
    assert abs(left / 0.01 - 1) < 0.05


@pytest.mark.parametrize("official", [False, True])
def test_repeats_with_nothing_free_leave_the_image(official: bool) -> None:
    image = pictures(2, 16)
    result = SDEdit(t0=0.5, steps=20, official=official)(gaussian(), image, torch.zeros(1, 1, 16, 16))
    torch.testing.assert_close(result, image, rtol=0, atol=0.06 if official else 0)  # 0.01 z is left officially


def test_a_mask_of_ones_is_no_mask() -> None:
    image = pictures(2, 16)
    method = SDEdit(t0=0.5, steps=20)
    assert torch.equal(method(gaussian(), image, torch.ones(1, 1, 16, 16)), method(gaussian(), image))


@pytest.mark.parametrize("t0", [0.1, 0.3, 0.5, 1.0])
def test_the_guide_survives_by_the_exact_product_of_gains(t0: float) -> None:
    guide, nothing = torch.full((1, 3, 16, 16), 0.8), torch.zeros(1, 3, 16, 16)
    method = SDEdit(t0=t0, steps=50, repeats=1)
    with_guide, without = method(gaussian(), guide, seed=2), method(gaussian(), nothing, seed=2)
    slope = (with_guide - without) / 0.8
    torch.testing.assert_close(slope, torch.full_like(slope, gain(t0, 50)), rtol=0, atol=1e-5)


def test_repeats_multiply_the_gains() -> None:
    guide, nothing = torch.full((1, 3, 16, 16), 0.8), torch.zeros(1, 3, 16, 16)
    method = SDEdit(t0=0.3, steps=50, repeats=3)
    slope = (method(gaussian(), guide) - method(gaussian(), nothing)) / 0.8
    torch.testing.assert_close(slope, torch.full_like(slope, gain(0.3, 50) ** 3), rtol=0, atol=1e-5)


def test_a_full_walk_forgets_the_guide() -> None:
    assert gain(1.0, 50) < math.sqrt(SCHEDULE.alpha_bar(999)) < 0.0065


def test_faithfulness_falls_and_realism_grows_with_t0() -> None:
    guide = torch.full((4, 3, 16, 16), 1.0)  # four standard deviations off; n = 3072 pixels
    images = [SDEdit(t0=t0, steps=200, repeats=1)(gaussian(), guide) for t0 in (0.1, 0.2, 0.3, 0.4, 0.6)]

    def mean_square(x: Tensor) -> float:
        return float(x.square().mean())

    distance = [mean_square(image - guide) for image in images]
    oddness = [mean_square(image) / STD**2 for image in images]  # squared Mahalanobis distance a pixel, 1 is typical
    assert distance == sorted(distance) and oddness == sorted(oddness, reverse=True)
    assert abs(oddness[-1] - 1) < 0.15 and oddness[0] > 2


def test_each_official_repeat_starts_from_the_exact_kept_region() -> None:
    seen = list[Tensor]()

    def watching(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return gaussian_eps(SCHEDULE, 0.0, STD)(x, t)

    image, mask = pictures(1, 16), half_mask(16)
    SDEdit(t0=0.5, steps=6, repeats=2, official=True)(formula_model(watching, 16, SCHEDULE), image, mask)
    kept = (mask == 0).expand_as(image)
    first, second = seen[3], seen[4]  # of the second repeat; one noise and, by the slip, one level for both
    torch.testing.assert_close(first[kept], second[kept], rtol=0, atol=1e-6)

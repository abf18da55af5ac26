"""Extending augmentations: where their maps put things, their random numbers, and what is left as it is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from steerdiff import UserError
from steerdiff.guidance.augment import ExtendingAugmentations, fitted
from steerdiff.samplers import Noise

SIZE = 21
HALF = 0.5  # the number that means no angle and no shift
NEVER, ALWAYS = 1.0, 0.0  # numbers that leave a map out and that apply it


def numbers(**places: float) -> Tensor:
    """Numbers of one view [1, 1, 13] with no map at all, but for those named: by index, as ``n3=0.7``."""
    row = torch.tensor([NEVER, HALF, HALF, HALF, NEVER, *[0.0] * 8], dtype=torch.float64)
    for name, value in places.items():
        row[int(name[1:])] = value
    return row.reshape(1, 1, 13)


def spot(row: int, column: int, height: int = SIZE, width: int = SIZE) -> Tensor:
    image = torch.zeros(1, 1, height, width, dtype=torch.float64)
    image[..., row, column] = 1
    return image


def second(image: Tensor, chosen: Tensor, **fields: Any) -> Tensor:
    return ExtendingAugmentations(views=2, **fields).transformed(image, chosen)[:, 1]


def test_one_view_is_the_image_itself_and_draws_nothing() -> None:
    image = torch.rand(2, 3, 8, 8)
    views = ExtendingAugmentations(views=1)(image)
    assert views.shape == (2, 1, 3, 8, 8) and torch.equal(views[:, 0], image)


def test_the_first_view_is_the_image_itself() -> None:
    image = torch.rand(2, 3, 8, 8)
    augmentations = ExtendingAugmentations(views=5)
    views = augmentations(image, augmentations.stream(Noise(0, like=image)))
    assert views.shape == (2, 5, 3, 8, 8) and torch.equal(views[:, 0], image)
    assert not any(torch.equal(views[:, k], image) for k in range(1, 5))


def test_maps_that_do_not_apply_leave_the_view_bit_for_bit() -> None:
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(second(image, numbers(n1=0.9, n5=0.5)), image)


def test_maps_that_do_nothing_change_nothing() -> None:
    image = torch.rand(1, 2, 9, 14, dtype=torch.float64)
    torch.testing.assert_close(second(image, numbers(n0=ALWAYS, n4=ALWAYS)), image)


@pytest.mark.parametrize("size", [(SIZE, SIZE), (20, 40)])
def test_a_shift_moves_by_its_share_of_the_side_to_the_right_and_down(size: tuple[int, int]) -> None:
    height, width = size
    image = spot(10, 10, *size)
    right, down = 4 / (0.2 * width), 2 / (0.2 * height)  # pixels, as shares of the largest shift of 0.2
    moved = second(image, numbers(n0=ALWAYS, n2=(1 + right) / 2, n3=(1 + down) / 2), shift=0.2)
    torch.testing.assert_close(moved, spot(12, 14, *size), atol=1e-12, rtol=0)
    vertical = second(image, numbers(n0=ALWAYS, n2=1.0, n3=(1 + down) / 2), shift=0.2, shift_axes="vertical")
    torch.testing.assert_close(vertical, spot(12, 10, *size), atol=1e-12, rtol=0)


def test_the_border_is_repeated_where_a_shift_uncovers_it() -> None:
    moved = second(torch.full((1, 1, 8, 8), 0.7), numbers(n0=ALWAYS, n2=1.0, n3=0.0), shift=0.5)
    torch.testing.assert_close(moved, torch.full((1, 1, 8, 8), 0.7))


@pytest.mark.parametrize("size", [(SIZE, SIZE), (21, 31)])
def test_a_rotation_turns_about_the_centre_and_keeps_distances_in_pixels(size: tuple[int, int]) -> None:
    row, column = size[0] // 2, size[1] // 2
    turned = second(spot(row, column + 6, *size), numbers(n0=ALWAYS, n1=1.0), degrees=90.0)
    torch.testing.assert_close(turned, spot(row + 6, column, *size), atol=1e-12, rtol=0)
    there_and_back = second(turned, numbers(n0=ALWAYS, n1=0.0), degrees=90.0)
    torch.testing.assert_close(there_and_back, spot(row, column + 6, *size), atol=1e-12, rtol=0)


def test_perspective_brings_the_corners_inwards_and_leaves_grey_behind() -> None:
    bright = torch.ones(1, 1, SIZE, SIZE, dtype=torch.float64)
    all_in = numbers(n4=ALWAYS, **{f"n{k}": 4 / (0.5 * SIZE / 2) for k in range(5, 13)})  # each by 4 pixels
    small = second(bright, all_in, distortion=0.5)
    inside = torch.zeros_like(bright)
    inside[..., 4:-4, 4:-4] = 1
    torch.testing.assert_close(small[..., 5:-5, 5:-5], inside[..., 5:-5, 5:-5])
    assert not small[..., :3, :].any() and not small[..., :3].any()
    one = numbers(n4=ALWAYS, n5=4 / (0.5 * SIZE / 2), n6=4 / (0.5 * SIZE / 2))  # the upper left corner alone
    corner = second(spot(0, 0), one, distortion=0.5)
    assert float(corner[0, 0, 4, 4]) == pytest.approx(1, abs=1e-9)
    opposite = second(spot(SIZE - 1, SIZE - 1), one, distortion=0.5)
    assert float(opposite[0, 0, -1, -1]) == pytest.approx(1, abs=1e-9)


def test_each_map_applies_with_its_probability_and_its_numbers_fill_their_ranges() -> None:
    augmentations = ExtendingAugmentations(views=201)
    drawn = augmentations.draw(augmentations.stream(Noise(0, (50, 1))), 50)
    assert drawn.shape == (50, 200, 13) and drawn.dtype == torch.float64
    n = 50 * 200
    for index in range(13):
        share = float((drawn[..., index] < 0.7).double().mean())
        assert abs(share - 0.7) < 5 * math.sqrt(0.7 * 0.3 / n)
    assert drawn.min() > 0 and drawn.max() < 1


def test_an_image_s_views_do_not_depend_on_its_batch_nor_move_the_sampler_s_noise() -> None:
    image = torch.rand(3, 3, 8, 8)
    augmentations = ExtendingAugmentations()
    noise, untouched = Noise(5, like=image), Noise(5, like=image)
    stream = augmentations.stream(noise)
    first, later = augmentations(image, stream), augmentations(image, stream)
    assert not torch.equal(first, later)  # every step draws anew
    assert torch.equal(noise(), untouched()) and torch.equal(noise.fork("reference")(), untouched.fork("reference")())
    for k in range(3):
        alone = augmentations(image[k : k + 1], augmentations.stream(Noise(5 + k, like=image[:1])))
        torch.testing.assert_close(alone, first[k : k + 1])


def test_gradients_flow_to_the_image_through_every_view() -> None:
    image = torch.rand(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    augmentations = ExtendingAugmentations(views=3)
    chosen = augmentations.draw(augmentations.stream(Noise(1, (1, 1))), 1)
    assert torch.autograd.gradcheck(lambda x: augmentations.transformed(x, chosen), image)


def test_images_are_averaged_over_cells_to_a_smaller_size_and_squeezed() -> None:
    image = torch.rand(1, 3, 8, 12)
    small = fitted(image, 4)
    torch.testing.assert_close(small[0, 0, 0, 0], image[0, 0, :2, :3].mean())
    assert fitted(image, 10).shape == (1, 3, 10, 10)
    square = torch.rand(1, 3, 8, 8)
    assert torch.equal(fitted(square, 8), square)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExtendingAugmentations(views=0), "views is 0; there must be at least 1"),
        (lambda: ExtendingAugmentations(shift=-0.1), r"shift is -0.1; it must lie in \[0, 1\]"),
        (lambda: ExtendingAugmentations(distortion=2), r"distortion is 2; it must lie in \[0, 1\]"),
        (lambda: ExtendingAugmentations(probability=1.1), r"probability is 1.1; it must lie in \[0, 1\]"),
        (lambda: ExtendingAugmentations(degrees=math.inf), "degrees is inf; it must be a finite angle"),
        (lambda: ExtendingAugmentations(shift_axes="left"), "shift_axes is 'left'; known are both, vertical"),
        (lambda: ExtendingAugmentations()(torch.zeros(1, 3, 8, 8)), "1 images are to be augmented by the random"),
    ],
)
def test_bad_settings_get_a_clear_error(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()

"""Boxes, holes and degraded pictures: exact on small inputs, the same every time."""

from __future__ import annotations

import pytest
import torch

from steerdiff.errors import UserError
from steerdiff.io import to_uint8
from steerdiff.train.benchmark.inputs import (
    FACTOR,
    PALETTE,
    box_around,
    box_hole,
    low_resolution,
    stroke_hole,
    strokes,
)
from steerdiff.train.scenes import Draws, EmojiScenes

SCENES = EmojiScenes(seed=91, pairs=0.0)


def test_a_box_is_two_pixels_wider_on_each_side() -> None:
    mask = torch.zeros(1, 64, 64)
    mask[0, 10, 20] = mask[0, 15, 18] = 1
    box = box_around(mask)
    expected = torch.zeros(1, 64, 64)
    expected[0, 8:18, 16:23] = 1
    assert torch.equal(box, expected) and box.dtype == torch.float32


def test_a_box_stays_inside_the_image() -> None:
    mask = torch.zeros(1, 64, 64)
    mask[0, 0, 63] = 1
    assert torch.equal(box_around(mask).nonzero().amin(0), torch.tensor([0, 0, 61]))
    assert box_around(mask).sum() == 9
    assert torch.equal(box_around(torch.ones(1, 64, 64)), torch.ones(1, 64, 64))


def test_a_box_around_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match="marks nothing"):
        box_around(torch.zeros(1, 64, 64))


@pytest.mark.parametrize("cut", [box_hole, stroke_hole])
def test_holes_hide_a_part_of_the_object_and_leave_a_part(cut) -> None:
    for number in range(30):
        scene = SCENES[number]
        ink = (scene.image != scene.image[:, :1, :1]).any(0, keepdim=True).float()
        item = scene.scene.items[0]
        hole = cut(ink, (item.x, item.y), Draws(5, number))
        assert 0.4 <= (hole * ink).sum() / ink.sum() <= 0.8
        assert set(hole.unique().tolist()) == {0.0, 1.0} and hole.shape == (1, 64, 64)
        assert torch.equal(hole, cut(ink, (item.x, item.y), Draws(5, number)))


def test_a_stroke_is_as_thick_as_its_brush() -> None:
    scene = SCENES[0]
    ink = (scene.image != scene.image[:, :1, :1]).any(0, keepdim=True).float()
    hole = stroke_hole(ink, (32, 32), Draws(1, 1))
    assert torch.nn.functional.avg_pool2d(hole[None], 5, 1).max() == 1
    assert not torch.equal(hole, box_around(hole, margin=0))


def test_a_hole_needs_an_object() -> None:
    ink = torch.zeros(1, 64, 64)
    ink[0, 0, 0] = 1  # no part of one pixel can be hidden
    with pytest.raises(UserError, match="hides a part"):
        box_hole(ink, (32, 32), Draws(0, 0))


def test_low_resolution_holds_nothing_but_the_box_averages() -> None:
    image = SCENES[3].image
    small = torch.nn.functional.avg_pool2d(image[None], FACTOR)
    shuffled = image.reshape(3, 8, 8, 8, 8).flip(2, 4).reshape(3, 64, 64)  # within each box: the averages stay
    assert torch.equal(low_resolution(image), low_resolution(shuffled))
    again = torch.nn.functional.avg_pool2d(low_resolution(image)[None], FACTOR)
    assert (again - small).abs().mean() < 0.05  # of a range of 2
    flat = torch.full((3, 64, 64), 0.2)
    assert torch.equal(to_uint8(low_resolution(flat)), to_uint8(flat))


def test_strokes_have_at_most_six_colours_and_no_small_details() -> None:
    image = SCENES[3].image.clone()
    image[:, 2:6, 2:7] = 1  # a speck of 20 pixels, less than half of 7 x 7
    painted = strokes(image)
    assert len(painted.flatten(1).T.unique(dim=0)) <= PALETTE
    assert torch.equal(painted[:, 2:6, 2:7], painted[:, :1, :1].expand(3, 4, 5))
    assert torch.equal(painted, strokes(image))
    assert (painted - image).abs().mean() < 0.1


def test_strokes_of_few_colours_are_the_median_alone() -> None:
    image = torch.full((3, 64, 64), -1.0)
    image[:2, 20:] = 0.2
    image[2, 40:] = 1
    assert torch.equal(to_uint8(strokes(image)), to_uint8(image))

"""A mask that is found is scored as what the marked image changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from steerdiff import UserError
from steerdiff.io import to_uint8
from steerdiff.scripts.evaluation.cells import call
from steerdiff.scripts.evaluation.contestants import RUNNERS, InferredMask
from steerdiff.train.benchmark import Case, draw_cases, score_edits


class Found:
    """Finds a given mask, and notes what it was told."""

    def __init__(self, mask: Tensor) -> None:
        self.found, self.told = mask, dict[str, Any]()

    def mask(self, model: Any, image: Tensor, **told: Any) -> Tensor:
        self.told = told
        return self.found


def marked(cases: list[Case], mask: Tensor, **fields: Any) -> tuple[Tensor, dict[str, Any]]:
    finder, model = Found(mask), SimpleNamespace(device="cpu")
    images = call(InferredMask(finder=finder, **fields), model, cases, [5, 6])  # type: ignore[arg-type]
    return images, finder.told


def test_the_iou_of_a_marked_image_is_that_of_its_mask_and_the_true_one() -> None:
    cases = list(draw_cases("object", 2))
    image, truth = (to_uint8(torch.stack([getattr(case, name) for case in cases])).int() for name in ("image", "truth"))
    true = ((image - truth).abs().amax(1, keepdim=True) > 20).float()
    left = torch.cat([torch.ones(2, 1, 64, 32), torch.zeros(2, 1, 64, 32)], -1)
    masks = (true, torch.ones_like(true), torch.zeros_like(true), left)
    images = torch.stack([to_uint8(marked(cases, mask)[0]) for mask in masks], 1)  # in the places of seeds
    found = score_edits(cases, images).values["iou"].tolist()
    for case, one in enumerate(true):
        halves = float((one * left[case]).sum() / ((one + left[case]) > 0).sum())
        assert found[case] == pytest.approx([1, float(one.mean()), 0, halves])
        assert 0.1 < halves < 0.9


def test_the_finder_is_told_both_texts_or_the_target_alone_and_no_mask() -> None:
    cases = list(draw_cases("object", 2))
    assert all(case.mask is not None for case in cases)
    nothing, targets = torch.zeros(2, 1, 64, 64), [case.target_text for case in cases]
    images, told = marked(cases, nothing)
    assert torch.equal(images, torch.stack([case.image for case in cases]))
    assert told == {"prompt": [case.source_text for case in cases], "target": targets, "seed": [5, 6]}
    assert marked(cases, nothing, reference="empty")[1] == {"prompt": "", "target": targets, "seed": [5, 6]}


def test_an_unknown_reference_is_an_error() -> None:
    assert RUNNERS["diffedit-mask"] is InferredMask
    with pytest.raises(UserError, match="reference is 'none'; known are caption, empty"):
        InferredMask(reference="none")  # type: ignore[arg-type]

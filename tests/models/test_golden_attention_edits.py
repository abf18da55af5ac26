"""Attention edits as data give the edited maps of Prompt-to-Prompt's own controllers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from steerdiff.models import AttentionEdit

from ..helpers import golden_files, load_golden

FILES = golden_files("p2p/edit_*")


def edit_of(arrays: dict[str, Any], step: int, **changes: Any) -> AttentionEdit:
    """The edit of one step; a refinement's row of source words, -1 where a word is new, becomes a matrix."""
    mapper, blend = torch.from_numpy(arrays["mapper"]).float(), None
    if "alphas" in arrays:
        aligned = mapper.long()
        blend = torch.from_numpy(arrays["alphas"]).float().reshape(aligned.shape)
        mapper = torch.nn.functional.one_hot(aligned.clamp(min=0), aligned.shape[1]).float().transpose(1, 2)
    gate = torch.from_numpy(arrays["alpha_words"][step]).float().reshape(1, -1)
    fields = {"mapper": mapper, "blend": blend, "gate": gate, **changes}
    return AttentionEdit(source=(0,), target=(1,), **fields)


@pytest.mark.parametrize("path", FILES, ids=lambda path: Path(path).stem)
def test_edited_maps_equal_those_of_the_official_controllers(path: Path) -> None:
    arrays, _ = load_golden(path)
    attention = torch.from_numpy(arrays["in.attn"])
    equalizer = torch.from_numpy(arrays["equalizer"]).float()
    steps = sorted(int(name.removeprefix("out.step")) for name in arrays if name.startswith("out.step"))
    assert steps
    for step in steps:
        expected = {
            f"out.step{step}": edit_of(arrays, step),
            f"out.reweight_step{step}": edit_of(arrays, step, equalizer=equalizer),
            f"out.reweight_only_step{step}": edit_of(arrays, step, equalizer=equalizer, mapper=None, blend=None),
        }
        for name, edit in expected.items():
            close(edit.edited(attention[:1], attention[1:]), arrays[name])


def close(result: Tensor, expected: Any) -> None:
    torch.testing.assert_close(result, torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_golden_edits_are_there() -> None:
    assert len(FILES) >= 2

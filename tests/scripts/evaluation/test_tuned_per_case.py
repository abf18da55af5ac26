"""Cells of a method that tunes to each image: what counts, and what a second try finds of the first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import steerdiff
from steerdiff.methods import UniTune
from steerdiff.methods.unitune import PRESETS
from steerdiff.scripts.evaluation.cells import Cell, compute

_MOVES = 2
_SETTINGS = replace(PRESETS["emoji64"], tune_steps=1, batch_size=1, t0=1.0, steps=_MOVES)


def test_each_case_is_tuned_once_and_only_the_way_down_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERDIFF_CACHE", str(tmp_path))
    model = steerdiff.load("emoji64")
    cell = Cell(method="unitune", settings=_SETTINGS, task="style", cases=2, seeds=(0,))
    tunings: list[str] = []
    tune = UniTune.finetune

    def stopped(self: Any, *arguments: Any, **options: Any) -> Any:
        if len(tunings) == 1:
            raise KeyboardInterrupt
        tunings.append("one")
        return tune(self, *arguments, **options)

    monkeypatch.setattr(UniTune, "finetune", stopped)
    with pytest.raises(KeyboardInterrupt):
        compute(cell, model)
    assert len(list(tmp_path.glob("deltas/*.safetensors"))) == 1

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        tunings.append("one")
        return tune(self, *arguments, **options)

    monkeypatch.setattr(UniTune, "finetune", counted)
    first = compute(cell, model)
    assert len(tunings) == 2 and first.evaluations == 2 * _MOVES  # guided
    again = compute(cell, model)
    assert len(tunings) == 2 and torch.equal(again.images, first.images)
    assert not torch.equal(first.images[0], first.images[1])

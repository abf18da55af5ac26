"""Cells of a method that tunes to each image: what counts, and what a second try finds of the first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import steerdiff
from steerdiff.io import to_uint8
from steerdiff.methods import DreamBooth, UniTune
from steerdiff.methods.dreambooth import PRESETS as DREAMBOOTH
from steerdiff.methods.finetuned import with_delta
from steerdiff.methods.unitune import PRESETS
from steerdiff.models.delta import load_delta
from steerdiff.scripts.evaluation.cells import Cell, compute
from steerdiff.train.benchmark import draw_cases

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


def test_the_class_is_drawn_by_the_models_that_were_tuned_to_the_subjects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERDIFF_CACHE", str(tmp_path))
    model = steerdiff.load("emoji64")
    small = {"n_class": 1, "class_steps": 1, "tune_steps": 1, "batch_size": 1, "steps": _MOVES, "ema_decay": 0.0}
    settings = replace(DREAMBOOTH["emoji64"], **small, learning_rate=1e-2)

    def of(task: str, **changes: Any) -> torch.Tensor:
        method = replace(settings, **changes)
        return compute(Cell(method="dreambooth", settings=method, task=task, cases=2, seeds=(0,)), model).images

    subject = of("subject")
    deltas = sorted(tmp_path.glob("deltas/*.safetensors"))
    assert len(deltas) == 2
    monkeypatch.setattr(DreamBooth, "finetune", None)  # whatever is tuned now is an error
    drawn = of("class beside subject")
    assert not torch.equal(drawn, subject) and not torch.equal(drawn, of("class beside subject", tune_steps=0))
    cases = draw_cases("class beside subject", 2)
    for k, case in enumerate(cases):  # as one would draw it by hand, without the identifier
        tuned = with_delta(model, next(one for one in map(load_delta, deltas) if case.source_text in str(one.settings)))
        alone = tuned.sample(case.target_text, steps=_MOVES, guidance=3.0, solver=settings.solver, seed=k)
        assert (to_uint8(alone)[0].int() - drawn[k, 0].int()).abs().max() <= 1

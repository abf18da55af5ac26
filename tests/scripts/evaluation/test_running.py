"""Cells in one process: read or computed, refused where code or weights changed, failed without stopping others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.methods import RePaint
from steerdiff.scripts.arguments import parse
from steerdiff.scripts.evaluation import contestants, dependencies, provenance, work
from steerdiff.scripts.evaluation.cells import Cell
from steerdiff.scripts.evaluation.contestants import TextToImage, Unchanged
from steerdiff.scripts.evaluation.dependencies import read_source
from steerdiff.scripts.evaluation.running import RunFlags, run_cells

STILL = Cell(method="unchanged", settings=Unchanged(), task="colour", cases=2, seeds=(0,))
SAMPLE = Cell(method="sample", settings=TextToImage(steps=1), task="colour", cases=1, seeds=(0, 3))
PARSE = dependencies._parse_installed


ERRORS = {
    "refused": (UserError("t0 is 7; it must lie in [0, 1]"), "t0 is 7; it must lie in [0, 1]"),
    "bug": (ZeroDivisionError("a bug\nof two lines"), "ZeroDivisionError: a bug of two lines"),
    "device": (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
    "memory": (MemoryError(), "MemoryError"),
}


@dataclass(frozen=True, kw_only=True)
class Raises:
    """Raises one of ``ERRORS``."""

    kind: str

    def __call__(self, model: Any, image: Tensor, **_: Any) -> Tensor:
        raise ERRORS[self.kind][0]


@pytest.fixture
def flags(tmp_path: Path) -> RunFlags:
    return RunFlags(cache=tmp_path / "cells")


@pytest.fixture
def other_code() -> Iterator[None]:
    """Forget the hashes of code that is not that of the library."""
    yield
    provenance._code.cache_clear()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the cells that were computed."""
    keys: list[str] = []
    compute = work.compute

    def note(cell: Cell, model: Any) -> Any:
        keys.append(cell.key)
        return compute(cell, model)

    monkeypatch.setattr(work, "compute", note)
    return keys


def files(flags: RunFlags) -> list[Path]:
    return sorted(flags.cache.glob("*/*"))


def test_outcomes_come_in_the_order_asked_for_and_a_cell_asked_for_twice_runs_once(
    flags: RunFlags, computed: list[str]
) -> None:
    outcomes = run_cells([SAMPLE, STILL, SAMPLE], flags)
    assert [outcome.cell.key for outcome in outcomes] == [SAMPLE.key, STILL.key, SAMPLE.key]
    assert computed == [SAMPLE.key, STILL.key] and len(files(flags)) == 2
    first, still, again = (outcome.result for outcome in outcomes)
    assert first is not None and still is not None and again is not None
    assert torch.equal(first.images, again.images) and first.images.shape == (1, 2, 3, 64, 64)
    assert first.evaluations == 2.0 and still.evaluations == 0.0  # guidance has two branches


def test_a_widened_run_computes_only_what_is_new_and_a_full_store_needs_no_model(
    flags: RunFlags, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = run_cells([SAMPLE], flags)
    run_cells([STILL, SAMPLE], flags)
    assert computed == [SAMPLE.key, STILL.key]
    work.loaded.cache_clear()
    monkeypatch.setattr(RunFlags, "load", None)
    monkeypatch.setattr("steerdiff.scripts.runtime.ModelFlags.load", None)
    after, _ = run_cells([SAMPLE, STILL], flags)
    assert before.result is not None and after.result is not None
    assert torch.equal(before.result.images, after.result.images)
    assert (before.result.seconds, before.result.evaluations) == (after.result.seconds, after.result.evaluations)


def edited(module: str, old: str, new: str) -> Any:
    """Return what parses the library's modules as they would be after an edit of one of them."""
    name = f"steerdiff.{module}"
    text, is_package = read_source(name) or ("", False)
    assert old in text
    changed = dependencies._parsed(name, {name: (text.replace(old, new), is_package)}.get)
    return lambda asked: changed if asked == name else PARSE(asked)


@pytest.mark.usefixtures("other_code")
def test_cells_of_other_code_are_refused_before_any_compute_and_computed_again_if_asked(
    flags: RunFlags, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_cells([SAMPLE, STILL], flags)
    old = {path: path.read_bytes() for path in files(flags)}
    computed.clear()
    provenance._code.cache_clear()
    edit = edited("guidance.model", "return 1 if", "return 1  if")  # formatting
    monkeypatch.setattr(dependencies, "_parse_installed", edit)
    assert [outcome.error for outcome in run_cells([SAMPLE, STILL], flags)] == [None, None] and not computed
    provenance._code.cache_clear()
    edit = edited("scripts.evaluation.contestants", "batch=len(prompt)", "batch=len(image) + 0")
    monkeypatch.setattr(dependencies, "_parse_installed", edit)
    new = replace(STILL, seeds=(5,))
    with pytest.raises(UserError) as caught:
        run_cells([new, STILL, SAMPLE], flags)
    message = str(caught.value)
    assert "1 of 3 cells, such as sample on colour in" in message and SAMPLE.key in message
    assert "were stored with other code (scripts.evaluation.contestants): --fresh computes them again" in message
    assert "the stored results stay" in message and not computed
    outcomes = run_cells([new, STILL, SAMPLE], replace(flags, fresh=True))
    assert computed == [new.key, SAMPLE.key] and all(outcome.error is None for outcome in outcomes)
    assert {path: path.read_bytes() for path in old} == old and len(files(flags)) == 4
    run_cells([SAMPLE], flags)  # what --fresh computed is found without it
    monkeypatch.setattr(dependencies, "_parse_installed", PARSE)
    provenance._code.cache_clear()
    run_cells([SAMPLE, STILL], flags)  # and so is the old, once the code is back
    assert computed == [new.key, SAMPLE.key]


def test_cells_of_other_weights_are_refused_and_computed_again_if_asked(
    flags: RunFlags, tmp_path: Path, computed: list[str]
) -> None:
    mine = tmp_path / "weights.safetensors"
    model = RunFlags().load()
    shutil.copy(model.files[0], mine)
    flags = replace(flags, weights=str(mine))
    run_cells([STILL], flags)
    data = bytearray(mine.read_bytes())
    data[-1] ^= 1
    mine.write_bytes(data)
    with pytest.raises(UserError, match=r"^the cell unchanged on colour in .* was stored with other weights: --fresh"):
        run_cells([STILL], flags)
    (outcome,) = run_cells([STILL], replace(flags, fresh=True))
    assert outcome.result is not None and computed == [STILL.key] * 2 and len(files(flags)) == 2


def test_weights_that_are_replaced_after_planning_are_noticed(flags: RunFlags, tmp_path: Path) -> None:
    model = RunFlags().load()
    with pytest.raises(UserError, match="the weights 'emoji64' were replaced while the command was running"):
        work.loaded(work.model_flags(flags), "another hash")
    assert work.loaded(work.model_flags(flags), model.weights_hash).weights_hash == model.weights_hash


@pytest.mark.parametrize("kind", ERRORS)
def test_a_cell_that_fails_says_why_in_one_line_and_does_not_stop_the_others(
    flags: RunFlags, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(contestants.RUNNERS, "raises", Raises)  # type: ignore[arg-type]
    bad = Cell(method="raises", settings=Raises(kind=kind), task="colour", cases=1, seeds=(0,))
    outcomes = run_cells([bad, STILL], flags)
    assert (outcomes[0].error, outcomes[0].result) == (ERRORS[kind][1], None)
    assert outcomes[1].error is None and outcomes[1].result is not None
    assert len(files(flags)) == 1  # nothing is stored of what failed


def test_a_setting_that_does_not_fit_fails_its_cell(flags: RunFlags) -> None:
    bad = Cell(method="repaint", settings=RePaint(steps=4), task="style", cases=1, seeds=(0,))
    outcomes = run_cells([bad, STILL], flags)
    assert outcomes[0].error is not None and "needs a mask" in outcomes[0].error and outcomes[1].error is None


def test_an_interrupt_ends_the_run_and_keeps_what_is_stored(flags: RunFlags, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = work.compute

    def interrupted(cell: Cell, model: Any) -> Any:
        if cell.method == "sample":
            raise KeyboardInterrupt
        return compute(cell, model)

    monkeypatch.setattr(work, "compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_cells([STILL, SAMPLE, replace(STILL, seeds=(1,))], flags)
    assert len(files(flags)) == 1


def test_a_damaged_result_is_warned_of_and_computed_again(flags: RunFlags, computed: list[str]) -> None:
    run_cells([STILL], flags)
    (path,) = files(flags)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.warns(UserWarning, match="is not used"):
        (outcome,) = run_cells([STILL], flags)
    assert outcome.result is not None and computed == [STILL.key] * 2
    assert [file.name for file in files(flags)] == [path.name, f"{path.name}.damaged-1"]


def test_a_full_disk_stops_the_run(flags: RunFlags, monkeypatch: pytest.MonkeyPatch, computed: list[str]) -> None:
    def full(*_: Any) -> None:
        raise UserError("no space is left on the disk")

    monkeypatch.setattr("steerdiff.scripts.evaluation.store.Store.write", full)
    with pytest.raises(UserError, match="no space is left"):
        run_cells([STILL, SAMPLE], flags)
    assert computed == [STILL.key]


def test_progress_is_one_bar_over_cells_or_nothing(flags: RunFlags, capsys: pytest.CaptureFixture[str]) -> None:
    run_cells([STILL], flags)
    assert capsys.readouterr().err == ""
    run_cells([STILL, SAMPLE], flags, progress="edits")
    shown = capsys.readouterr().err
    assert "edits: " in shown and "1/1" in shown and "sample on colour" in shown


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"jobs": 0}, "jobs is 0; it must be at least 1"),
        ({"slurm": 0}, "slurm is 0; it is the number of tasks"),
        ({"slurm": 2, "jobs": 2}, "give one of them"),
        ({"slurm_time": 0}, "slurm_time is 0"),
        ({"wait": False}, "do nothing without slurm"),
        ({"slurm_partition": "gpu"}, "do nothing without slurm"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RunFlags(**given)


def test_flags_are_read_from_the_command_line() -> None:
    words = ["--cache", "here", "--fresh", "--slurm", "4", "--slurm-partition", "gpu", "--slurm-time", "5", "--no-wait"]
    given = RunFlags(cache=Path("here"), fresh=True, slurm=4, slurm_partition="gpu", slurm_time=5, wait=False)
    assert parse(RunFlags, words, prog="test") == given
    assert parse(RunFlags, ["--jobs", "3"], prog="test") == RunFlags(jobs=3)

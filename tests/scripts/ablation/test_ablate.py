"""The command as users run it: cached cells, tables, plots and the sheet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from steerdiff.scripts.ablation.plan import Plan, Request, plan
from steerdiff.scripts.evaluation import work
from steerdiff.scripts.evaluation.cells import Cell, Result, compute, score
from steerdiff.scripts.evaluation.provenance import machine, provenance
from steerdiff.scripts.evaluation.running import RunFlags
from steerdiff.scripts.evaluation.store import Store
from steerdiff.train.benchmark import summary

from ..conftest import Done

SMALL = ("--cases", 2, "--seeds", 2, "--set", "steps=1")
TABLES = ("ablation.csv", "cases.csv", "ablation.md")


class Ablate:
    """Runs ``steerdiff ablate sample`` in a folder of its own, and notes which cells are computed."""

    def __init__(self, steerdiff: Callable[..., Done], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steerdiff, self.folder = steerdiff, folder
        self.computed: list[Cell] = []
        self.stop_before: int | None = None  # cells
        self.broken: Callable[[Cell], bool] = lambda cell: False
        monkeypatch.setattr(work, "compute", self._compute)

    def _compute(self, cell: Cell, *others: Any) -> Result:
        if len(self.computed) == self.stop_before:
            raise KeyboardInterrupt
        if self.broken(cell):
            raise RuntimeError("this one breaks")
        self.computed.append(cell)
        return compute(cell, *others)

    def __call__(self, *words: object, method: str = "sample", out: str = "out", small: bool = True) -> Done:
        places = ("--cache", self.folder / "cells", "--out", self.folder / out)
        return self.steerdiff("ablate", method, *words, *(SMALL if small else ()), *places)

    def bytes_of(self, name: str, out: str = "out") -> bytes:
        return (self.folder / out / name).read_bytes()

    def rows(self, name: str = "ablation.csv", out: str = "out") -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.bytes_of(name, out).decode(), newline="")))


@pytest.fixture
def ablate(steerdiff: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ablate:
    return Ablate(steerdiff, tmp_path, monkeypatch)


def small_plan(*sweeps: str) -> Plan:
    return plan("sample", Request(sweep=sweeps, set=("steps=1",), cases=2, seeds=2))


def stored(folder: Path, cell: Cell) -> Result:
    result = Store(folder / "cells").read(cell, provenance(cell, machine(RunFlags())))
    assert result is not None
    return result


def test_the_tables_hold_the_scores_of_the_stored_images(ablate: Ablate) -> None:
    done = ablate("--sweep", "guidance=1,3")
    assert done.code == 0
    assert "sample: guidance: 2 cells of 4 images, 0 of them stored" in done.out
    assert ablate.bytes_of("ablation.md").decode() in done.out
    rows, images = ablate.rows(), ablate.rows("cases.csv")
    for cell in small_plan("guidance=1,3").cells:
        assert cell is not None
        scores = score(cell, stored(ablate.folder, cell))
        own = {row["score"]: row for row in rows if row["key"] == cell.key}
        assert {"right", "diversity", "kid"} <= set(own)
        for name, row in own.items():
            interval = summary(scores, name)
            assert interval is not None and row["guidance"] == str(cell.settings.guidance)
            assert [float(row[end]) for end in ("value", "low", "high")] == [
                interval.value,
                interval.low,
                interval.high,
            ]
        assert {own[name]["n"] for name in ("right", "kid")} == {"4"} and own["diversity"]["n"] == "2"
        for row in (row for row in images if row["key"] == cell.key and row["score"] == "right"):
            assert float(row["value"]) == scores.values["right"][int(row["case"]), int(row["seed"])]
        assert sum(row["key"] == cell.key and row["score"] == "right" for row in images) == 4
    assert [row["evaluations"] for row in rows if row["score"] == "right"] == ["1.0", "2.0"]
    assert {row["split"] for row in images if row["case"] == "1"} == {"held_out"}


def test_the_csv_is_as_rfc_4180_has_it_with_commas_in_values(ablate: Ablate) -> None:
    assert ablate("--sweep", "solver=ddim;dpm++2m:variant=heun,few_steps=5").code == 0
    text = ablate.bytes_of("ablation.csv").decode()
    assert text.count("\r\n") == text.count("\n") and '"dpm++2m:few_steps=5,variant=heun"' in text
    assert {row["solver"] for row in ablate.rows()} == {"ddim", "dpm++2m:few_steps=5,variant=heun"}


def test_everything_else_stands_in_the_json(ablate: Ablate) -> None:
    ablate("--sweep", "guidance=1,3")
    facts = json.loads(ablate.bytes_of("ablation.json"))
    assert facts["command"].startswith("steerdiff ablate sample --sweep guidance=1,3 --cases 2")
    assert facts["base"]["steps"] == 1 and facts["axes"] == [{"fields": ["guidance"], "values": [[1.0], [3.0]]}]
    assert [point["cell"]["settings"]["guidance"] for point in facts["points"]] == [1.0, 3.0]
    assert all(point["seconds"] > 0 and point["error"] is None for point in facts["points"])
    assert facts["weights"] == machine(RunFlags())["weights"] and "torch" in facts["environment"]


def test_a_trade_off_is_a_picture_more_and_stands_in_the_json(ablate: Ablate) -> None:
    done = ablate("--sweep", "guidance=1,3", "--tradeoff", "right,diversity")
    assert done.code == 0 and "tradeoff.png, sheet.png" in done.out
    assert ablate.bytes_of("tradeoff.png").startswith(b"\x89PNG")
    assert json.loads(ablate.bytes_of("ablation.json"))["tradeoff"] == ["right", "diversity"]
    again = ablate("--sweep", "guidance=1,3", out="plain")
    assert "tradeoff.png" not in again.out and not (ablate.folder / "plain/tradeoff.png").exists()
    bad = ablate("--sweep", "guidance=1,3", "--tradeoff", "right,diverse")
    assert bad.code == 2 and "did you mean diversity" in bad.err


def test_a_killed_sweep_goes_on_and_its_tables_are_the_same_bytes(ablate: Ablate) -> None:
    sweep = ("--sweep", "guidance=1,3", "--sweep", "solver=ddim,ddpm")
    ablate.stop_before = 2
    assert ablate(*sweep).code == 130
    assert not (ablate.folder / "out").exists() or not any((ablate.folder / "out").iterdir())
    ablate.stop_before = None
    assert "4 cells of 4 images, 2 of them stored" in ablate(*sweep).out
    assert len(ablate.computed) == 4
    for path in (ablate.folder / "cells").rglob("*.npz"):
        path.unlink()
    assert ablate(*sweep, out="whole").code == 0
    assert len(ablate.computed) == 8
    for name in TABLES:
        assert ablate.bytes_of(name) == ablate.bytes_of(name, "whole"), name


def test_a_widened_sweep_computes_only_what_is_new(ablate: Ablate) -> None:
    ablate("--sweep", "guidance=1,3")
    before = ablate.rows()
    ablate("--sweep", "guidance=1,2,3")
    assert [cell.settings.guidance for cell in ablate.computed] == [1.0, 3.0, 2.0]
    assert [row for row in ablate.rows() if row["guidance"] != "2.0"] == before
    ablate("--sweep", "guidance=1:3:3")
    assert len(ablate.computed) == 3


def test_a_failed_cell_is_reported_and_does_not_stop_the_rest(ablate: Ablate) -> None:
    ablate.broken = lambda cell: cell.settings.guidance == 2.0
    done = ablate("--sweep", "guidance=1,2,3")
    assert done.code == 1
    assert [cell.settings.guidance for cell in ablate.computed] == [1.0, 3.0]
    (row,) = [row for row in ablate.rows() if row["error"]]
    assert (row["guidance"], row["score"], row["value"]) == ("2.0", "", "") and "this one breaks" in row["error"]
    assert "Failed, 1 of 3:" in done.out and "- guidance = 2: " in done.out
    assert (ablate.folder / "out" / "plot-guidance.png").is_file() and (ablate.folder / "out" / "sheet.png").is_file()
    ablate.broken = lambda cell: False
    assert ablate("--sweep", "guidance=1,2,3").code == 0
    assert len(ablate.computed) == 3


def test_a_refused_point_is_reported_beside_those_that_run(ablate: Ablate) -> None:
    done = ablate("--sweep", "solver=ddim,dpm++2m", "--sweep", "solver.eta=0,1")
    assert done.code == 1
    assert "2 cells of 4 images, 0 of them stored; 2 of the grid's 4 points are refused" in done.out
    assert [row["error"] != "" for row in ablate.rows() if row["score"] in ("", "right")] == [False, False, True, True]


def test_a_sweep_of_which_nothing_comes_has_tables_but_no_pictures(ablate: Ablate) -> None:
    ablate.broken = lambda cell: True
    assert ablate("--sweep", "guidance=1").code == 1
    assert sorted(path.name for path in (ablate.folder / "out").iterdir()) == sorted([*TABLES, "ablation.json"])


def test_there_is_a_plot_for_each_sweep_and_a_sheet(ablate: Ablate) -> None:
    assert ablate("--sweep", "guidance+spacing=1+respaced,3+log_snr", "--sweep", "solver=ddim").code == 0
    for name in ("plot-guidance+spacing.png", "plot-solver.png", "sheet.png"):
        with Image.open(ablate.folder / "out" / name) as picture:
            assert min(picture.size) > 200


def test_evaluations_are_counted_even_where_there_are_none(ablate: Ablate) -> None:
    done = ablate("--sweep", "t0=0,0.5", "--set", "steps=2", "--cases", 1, "--seeds", 1, method="sdedit", small=False)
    assert done.code == 0
    assert [row["evaluations"] for row in ablate.rows() if row["score"] == "right"] == [
        "0.0",
        "6.0",
    ]  # 3 repeats, 1 step, 2 branches
    assert {row["seed"] for row in ablate.rows("cases.csv")} == {"0"}


def test_a_file_and_flags_mix_on_the_command_line(ablate: Ablate) -> None:
    file = ablate.folder / "mine.yaml"
    file.write_text("method: sample\ntitle: Mine\nbase: {steps: 1}\nsweep: {guidance: [1, 3]}\ncases: 2\nseeds: 2\n")
    done = ablate("--config", file, "--set", "guidance=2", "--sweep", "solver=ddim", small=False)
    assert done.code == 0 and done.out.startswith("Mine: 1 cell of 4 images")
    (cell,) = ablate.computed
    assert (cell.settings.guidance, cell.settings.steps, cell.task) == (2.0, 1, "draw")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "there is nothing to vary; give --sweep FIELD=A,B,C"),
        (("--sweep", "guidence=1"), "TextToImage has no field 'guidence'; did you mean guidance?"),
        (("--sweep", "guidance=1", "--jobs", "0"), "jobs is 0"),
        (("--sweep", "guidance=1", "--config", "ilvr-range"), "ilvr-range is an ablation of ilvr, not of sample"),
        (("--sweep", "guidance=1", "--weights", "none.pt"), "none.pt"),
    ],
)
def test_bad_input_is_one_line_and_nothing_runs(ablate: Ablate, words: tuple[str, ...], message: str) -> None:
    done = ablate(*words)
    assert done.code == 2 and done.err.startswith("steerdiff: ") and done.err.count("\n") == 1
    assert message in done.err and ablate.computed == []


def test_help_lists_methods_files_and_flags(steerdiff: Callable[..., Done]) -> None:
    assert "repaint" in steerdiff("ablate").out and "ilvr-factor" in steerdiff("ablate", "--help").out
    done = steerdiff("ablate", "sdedit", "--help")
    assert done.code == 0 and "--sweep" in done.out and "a row for each cell" in " ".join(done.out.split())
    assert steerdiff("ablate", "--sweep", "t0=1").err == (
        "steerdiff: the method comes first: steerdiff ablate METHOD --sweep ...\n"
    )
    assert "--config names no file" in steerdiff("ablate", "sdedit", "--config").err
    assert "did you mean sdedit" in steerdiff("ablate", "sdedt", "--sweep", "t0=1").err

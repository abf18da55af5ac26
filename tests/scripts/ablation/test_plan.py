"""What a study in a file and the flags beside it come to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steerdiff.errors import UserError
from steerdiff.methods import ILVR, SDEdit
from steerdiff.methods.sdedit import PRESETS
from steerdiff.samplers import DDIM
from steerdiff.scripts.ablation.plan import Plan, Request, plan
from steerdiff.scripts.ablation.studies import Study, read_study
from steerdiff.scripts.papers import PAPERS

STUDY = Study(
    method="sdedit",
    title="A study",
    base={"repeats": 1, "steps": 100},
    sweep={"t0": [0.2, 0.4], "guidance": [1, 3]},
    task="strokes",
    cases=4,
    seeds=2,
)


def planned(method: str = "sdedit", study: Study | None = None, **flags: Any) -> Plan:
    return plan(method, Request(**flags), study)


def test_the_flag_of_a_trade_off_wins_over_the_file() -> None:
    study = replace(STUDY, tradeoff=("right", "diversity"))
    assert planned(study=STUDY).tradeoff is None
    assert planned(study=study).tradeoff == ("right", "diversity")
    assert planned(study=study, tradeoff="right, outside").tradeoff == ("right", "outside")


def test_a_file_alone_says_all() -> None:
    made = planned(study=STUDY)
    assert (made.title, made.task, made.cases, made.seeds) == ("A study", "strokes", 4, (0, 1))
    assert made.base == SDEdit(repeats=1, steps=100)
    first = made.cells[0]
    assert first is not None and first.settings == SDEdit(repeats=1, steps=100, t0=0.2, guidance=1.0)
    assert len(made.cells) == 4


def test_flags_win_over_the_file() -> None:
    flags: dict[str, Any] = {"task": "object", "cases": 2, "seeds": 1, "sweep": ("t0=0.9",), "set": ("steps=50",)}
    made = planned(study=STUDY, **flags)
    assert (made.task, made.cases, made.seeds) == ("object", 2, (0,))
    assert {axis.name: axis.values for axis in made.axes} == {"guidance": ((1.0,), (3.0,)), "t0": ((0.9,),)}
    assert made.base == SDEdit(repeats=1, steps=50)


def test_a_field_that_a_flag_sets_is_no_longer_swept() -> None:
    made = planned(study=STUDY, set=("guidance=5",))
    assert [axis.name for axis in made.axes] == ["t0"]
    assert made.base.guidance == 5.0


def test_a_new_sweep_joins_those_of_the_file() -> None:
    assert [axis.name for axis in planned(study=STUDY, sweep=("repeats=1,2",)).axes] == ["t0", "guidance", "repeats"]


def test_a_preset_or_a_paper_by_flag_replaces_the_base_of_the_file() -> None:
    assert planned(study=STUDY, preset="stroke").base == PRESETS["stroke"]
    assert planned(study=STUDY, paper="tuned", set=("steps=9",)).base == SDEdit(
        **{**vars(PAPERS["sdedit"].tuned), "steps": 9}
    )


def test_the_base_of_a_file_starts_from_its_preset_or_paper() -> None:
    study = Study(method="ilvr", preset="strong", base={"steps": 10}, sweep={"range_t": [0]})
    assert planned("ilvr", study).base == ILVR(downsample=8, range_t=0, steps=10)
    study = Study(method="ilvr", paper="published", base={"steps": 10}, sweep={"range_t": [0]})
    assert planned("ilvr", study).base == ILVR(downsample=8, steps=10, guidance=1.0)


def test_without_a_file_the_task_is_the_papers_first_and_the_size_is_the_claims() -> None:
    made = planned("ilvr", sweep=("range_t=0,1",))
    assert (made.task, made.cases, made.seeds) == (PAPERS["ilvr"].tasks[0], 16, (0, 1, 2))
    assert planned("sample", sweep=("steps=1",)).task == "draw"
    assert planned("invert", sweep=("steps=10",)).seeds == (0,)  # it does not look at the seed


def test_a_solver_of_the_base_can_be_swept_into() -> None:
    made = planned("sample", set=("solver=ddim",), sweep=("solver.eta=0,1",))
    assert [cell and cell.settings.solver for cell in made.cells] == [DDIM(eta=0.0), DDIM(eta=1.0)]


@pytest.mark.parametrize(
    ("method", "flags", "message"),
    [
        ("sdedit", {"sweep": ("t0=1",), "set": ("t0=0.5",)}, "t0 is both set and swept; drop --set t0=..."),
        ("sdedit", {"sweep": ("t0=1",), "set": ("steps",)}, "--set steps sets nothing; write --set FIELD=VALUE"),
        ("sdedit", {"sweep": ("t0=1",), "set": ("stps=5",)}, "SDEdit has no field 'stps'; did you mean steps"),
        ("sdedit", {"sweep": ("t0=1",), "preset": "strok"}, "sdedit has no preset 'strok'; did you mean stroke?"),
        ("sample", {"sweep": ("steps=1",), "preset": "quick"}, "sample has no preset 'quick'; it has none"),
        ("sample", {"sweep": ("steps=1",), "paper": "tuned"}, "there are no tuned settings of sample"),
        ("sdedit", {"sweep": ("t0=1",), "preset": "quick", "paper": "tuned"}, "both --preset and --paper are given"),
        ("sdedit", {"sweep": ("t0=1",), "task": "stroke"}, "there is no task 'stroke'; did you mean strokes?"),
        ("repaint", {"sweep": ("steps=9",), "task": "draw"}, "repaint needs a mask, which the task 'draw' has not"),
        ("sdedit", {"sweep": ("t0=1",), "task": "class"}, "sdedit needs an image, which the task 'class' has not"),
        ("sdedit", {"sweep": ("t0=1",), "cases": 0}, "cases is 0; it must be at least 1"),
        ("sdedit", {"sweep": ("t0=1",), "seeds": 0}, "seeds is 0; it must be at least 1"),
        ("unchanged", {"sweep": ("steps=9",)}, "Unchanged has no field 'steps'; it has none"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(method: str, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        planned(method, **flags)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sweep: {t0: [1]}", "names no method; write 'method: NAME' in it"),
        ("method: sdedit\nsweeps: {t0: [1]}", "sets 'sweeps', which does not exist; did you mean sweep"),
        ("method: sdedit\nsweep: [t0]", "sweep is ['t0']; expected a mapping"),
        ("method: sdedit\ncases: many", "cases is 'many'; expected int"),
        ("method: sdedit\ntradeoff: right", "tradeoff is 'right'; expected a list"),
        ("method: sdedit\ntask: 3", "task is 3; expected str"),
        ("method: sdedit\nsweep: {t0: 0.5}", "the sweep of t0 has 0.5 for its values; give a list of them"),
        ("method: sdedit\nsweep: {t0: []}", "the sweep of t0 sweeps over nothing"),
        ("method: sdedit\nsweep: {t0+repeats: [[1, 2, 3]]}", "t0+repeats needs 2 parts"),
        ("method: sdedit\npreset: quick\npaper: tuned\nsweep: {t0: [1]}", "the file has both preset and paper"),
        ("method: sdedit\nbase: {t00: 3}\nsweep: {t0: [1]}", "SDEdit has no field 't00'; did you mean t0?"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        planned(study=read_study(str(tmp_path / "study.yaml")))
    assert message in str(error.value)


def test_a_file_is_read_with_lists_of_any_values(tmp_path: Path) -> None:
    lines = ["method: sample", "base: {steps: 2}", "sweep:", '  solver: [ddim, "dpm++2m:variant=heun,few_steps=5"]']
    (tmp_path / "study.yaml").write_text("\n".join([*lines, '  guidance: "1:3:3"']))
    made = planned("sample", read_study(str(tmp_path / "study.yaml")))
    assert [axis.values for axis in made.axes] == [
        (("ddim",), ("dpm++2m:few_steps=5,variant=heun",)),
        ((1.0,), (2.0,), (3.0,)),
    ]


def test_a_name_that_is_no_file_names_the_nearest_shipped_ones() -> None:
    with pytest.raises(UserError, match="no file ilvr-facto, and no ablation of that name; did you mean ilvr-factor"):
        read_study("ilvr-facto")

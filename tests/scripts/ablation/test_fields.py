"""Fields by dotted path: what can be changed, and what is said where it cannot."""

from __future__ import annotations

from typing import Any

import pytest

from steerdiff.errors import UserError
from steerdiff.methods import METHODS, RePaint, SDEdit
from steerdiff.samplers import DDIM, DDPM
from steerdiff.scripts.ablation.fields import paths, replaced, value_at
from steerdiff.scripts.evaluation.contestants import TextToImage


def test_paths_go_into_the_solver() -> None:
    assert paths(SDEdit(solver=DDIM())) == [
        *("t0", "repeats", "steps", "official", "solver", "solver.eta", "clip", "guidance")
    ]


def test_a_solver_held_by_its_name_has_fields_too() -> None:
    assert "solver.eta" in paths(TextToImage(solver="ddim"))
    assert replaced(TextToImage(solver="ddim"), {"solver.eta": 1}).solver == DDIM(eta=1.0)


@pytest.mark.parametrize("method", METHODS.values())
def test_every_value_replaced_by_itself_gives_an_equal_copy(method: Any) -> None:
    settings = method()
    if "steps" in paths(settings):  # ILVR's is the text "100", and a text that is a number becomes one
        settings = replaced(settings, {"steps": 100})
    assert replaced(settings, {path: value_at(settings, path) for path in paths(settings)}) == settings


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"t0": 0.3}, SDEdit(t0=0.3)),
        ({"t0": "0.3", "guidance": "2"}, SDEdit(t0=0.3, guidance=2.0)),
        ({"guidance": 2}, SDEdit(guidance=2.0)),
        ({"guidance": "None"}, SDEdit(guidance=None)),
        ({"steps": "50"}, SDEdit(steps=50)),
        ({"steps": "10,15,20"}, SDEdit(steps="10,15,20")),
        ({"official": "True"}, SDEdit(official=True)),
        ({"solver": "ddim:eta=0.5"}, SDEdit(solver=DDIM(eta=0.5))),
        ({"solver": DDIM()}, SDEdit(solver=DDIM())),
        ({"solver.variance": "learned"}, SDEdit(solver=DDPM(variance="learned"))),
        ({"solver.eta": 1, "solver": "ddim"}, SDEdit(solver=DDIM(eta=1.0))),
        ({}, SDEdit()),
    ],
)
def test_values_and_texts_come_in_the_type_of_the_field(changes: dict[str, Any], expected: SDEdit) -> None:
    changed = replaced(SDEdit(), changes)
    assert changed == expected
    assert repr(changed) == repr(expected)  # 2 == 2.0, but another cell would be computed for it


def test_the_original_stays_as_it_was() -> None:
    settings = SDEdit(solver=DDIM())
    replaced(settings, {"t0": 0.1, "solver.eta": 1})
    assert settings == SDEdit(solver=DDIM())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t00": 1}, "SDEdit has no field 't00'; did you mean t0?"),
        ({"eta": 1}, "SDEdit has no field 'eta'; did you mean solver.eta?"),
        ({"solver.etta": 1}, "SDEdit has no field 'solver.etta'; did you mean solver.eta"),
        ({"t0.low": 1}, "t0.low does not exist: t0 is 0.5, which has no fields; set t0 itself"),
        ({"t0": 2}, "t0=2 is refused: t0 is 2.0; it must lie in [0, 1]"),
        ({"t0": "low"}, "t0 is 'low'; expected float"),
        ({"repeats": 2.5}, "repeats is 2.5; expected int"),
        ({"repeats": True}, "repeats is True; expected int"),
        ({"clip": "clop"}, "clip is 'clop'; expected 'none' or 'clip' or 'dynamic'"),
        ({"solver": 3}, "solver is 3; expected Solver"),
        ({"solver": SDEdit()}, "expected Solver"),
        ({"solver": "ddimm"}, "solver=ddimm is refused: solver is 'ddimm'; known are ddpm, ddim"),
        ({"solver": "ddim:eta=3"}, "solver=ddim:eta=3 is refused: eta is 3; it must lie in [0, 1]"),
        ({"solver.eta": 3}, "solver.eta=3 is refused: eta is 3.0; it must lie in [0, 1]"),
        ({"solver.eta": "much"}, "solver.eta is 'much'; expected float"),
        ({"solver": "ddpm", "solver.eta": 1}, "SDEdit has no field 'solver.eta'; did you mean solver"),
    ],
)
def test_what_cannot_be_set_is_named_with_its_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        replaced(SDEdit(solver=DDIM()), changes)
    assert message in str(error.value)


def test_a_long_list_of_choices_is_written_flat() -> None:
    with pytest.raises(UserError, match=r"^spacing is 'even'; expected 'respaced' or 'leading' or 'trailing' or "):
        replaced(TextToImage(), {"spacing": "even"})


def test_fields_that_must_fit_each_other_are_set_together() -> None:
    assert replaced(RePaint(), {"jump_length": 1, "jump_n_sample": 1}) == RePaint(jump_length=1, jump_n_sample=1)

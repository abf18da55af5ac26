"""What an entry of a paper refuses, and what it gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from steerdiff.errors import UserError
from steerdiff.scripts.papers import PAPERS

SDEDIT = PAPERS["sdedit"]


def test_a_task_without_settings_of_its_own_has_those_of_the_paper() -> None:
    paper = replace(SDEDIT, by_task={"style": {"t0": 0.25, "solver.variance": "fixed_large"}})
    assert paper.settings("tuned") is paper.settings("tuned", "object") is SDEDIT.tuned
    assert paper.settings("published", "draw") is SDEDIT.published
    own = paper.settings("tuned", "style")
    assert (own.t0, own.solver.variance, own.steps) == (0.25, "fixed_large", SDEDIT.tuned.steps)


@pytest.mark.parametrize(
    ("by_task", "message"),
    [
        ({"class": {"t0": 0.5}}, "sdedit has settings for 'class', which is none of its tasks"),
        ({"style": {"t9": 0.5}}, "the published settings of sdedit for 'style': SDEdit has no field 't9'"),
        ({"style": {"t0": 5.0}}, "t0=5.0 is refused: t0 is 5.0; it must lie in"),
        ({"style": {"t0": "much"}}, "t0 is 'much'; expected float"),
    ],
)
def test_what_a_task_cannot_change_is_an_error_when_the_entry_is_made(by_task: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SDEDIT, by_task=by_task)


def test_seeds_are_as_many_as_asked_for_but_where_they_change_nothing_or_take_too_long() -> None:
    assert SDEDIT.seeds_of(3) == (0, 1, 2)
    assert replace(SDEDIT, seeds=2).seeds_of(3) == (0, 1) == replace(SDEDIT, seeds=2).seeds_of(2)
    assert replace(SDEDIT, seeds=2).seeds_of(1) == (0,)
    assert replace(SDEDIT, seeds=2, deterministic=True).seeds_of(3) == (0,)
    with pytest.raises(UserError, match="sdedit has 0 seeds; give at least 1"):
        replace(SDEDIT, seeds=0)

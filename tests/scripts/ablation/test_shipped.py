"""The ablations that come with the library."""

from __future__ import annotations

import re
from typing import Any

import pytest

import steerdiff
from steerdiff.scripts.ablation.plan import Plan, Request, plan
from steerdiff.scripts.ablation.studies import FOLDER, read_study, shipped
from steerdiff.scripts.evaluation.claims import Claims, cells_of
from steerdiff.scripts.papers import PAPERS


def shipped_plan(name: str) -> Plan:
    study = read_study(name)
    return plan(study.method, Request(), study)


@pytest.mark.parametrize("name", shipped())
def test_every_file_names_real_fields_and_says_where_it_comes_from(name: str) -> None:
    made = shipped_plan(name)
    assert all(cell is not None for cell in made.cells) and len(made.cells) > 1
    comment = [line for line in (FOLDER / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    text = " ".join(line.lstrip("# ") for line in comment)
    assert re.search(r"(et al\.|& [A-Z]\w+) 20\d\d", text)
    assert "recalled" in text or "read in" in text
    evaluations = f"{len(made.cells)} cells, "
    assert evaluations in text and "network evaluations, about" in text


def test_every_paper_names_files_that_are_there() -> None:
    named = [name for paper in PAPERS.values() for name in paper.ablations]
    assert sorted(named) == shipped()


@pytest.mark.parametrize("name", [name for name, paper in PAPERS.items() if paper.claims])
def test_the_cells_of_each_claim_are_among_those_of_its_papers_ablations(name: str) -> None:
    stored = {cell.key for file in PAPERS[name].ablations for cell in shipped_plan(file).cells if cell is not None}
    for claim in PAPERS[name].claims:
        assert {cell.key for cell in cells_of(claim, Claims())} <= stored, claim.text


def test_slowing_down_makes_as_many_network_calls_as_resampling() -> None:
    emoji64 = steerdiff.load("emoji64")
    settings: list[Any] = [cell.settings for cell in shipped_plan("repaint-resampling").cells if cell is not None]
    calls = [sum(move.kind == "denoise" for move in one.path(emoji64).moves) for one in settings]
    assert [(one.jump_n_sample > 1, count) for one, count in zip(settings, calls, strict=True)] == [
        *((False, 50), (False, 95), (True, 95), (False, 185), (True, 185), (False, 365), (True, 365))
    ]

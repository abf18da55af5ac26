"""The papers' claims: what they compare, the commands that show them, and their verdicts."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from steerdiff.scripts import ablate
from steerdiff.scripts.evaluation import claims as module
from steerdiff.scripts.evaluation.cells import Cell
from steerdiff.scripts.evaluation.claims import Claims, cells_of, command_of
from steerdiff.scripts.papers import PAPERS
from steerdiff.scripts.papers.spec import Claim
from steerdiff.train.benchmark import SCORES, TASKS, Scores

from ..conftest import Done

CLAIMS = [claim for paper in PAPERS.values() for claim in paper.claims]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text[:40])
def test_a_claim_names_a_task_and_a_score_that_applies_to_it(claim: Claim) -> None:
    assert claim.task in TASKS and claim.score in SCORES
    assert claim.score not in TASKS[claim.task].without
    before, after = cells_of(claim, Claims())
    assert before.key != after.key and before.seeds == after.seeds


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text[:40])
def test_the_command_of_a_claim_asks_for_its_cells(claim: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command_of(claim, Claims()))
    assert words[:2] == ["steerdiff", "ablate"]
    made, _, _ = ablate._planned(words[2:], None, "steerdiff ablate")
    assert {cell.key for cell in made.cells if cell is not None} == {cell.key for cell in cells_of(claim, Claims())}


def known(value: float) -> Scores:
    """Scores of four cases and one seed that say ``value`` for "right" and hold nothing else."""
    values = {name: np.full((4, 1), np.nan) for name in SCORES if name != "kid"}
    values["right"] = np.full((4, 1), value) + np.array([[0.0], [0.01], [0.02], [0.03]])
    return Scores(values=values, features=np.zeros((4, 1, 2)), truths=np.zeros((4, 2)))


@pytest.mark.parametrize(("low", "high", "verdict"), [(0.2, 0.8, "confirmed"), (0.8, 0.2, "refuted")])
def test_the_verdict_is_the_side_of_the_interval(
    low: float, high: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = next(claim for claim in CLAIMS if claim.score == "right" and claim.rises)

    def score(cell: Cell, result: object) -> Scores:
        return known(low if cell == cells_of(claim, Claims())[0] else high)

    monkeypatch.setattr("steerdiff.scripts.evaluation.cells.score", score)
    finding = _found(claim, monkeypatch)
    assert finding.verdict == verdict
    assert finding.difference is not None and finding.difference.value == pytest.approx(high - low)


def test_a_failed_side_is_told_and_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = _found(CLAIMS[0], monkeypatch, error="out of memory")
    assert finding.verdict == "failed" and finding.note == "out of memory"
    page = module.markdown([finding])
    assert "**failed**" in page and "out of memory" in page and finding.command in page


def _found(claim: Claim, monkeypatch: pytest.MonkeyPatch, error: str | None = None) -> module.Finding:
    from steerdiff.scripts.evaluation import running

    def run_cells(cells: list[Cell], flags: object, progress: str) -> list[running.Outcome]:
        given = {"error": error} if error else {"result": object()}
        return [running.Outcome(cell=cell, **given) for cell in cells]  # type: ignore[arg-type]

    monkeypatch.setattr(running, "run_cells", run_cells)
    findings = module.find([("ddim", claim)], Claims())
    return findings[0]


def test_claims_are_written_and_bad_input_is_refused(steerdiff: Callable[..., Done], tmp_path: Path) -> None:
    assert "did you mean ilvr" in steerdiff("evaluate", "claims", "--papers", "ilvt").err
    assert "cases is 0" in steerdiff("evaluate", "claims", "--cases", 0).err
    words = ["--papers", "classifier-free", "--cases", 1, "--seeds", 1, "--cache", tmp_path / "cells", "--threads", 1]
    done = steerdiff("evaluate", "claims", *words, "--out", tmp_path / "out")
    assert (tmp_path / "out/claims.md").read_text() == done.out
    facts = json.loads((tmp_path / "out/claims.json").read_text())
    assert len(facts["claims"]) == len(PAPERS["classifier-free"].claims)
    again = steerdiff("evaluate", "claims", *words, "--out", tmp_path / "again")
    assert again.out == done.out

"""Every recipe runs at toy size, and its page says what the entries say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from steerdiff.scripts.papers import PAPERS
from steerdiff.scripts.reproduction.text import document

from ..conftest import Done

ROOT = Path(__file__).resolve().parents[3]
RECIPES = [(paper.name, recipe.name) for paper in PAPERS.values() for recipe in paper.recipes]


def test_every_paper_has_a_recipe_and_published_numbers_say_where_they_stand() -> None:
    assert all(paper.recipes for paper in PAPERS.values())
    for paper in PAPERS.values():
        for recipe in paper.recipes:
            assert recipe.published or recipe.missing, f"{paper.name}, {recipe.name}"
            assert all(number.source for number in recipe.published)


@pytest.mark.parametrize(("paper", "recipe"), RECIPES)
def test_every_recipe_runs_at_toy_size(paper: str, recipe: str, steerdiff: Callable[..., Done], tmp_path: Path) -> None:
    done = steerdiff("reproduce", paper, "--recipe", recipe, "--toy", "--threads", 1, "--out", tmp_path)
    assert done.code == 0, done.err
    report = json.loads(next(tmp_path.rglob("report.json")).read_text())
    text = next(tmp_path.rglob("report.md")).read_text()
    assert "toy" in text.lower() and text.splitlines()[0] in done.out
    assert list(tmp_path.rglob("images/**/*.png"))
    assert report


def test_the_page_is_what_the_command_prints() -> None:
    assert (ROOT / "docs/reproduction.md").read_text() == document()


@pytest.mark.parametrize("paper", PAPERS)
def test_without_weights_the_recipe_is_printed_and_not_run(
    paper: str, steerdiff: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STEERDIFF_WEIGHTS", raising=False)
    done = steerdiff("reproduce", paper)
    assert done.code == 1 and "not run: weights absent" in done.out and "**Settings**" in done.out
    assert steerdiff("reproduce", paper, "--show").code == 0


def test_an_unknown_paper_or_recipe_names_the_nearest(steerdiff: Callable[..., Done]) -> None:
    assert "did you mean repaint" in steerdiff("reproduce", "repant").err
    wrong = steerdiff("reproduce", "repaint", "--recipe", "no-such-recipe")
    assert wrong.code == 2 and PAPERS["repaint"].recipes[0].name in wrong.err

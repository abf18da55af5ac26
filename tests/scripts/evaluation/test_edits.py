"""`steerdiff evaluate edits`: tables, plots and the page from known scores, and small real runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steerdiff.scripts.evaluation import running, work
from steerdiff.scripts.evaluation.contestants import TextToImage
from steerdiff.scripts.evaluation.edit_entrants import entrants, unclaimed
from steerdiff.scripts.evaluation.edit_results import Entry, TaskResults, compare, leads, worst_first
from steerdiff.scripts.evaluation.edit_tables import head, main_table, markdown, shown
from steerdiff.scripts.evaluation.pareto import frontier, plot_of
from steerdiff.scripts.papers import PAPERS, Paper
from steerdiff.train.benchmark import SCORES, TASKS, Interval, Scores, draw_cases

from ..conftest import Done

Run = Callable[..., Done]


def scores(right: Sequence[float], inside: Sequence[float]) -> Scores:
    """Scores of as many cases as there are values, one seed; whatever is not given does not apply."""
    n = len(right)
    values = {name: np.full((n, 1), np.nan) for name in SCORES if name != "kid"}
    values |= {"right": np.array(right)[:, None], "feature_inside": np.array(inside)[:, None]}
    values["outside"] = values["feature_inside"] * 10
    rng = np.random.default_rng(0)
    return Scores(values=values, features=rng.normal(size=(n, 1, 4)), truths=rng.normal(size=(n, 4)))


def results(*by_entrant: Scores | None) -> TaskResults:
    """Results of the tuned methods of task "hole", in the order of its entrants."""
    n = next(len(one.truths) for one in by_entrant if one is not None)
    some = [one for one in entrants(n, 1, tasks=["hole"])["hole"] if one.setting == "tuned"]
    entries = [
        Entry(entrant=entrant, scores=one, error=None if one else "it broke", evaluations=10.0, seconds=1.0)
        for entrant, one in zip(some, by_entrant, strict=True)
    ]
    return TaskResults(task="hole", cases=draw_cases("hole", n), entries=entries)


def test_the_best_is_in_bold_only_where_the_difference_is_real() -> None:
    rng = np.random.default_rng(1)
    far = results(scores([1.0] * 8, [0.1] * 8), scores([0.0] * 8, [0.5] * 8))
    assert leads(far, far.entries[0], "feature_inside") and not leads(far, far.entries[1], "feature_inside")
    near = results(scores([1.0] * 8, list(0.1 + rng.random(8))), scores([1.0] * 8, list(0.1 + rng.random(8))))
    assert not any(leads(near, entry, "feature_inside") for entry in near.entries)
    table = markdown(main_table([far]))
    assert table.count("**") >= 2 and "**0.10 [0.10, 0.10]**" in table and "**0.50" not in table
    assert "| - |" in table  # scores that do not apply


def test_a_comparison_counts_the_cases_on_each_side() -> None:
    two = results(scores([1, 1, 0, 1], [0.1, 0.2, 0.3, 0.4]), scores([0, 0, 0, 1], [0.2, 0.1, 0.3, 0.8]))
    found = {one.score: one for one in compare(two)}
    assert (found["feature_inside"].better, found["feature_inside"].same, found["feature_inside"].worse) == (2, 1, 1)
    assert (found["right"].better, found["right"].same, found["right"].worse) == (2, 2, 0)
    assert found["right"].interval.value == pytest.approx(0.5)


def test_the_worst_cases_come_first() -> None:
    two = results(scores([1] * 4, [0.1, 0.9, 0.3, 0.5]), scores([1] * 4, [0.1, 0.7, 0.5, 0.5]))
    assert [number for number, _ in worst_first(two)] == [1, 3, 2, 0]
    assert worst_first(two)[0][1] == pytest.approx(0.8)


def test_a_failed_entrant_stands_in_the_table_with_its_reason() -> None:
    two = results(scores([1] * 4, [0.1] * 4), None)
    assert "failed: it broke" in markdown(main_table([two]))
    assert [number for number, _ in worst_first(two)] == [0, 1, 2, 3]


def test_intervals_are_shown_in_the_unit_of_their_column() -> None:
    interval = Interval(0.512, 0.25, 0.75)
    assert shown(interval, "right") == "51 [25, 75]" and shown(interval, "inside") == "0.5 [0.2, 0.8]"
    assert shown(None, "right") == "-" and head("right").endswith(", % ↑") and head("inside").endswith(" ↓")


def test_the_frontier_holds_the_points_that_nothing_beats() -> None:
    points = [(3.0, 0.9), (1.0, 0.2), (2.0, 0.5), (2.5, 0.4), (2.0, 0.1), (3.0, 0.9)]
    assert frontier(points) == [1, 2, 0, 5]
    assert frontier([]) == []


def test_a_restored_image_is_plotted_by_its_distance_and_an_edit_by_its_outside() -> None:
    two = results(scores([1] * 4, [0.1] * 4), scores([0] * 4, [0.3] * 4))
    plot = plot_of(two, ("sdedit", "repaint"), "4 cases")
    assert plot is not None and plot.points[1].x.value == pytest.approx(0.3)  # a hole is restored
    edit = plot_of(replace(two, task="object", cases=draw_cases("object", 4)), ("sdedit", "repaint"), "4 cases")
    assert edit is not None and edit.points[1].x.value == pytest.approx(3.0)


def test_each_method_runs_on_what_its_paper_claims_and_the_yardsticks_on_everything() -> None:
    running = entrants(4, 3)
    for task, some in running.items():
        claimed = {paper.method for paper in PAPERS.values() if task in paper.tasks}
        given = {"unchanged"} if task not in ("draw", "class") else set()
        assert {one.method for one in some} == claimed | given | {"sample"}
        assert {one.setting for one in some} == {"published", "tuned", "yardstick"}
    claimed = {task for paper in PAPERS.values() if paper.method for task in paper.tasks}
    assert {len(one.cell.seeds) for some in running.values() for one in some if one.method == "invert"} == {1}
    assert set(running) == claimed and unclaimed() == [task for task in TASKS if task not in claimed]


def test_what_a_paper_sets_for_a_task_holds_there_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = replace(PAPERS["sdedit"], by_task={"style": {"t0": 0.25}}, seeds=2)
    monkeypatch.setitem(PAPERS, "sdedit", paper)
    running = entrants(2, 3, tasks=["style", "object"], only=["sdedit"])
    found = {
        (task, one.setting): one.cell.settings
        for task, some in running.items()
        for one in some
        if one.setting != "yardstick"
    }
    assert found == {
        ("object", "published"): paper.published,
        ("object", "tuned"): paper.tuned,
        ("style", "published"): replace(paper.published, t0=0.25),
        ("style", "tuned"): replace(paper.tuned, t0=0.25),
    }
    assert {(one.method, one.cell.seeds) for one in running["style"]} == {
        ("sdedit", (0, 1)),
        ("unchanged", (0,)),
        ("sample", (0, 1, 2)),
    }


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    cache = tmp_path_factory.mktemp("cells")
    words = ["evaluate", "edits", "--quick", "--cases", 2, "--tasks", "style", "--methods", "ilvr", "--cache", cache]
    return [*words, "--threads", 1]


def test_a_run_writes_every_file_and_the_page_names_only_what_is_there(
    steerdiff: Run, arguments: list[Any], tmp_path: Path
) -> None:
    done = steerdiff(*arguments, "--out", tmp_path)
    assert done.code == 0, done.err
    page = (tmp_path / "index.html").read_text()
    pictures = re.findall(r"(?:src|href)='([^'#][^']*)'", page)
    assert pictures and all((tmp_path / picture).is_file() for picture in pictures)
    assert "http" not in "".join(pictures) and "<script" not in page
    facts = json.loads((tmp_path / "edits.json").read_text())
    assert facts["model"]["sha256"] and facts["recogniser"]
    for name in ("edits.md", "edits-summary.md", "timing.md", "edits.png", "pareto-style.png"):
        assert (tmp_path / name).stat().st_size > 100


def test_a_task_without_an_image_shows_none_and_keeps_the_order_of_its_cases(
    steerdiff: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = Paper(
        name="draws",
        title="A paper on drawing",
        authors="Nobody",
        year=2020,
        arxiv="0",
        method="sample",
        tasks=("class",),
        published=TextToImage(steps=2),
        tuned=TextToImage(steps=1),
    )
    monkeypatch.setattr("steerdiff.scripts.evaluation.edit_entrants.PAPERS", {"draws": draws})
    words = ["--cases", 2, "--seeds", 2, "--tasks", "class", "--threads", 1]
    done = steerdiff("evaluate", "edits", *words, "--cache", tmp_path / "cells", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    page = (tmp_path / "out/index.html").read_text()
    pictures = re.findall(r"(?:src|href)='([^'#][^']*)'", page)
    assert pictures and all((tmp_path / "out" / picture).is_file() for picture in pictures)
    assert "image given" not in re.sub(r"<(p|style)>.*?</\1>", "", page, flags=re.DOTALL)
    assert "In the order of their numbers" in page and not list((tmp_path / "out").rglob("*-given.png"))
    table = (tmp_path / "out/edits.md").read_text()
    assert "| draw a class | sample | published |" in table and "unchanged |" not in table


def test_a_resumed_run_writes_the_same_bytes(
    steerdiff: Run, arguments: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert steerdiff(*arguments, "--out", first).code == 0
    cache = Path(arguments[arguments.index("--cache") + 1])
    lost = next(folder for folder in sorted(cache.iterdir()) if folder.name.startswith("ilvr"))
    for file in lost.iterdir():
        file.unlink()  # as if the run had been killed before this cell was stored
    assert steerdiff(*arguments, "--out", second).code == 0
    for name in ("edits.md", "edits.json", "edits-summary.md", "index.html"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_a_failed_cell_is_told_and_the_rest_is_written(
    steerdiff: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = work.compute

    def broken(cell: Any, model: Any, *rest: Any) -> Any:
        if cell.method == "sample":
            raise RuntimeError("the network melted")
        return real(cell, model, *rest)

    monkeypatch.setattr(work, "compute", broken)
    words = ["--quick", "--cases", 1, "--tasks", "style", "--methods", "ilvr", "--threads", 1]
    done = steerdiff("evaluate", "edits", *words, "--cache", tmp_path / "cells", "--out", tmp_path / "out")
    assert done.code == 1 and "the network melted" in done.out
    assert "the network melted" in (tmp_path / "out/edits.md").read_text()
    assert "ilvr" in (tmp_path / "out/edits.md").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tasks", "stile"], "did you mean style"),
        (["--methods", "sdedi"], "did you mean sdedit"),
        (["--cases", "0"], "cases is 0"),
        (["--seeds", "0"], "seeds is 0"),
        (["--tasks", "move", "--methods", "ilvr"], "nobody is left"),
    ],
)
def test_bad_input_is_one_line_before_any_compute(
    words: list[str], told: str, steerdiff: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "run_cells", lambda *_, **__: pytest.fail("it ran"))
    done = steerdiff("evaluate", "edits", *words, "--out", tmp_path / "out")
    assert done.code == 2 and told in done.err and len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()

"""What the plots and the contact sheet show."""

from __future__ import annotations

import math
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
import torch
from PIL import Image

from steerdiff.errors import UserError
from steerdiff.scripts.ablation.plan import Plan, Request, plan
from steerdiff.scripts.ablation.plots import lines_of, plot, scale_of, title_of
from steerdiff.scripts.ablation.sheet import sections_of
from steerdiff.scripts.ablation.sweeps import Axis
from steerdiff.scripts.ablation.tables import Measured
from steerdiff.scripts.ablation.tradeoff import check_tradeoff, paths_of, tradeoff_plot
from steerdiff.scripts.evaluation.cells import Result
from steerdiff.train.benchmark import Interval, draw_cases


def planned(*sweeps: str, method: str = "sdedit", **size: Any) -> Plan:
    return plan(method, Request(sweep=sweeps, task="draw" if method == "sample" else "strokes", **size))


def measured(made: Plan) -> list[Measured]:
    """Rows that score 1, 2, 3, ... in the order of the grid; pictures have 10 times that grey, plus their case."""
    rows = []
    for number, (point, cell) in enumerate(zip(made.points, made.cells, strict=True), 1):
        if cell is None:
            rows.append(Measured(point=point, error=point.error))
            continue
        greys = 10 * number + torch.arange(made.cases).reshape(-1, 1, 1, 1, 1)
        images = greys.expand(made.cases, len(made.seeds), 3, 64, 64).to(torch.uint8)
        result = Result(images=images, evaluations=1.0, seconds=1.0)
        intervals = {"inside": Interval(number, number - 1, number + 2), "right": Interval(0.5, 0.25, 0.75)}
        rows.append(Measured(point=point, cell=cell, result=result, intervals=intervals))
    return rows


@pytest.mark.parametrize(
    ("values", "kind", "places"),
    [
        ((0.5, 0.1, 0.9), "linear", (0.5, 0.1, 0.9)),
        ((1, 30), "linear", (1.0, 30.0)),
        ((1, 31), "log", (1.0, 31.0)),
        ((0, 1000), "linear", (0.0, 1000.0)),
        ((None, 1.0), "categories", (0.0, 1.0)),
        ((True, False), "categories", (0.0, 1.0)),
        (("ddim", "ddpm", "heun"), "categories", (0.0, 1.0, 2.0)),
        ((1.0, math.inf), "categories", (0.0, 1.0)),
    ],
)
def test_numbers_stand_where_they_are_and_all_else_in_a_row(
    values: tuple[Any, ...], kind: str, places: tuple[float, ...]
) -> None:
    scale = scale_of(Axis(fields=("x",), values=tuple((value,) for value in values)))
    assert (scale.kind, scale.places) == (kind, places)


def test_joined_fields_are_categories() -> None:
    assert scale_of(Axis(fields=("x", "y"), values=((1, 2), (3, 4)))).kind == "categories"


def test_bars_of_several_lines_stand_side_by_side() -> None:
    for values in ((1.0, 2.0), (1.0, 100.0)):
        scale = scale_of(Axis(fields=("x",), values=tuple((value,) for value in values)))
        left, middle, right = (scale.beside(1.0, steps) for steps in (-1, 0, 1))
        assert left < middle == 1.0 < right


def test_each_setting_of_the_other_fields_is_a_line() -> None:
    made = planned("t0=0.2,0.4", "repeats=1,2", "guidance=1,3")
    lines = lines_of(made, 0, measured(made))
    assert [line.label for line in lines] == [
        "repeats = 1, guidance = 1",
        "repeats = 1, guidance = 3",
        "repeats = 2, guidance = 1",
        "repeats = 2, guidance = 3",
    ]
    assert [[line.intervals[place]["inside"].value for place in (0, 1)] for line in lines] == [
        *([1, 5], [2, 6], [3, 7], [4, 8])
    ]
    assert title_of(made, 0, lines) == made.title


def test_many_lines_are_averaged_and_the_title_says_so() -> None:
    made = planned("t0=0.2,0.4", "repeats=1:7:7")
    lines = lines_of(made, 0, measured(made))
    assert [{place: own["inside"] for place, own in line.intervals.items()} for line in lines] == [
        {0: Interval(4.0, 3.0, 6.0), 1: Interval(11.0, 10.0, 13.0)}
    ]
    assert title_of(made, 0, lines) == "sdedit: t0, repeats, averaged over repeats"
    assert len(lines_of(made, 1, measured(made))) == 2


def test_refused_points_are_left_out_of_the_lines() -> None:
    made = planned("solver=ddim,ddpm", "solver.eta=0,1", method="sample")
    rows = measured(made)
    assert [len(line.intervals) for line in lines_of(made, 0, rows)] == [1, 1]
    assert [line.label for line in lines_of(made, 1, rows)] == ["solver = ddim"]


@pytest.mark.parametrize("sweep", ["t0=0.2,0.4", "steps=10,20,1000", "clip=none,clip", "t0+repeats=0.1+1,0.2+2"])
def test_every_kind_of_axis_can_be_drawn_twice_to_the_same_bytes(sweep: str) -> None:
    made = planned(sweep, "guidance=1,3", cases=1, seeds=1)
    first = plot(made, 0, measured(made))
    assert first == plot(made, 0, measured(made))
    assert Image.open(BytesIO(first)).format == "PNG"


def test_a_path_of_the_trade_off_visits_the_values_in_order_where_both_scores_are_known() -> None:
    made = planned("t0=0.2,0.4,0.6", "repeats=1,2", tradeoff="right, inside", seeds=2)
    rows = measured(made)
    rows[2] = Measured(point=rows[2].point, cell=rows[2].cell, error="broken")
    paths = paths_of(made, rows)
    assert [label for label, _ in paths] == ["repeats = 1", "repeats = 2"]
    assert [[station.place for station in stations] for _, stations in paths] == [[0, 2], [0, 1, 2]]
    assert [station.right for station in paths[1][1]] == [Interval(n, n - 1, n + 2) for n in (2, 4, 6)]
    assert {station.up for _, stations in paths for station in stations} == {Interval(0.5, 0.25, 0.75)}


def test_a_trade_off_is_drawn_to_the_same_bytes_and_not_without_both_scores() -> None:
    made = planned("t0=0.2,0.4", "repeats=1,2", tradeoff="right,inside")
    first = tradeoff_plot(made, measured(made))
    assert first is not None and first == tradeoff_plot(made, measured(made))
    assert Image.open(BytesIO(first)).format == "PNG"
    turned = tradeoff_plot(replace(made, tradeoff=("inside", "right")), measured(made))
    assert turned is not None and turned != first
    assert tradeoff_plot(replace(made, tradeoff=("right", "outside")), measured(made)) is None
    assert tradeoff_plot(replace(made, tradeoff=None), measured(made)) is None


@pytest.mark.parametrize(
    ("text", "change", "message"),
    [
        ("right", {}, "tradeoff is right; give two different scores"),
        ("right,right", {}, "give two different scores"),
        ("right,layout,kid", {}, "give two different scores"),
        ("right,diversty", {}, "there is no score 'diversty'; did you mean diversity"),
        ("right,diversity", {"seeds": 1}, "between results of several seeds; give --seeds 2 or more"),
        ("right,outside", {"method": "sample"}, "outside says nothing of the task 'draw'; give another score"),
    ],
)
def test_a_trade_off_that_cannot_be_drawn_is_an_error(text: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_tradeoff(planned("guidance=1,3", tradeoff=text, **change))


def test_the_sheet_has_a_row_for_each_case_and_a_column_for_each_value() -> None:
    made = planned("t0=0.2,0.4,0.6", cases=2, seeds=2)
    (section,) = sections_of(made, measured(made))
    assert (section.title, section.heads) == ("t0", ("given", "true answer", "0.2", "0.4", "0.6"))
    assert [len(row.cells) for row in section.rows] == [5, 5]
    cases = draw_cases("strokes", 2)
    for number, (row, case) in enumerate(zip(section.rows, cases, strict=True)):
        given, truth, *results = [cell.image for cell in row.cells]
        assert given is not None and torch.equal(given, case.image)
        assert truth is not None and torch.equal(truth, case.truth)
        greys = [round((float(image.mean()) + 1) * 127.5) for image in results if image is not None]
        assert greys == [10 + number, 20 + number, 30 + number]


def test_the_other_fields_are_sections_and_what_failed_is_said_in_its_place() -> None:
    made = planned("t0=0.2,0.4", "repeats=1,2", cases=1, seeds=1)
    rows = measured(made)
    rows[1] = Measured(point=rows[1].point, cell=rows[1].cell, error="broken")
    first, second = sections_of(made, [row for row in rows if row is not rows[3]])
    assert (first.title, second.title) == ("repeats = 1", "repeats = 2")
    assert first.note == "columns: t0"
    assert [cell.text for cell in second.rows[0].cells[2:]] == ["failed", "not drawn"]


def test_a_large_sheet_shows_a_part_and_says_which() -> None:
    made = planned("t0=0.1:0.9:17", "repeats=1:8:8", cases=8, seeds=2)
    sections = sections_of(made, measured(made))
    assert [section.title for section in sections][:2] == ["repeats = 1", "repeats = 2"] and len(sections) == 6
    assert sections[-1].title == "repeats = 8"
    assert (sections[0].heads[2], sections[0].heads[-1], len(sections[0].heads)) == ("0.1", "0.9", 14)
    assert sections[0].note == "columns: t0, 6 of 8 cases, seed 0, 6 of 8 other settings, 12 of 17 values"


def test_a_sample_has_no_image_that_was_given() -> None:
    made = planned("guidance=1,3", method="sample", cases=1, seeds=1)
    (section,) = sections_of(made, measured(made))
    assert section.heads == ("true answer", "1", "3")


def test_a_task_without_an_image_shows_none() -> None:
    made = replace(planned("t0=0.2,0.4", cases=1, seeds=1), task="class")
    (section,) = sections_of(made, measured(made))
    assert section.heads == ("true answer", "0.2", "0.4")

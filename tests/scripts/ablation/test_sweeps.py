"""Axes from texts and lists, the grid they span, and its random subsets."""

from __future__ import annotations

from typing import Any

import pytest

from steerdiff.errors import UserError
from steerdiff.methods import SDEdit
from steerdiff.samplers import DDIM
from steerdiff.scripts.ablation.sweeps import Axis, axis_from_list, axis_from_text, check_axes, points


def axes_of(*texts: str, base: Any = None) -> list[Axis]:
    settings = SDEdit() if base is None else base
    return [axis_from_text(text).settled(settings) for text in texts]


@pytest.mark.parametrize(
    ("text", "fields", "values"),
    [
        ("t0=0.1,0.5", ("t0",), [(0.1,), (0.5,)]),
        ("t0=0.5", ("t0",), [(0.5,)]),
        ("t0=0.1:0.9:5", ("t0",), [(0.1,), (0.3,), (0.5,), (0.7,), (0.9,)]),
        ("repeats=1:7:3", ("repeats",), [(1,), (4,), (7,)]),
        ("t0=0:1:3", ("t0",), [(0.0,), (0.5,), (1.0,)]),
        ("guidance=None,1", ("guidance",), [(None,), (1.0,)]),
        ("t0+repeats=0.1+3,0.5+1", ("t0", "repeats"), [(0.1, 3), (0.5, 1)]),
        ("solver=ddim,ddim:eta=1", ("solver",), [("ddim",), ("ddim:eta=1.0",)]),
        (
            "solver=ddim;dpm++2m:variant=heun,few_steps=5",
            ("solver",),
            [("ddim",), ("dpm++2m:few_steps=5,variant=heun",)],
        ),
        ("steps=10,15,20;", ("steps",), [("10,15,20",)]),
    ],
)
def test_a_text_gives_fields_and_values_in_their_types(
    text: str, fields: tuple[str, ...], values: list[tuple[Any, ...]]
) -> None:
    (axis,) = axes_of(text)
    assert (axis.fields, list(axis.values)) == (fields, values)
    assert [type(part) for value in axis.values for part in value] == [type(part) for value in values for part in value]


def test_a_list_may_hold_what_a_text_cannot() -> None:
    axis = axis_from_list("solver+steps", [["dpm++2m", 5], ["ddim:eta=0.5", 10]], "the sweep")
    assert axis.values == (("dpm++2m", 5), ("ddim:eta=0.5", 10))


def test_sweeps_make_a_grid_whose_last_axis_is_fastest() -> None:
    found = points(SDEdit(), axes_of("t0=0.2,0.4", "repeats=1,2"))
    assert [dict(point.changes) for point in found] == [
        {"t0": 0.2, "repeats": 1},
        {"t0": 0.2, "repeats": 2},
        {"t0": 0.4, "repeats": 1},
        {"t0": 0.4, "repeats": 2},
    ]
    assert [point.settings for point in found][1] == SDEdit(t0=0.2, repeats=2)


def test_joined_fields_vary_together() -> None:
    found = points(SDEdit(solver=DDIM()), axes_of("t0+solver.eta=0.2+0,0.4+1", base=SDEdit(solver=DDIM())))
    assert [point.settings for point in found] == [
        SDEdit(t0=0.2, solver=DDIM(eta=0.0)),
        SDEdit(t0=0.4, solver=DDIM(eta=1.0)),
    ]


def test_more_random_points_keep_those_of_fewer() -> None:
    axes = axes_of("t0=0.1:0.9:9", "repeats=1,2,3")
    drawn = [{p.places for p in points(SDEdit(), axes, n, 7)} for n in (1, 5, 12, 27)]
    assert [len(places) for places in drawn] == [1, 5, 12, 27]
    assert drawn[0] < drawn[1] < drawn[2] < drawn[3]


def test_random_points_depend_on_the_seed_alone() -> None:
    axes = axes_of("t0=0.1:0.9:9", "repeats=1,2,3")
    first, again, other = (points(SDEdit(), axes, 6, seed) for seed in (0, 0, 1))
    assert [p.places for p in first] == [p.places for p in again] != [p.places for p in other]


def test_random_points_come_in_the_same_order_in_a_wider_grid() -> None:
    narrow, wide = axes_of("t0=0.1:0.9:9"), axes_of("t0=0.1:0.9:17")
    first = [value for value in drawn_in_order(wide) if value in drawn_in_order(narrow)]
    assert first == drawn_in_order(narrow)


def drawn_in_order(axes: list[Axis]) -> list[Any]:
    seen: list[Any] = []
    for n in range(1, len(axes[0].values) + 1):
        seen += [point.changes["t0"] for point in points(SDEdit(), axes, n) if point.changes["t0"] not in seen]
    return seen


def test_a_refused_combination_is_a_point_and_not_an_error() -> None:
    found = points(SDEdit(), axes_of("solver=ddim,ddpm", "solver.eta=0,1"))
    assert [point.error is None for point in found] == [True, True, False, False]
    assert "no field 'solver.eta'" in (found[2].error or "")
    assert found[1].settings == SDEdit(solver=DDIM(eta=1.0))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "there is nothing to vary; give --sweep FIELD=A,B,C"),
        (["t0"], "--sweep t0 names no field and values; write --sweep FIELD=A,B,C"),
        (["=1"], "names no field and values"),
        (["t0="], "--sweep t0= sweeps over nothing; give at least one value"),
        (["t0=,"], "sweeps over nothing"),
        (["t0=0.1", "t0=0.2"], "t0 is swept twice; give all its values in one --sweep"),
        (["t0+repeats=0.1+1", "repeats=2"], "repeats is swept twice"),
        (["t0+t0=0.1+0.2"], "names a field twice"),
        (["t0=0.1,0.10"], "t0 has the value 0.1 twice; leave one of them out"),
        (["solver=ddim;ddim:eta=0"], "solver has the value ddim twice"),
        (["t0=0.1:0.9:1"], "asks for 1 values of a range"),
        (["t0=e:1:5"], "is no range; write FIELD=LOW:HIGH:COUNT"),
        (["t0+repeats=0.1+1,0.2"], "has the value '0.2'; t0+repeats needs 2 parts"),
        (["t00=1"], "SDEdit has no field 't00'; did you mean t0?"),
        (["solver.etta=1", "t0=0.5"], "SDEdit has no field 'solver.etta'"),
        (["t0=0.1,2", "repeats=1,2"], "t0=2 is refused: t0 is 2.0; it must lie in [0, 1]"),
        (["t0=0.1,low"], "t0 is 'low'; expected float"),
    ],
)
def test_a_bad_sweep_is_one_clear_error(texts: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        axes = axes_of(*texts)
        check_axes(axes)
        points(SDEdit(), axes)
    assert message in str(error.value)


def test_as_many_random_points_as_there_are_is_the_most() -> None:
    axes = axes_of("t0=0.1,0.2", "repeats=1,2")
    assert [p.places for p in points(SDEdit(), axes, 4)] == [p.places for p in points(SDEdit(), axes)]
    for n in (0, 5):
        with pytest.raises(UserError, match=f"random is {n}; the grid has 4 points, so 1 to 4 fit"):
            points(SDEdit(), axes, n)


def test_a_grid_that_nobody_can_run_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="the grid has 1002001 points; 1000000 at most"):
        points(SDEdit(), [Axis(fields=(name,), values=tuple((i,) for i in range(1001))) for name in ("t0", "steps")])

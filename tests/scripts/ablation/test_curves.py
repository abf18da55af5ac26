"""Curves from files of ablations: what they visit, what is as good on each, and the pictures that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from steerdiff import UserError
from steerdiff.scripts.ablation.curves import Curve, Stop, at_equal, curve_plot, interpolated, read_curve
from steerdiff.scripts.ablation.kept import PICTURES, TABLES, names, page
from steerdiff.scripts.ablation.labels import Label, place_labels
from steerdiff.scripts.ablation.plots import figure_of
from steerdiff.scripts.ablation.studies import read_study
from steerdiff.train.benchmark import SCORES, TASKS, Interval

PAIR = ("right", "outside")


def curve(*points: tuple[float, float], label: str = "one") -> Curve:
    """Return a curve through shares and errors, with intervals 0.1 and 1 below and above them."""
    return Curve(
        label,
        tuple(
            Stop(str(number), Interval(up, up - 0.1, up + 0.1), Interval(right, right - 1, right + 1))
            for number, (up, right) in enumerate(points)
        ),
    )


def flat(values: tuple[Any, ...]) -> list[Any]:
    """Return the values of a setting, those of joined fields one by one."""
    return [part for value in values for part in (value if isinstance(value, list) else [value])]


def write(file: Path, sweep: dict[str, Sequence[Any]], scores: dict[str, list[float]]) -> None:
    """Write an ``ablation.csv``: a setting for each entry of the lists, whose intervals reach 0.5 to either side."""
    lines = [f"method,task,{','.join(sweep)},score,value,low,high,n,evaluations,key,error"]
    for number, values in enumerate(zip(*sweep.values(), strict=True)):
        for name, found in scores.items():
            numbers = f"{found[number]},{found[number] - 0.5},{found[number] + 0.5}"
            lines.append(f"made,object,{','.join(map(str, values))},{name},{numbers},64,8.0,k,")
    file.write_text("\n".join(lines) + "\n")


# reading


def test_a_curve_has_the_settings_of_a_file_in_their_order(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", {"t0": [0.9, 0.5]}, {"right": [0.8, 0.4], "outside": [6.0, 4.0]})
    assert read_curve(tmp_path / "a.csv", "made", PAIR, "t0") == Curve(
        "made",
        (
            Stop("0.9", Interval(0.8, 0.8 - 0.5, 0.8 + 0.5), Interval(6.0, 5.5, 6.5)),
            Stop("0.5", Interval(0.4, 0.4 - 0.5, 0.4 + 0.5), Interval(4.0, 3.5, 4.5)),
        ),
    )


def test_a_curve_can_be_part_of_a_grid(tmp_path: Path) -> None:
    sweep = {"guidance": [1.0, 1.0, 3.0, 3.0], "tune_steps": [80, 0, 80, 0]}
    write(tmp_path / "a.csv", sweep, {"right": [0.1, 0.2, 0.3, 0.4], "outside": [1.0, 2.0, 3.0, 4.0]})
    found = read_curve(tmp_path / "a.csv", "tuned", PAIR, "guidance", {"tune_steps": 80})
    assert [(stop.label, stop.right.value) for stop in found.stops] == [("1", 1.0), ("3", 3.0)]


@pytest.mark.parametrize(
    ("along", "where", "scores", "message"),
    [
        ("eta", {}, PAIR, "no setting with eta and the scores right and outside"),
        ("t0", {"eta": 1.0}, PAIR, "no setting with t0, eta 1 and"),
        ("t0", {}, ("right", "kid"), "and the scores right and kid"),
    ],
)
def test_a_curve_that_is_not_in_the_file_is_an_error(
    along: str, where: dict[str, float], scores: tuple[str, str], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "a.csv", {"t0": [0.5]}, {"right": [0.4], "outside": [4.0]})
    with pytest.raises(UserError, match=message):
        read_curve(tmp_path / "a.csv", "made", scores, along, where)


# as good


def test_between_two_stops_means_and_ends_are_interpolated() -> None:
    assert interpolated(curve((0.2, 4.0), (0.6, 12.0)), 0.3, "outside") == Interval(6.0, 5.0, 7.0)
    assert interpolated(curve((0.6, 12.0), (0.2, 4.0)), 0.6, "outside") == Interval(12.0, 11.0, 13.0)


@pytest.mark.parametrize("level", [0.1, 0.7])
def test_a_share_that_a_curve_does_not_reach_has_nothing(level: float) -> None:
    assert interpolated(curve((0.2, 4.0), (0.6, 12.0)), level, "outside") is None


def test_of_several_places_of_the_same_share_the_better_counts() -> None:
    there_and_back = curve((0.0, 8.0), (0.8, 4.0), (0.0, 0.0))
    for name, best in (("outside", 2.0), ("layout", 6.0)):
        found = interpolated(there_and_back, 0.4, name)
        assert found is not None and found.value == pytest.approx(best)
    assert interpolated(curve((0.5, 3.0), (0.5, 2.0)), 0.5, "outside") == Interval(3.0, 2.0, 4.0)


def test_curves_are_compared_between_the_least_and_the_most_that_both_reach() -> None:
    one, other = curve((0.0, 2.0), (0.88, 10.8)), curve((0.65, 20.0), (0.95, 50.0), label="other")
    assert at_equal([one, other], PAIR).splitlines() == [
        "| right | error outside, one | error outside, other |",
        "| --- | --- | --- |",
        "| 65 % | 8.50 (7.50 to 9.50) | 20.0 (19.0 to 21.0) |",
        "| 70 % | 9.0 (8.0 to 10.0) | 25.0 (24.0 to 26.0) |",
        "| 80 % | 10.0 (9.0 to 11.0) | 35.0 (34.0 to 36.0) |",
        "| 88 % | 10.8 (9.8 to 11.8) | 43.0 (42.0 to 44.0) |",
    ]


def test_of_curves_without_a_share_in_common_it_is_said_what_each_reaches() -> None:
    one, other = curve((0.4, 2.0), (0.0, 1.0)), curve((0.5, 1.0), (0.9, 2.0), label="other")
    assert at_equal([one, other], PAIR) == "No share right is reached by all: one 0 to 40 %, other 50 to 90 %.\n"


# pictures


def test_curves_are_drawn_to_the_same_bytes_and_each_is_seen() -> None:
    one, other = curve((0.0, 2.0), (0.88, 10.8)), curve((0.65, 20.0), (0.95, 50.0), label="other")
    first = curve_plot([one, other], PAIR, "Title", "along t0")
    assert first == curve_plot([one, other], PAIR, "Title", "along t0")
    colours = {colour for _, colour in Image.open(BytesIO(first)).convert("RGB").getcolors(1 << 20) or []}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours
    assert first != curve_plot([one], PAIR, "Title", "along t0")


def test_labels_stand_off_lines_and_off_each_other_and_inside() -> None:
    figure = figure_of((4.0, 4.0))
    panel = figure.subplots()
    panel.set(xlim=(0, 10), ylim=(0, 10))
    line = [(1.0, 1.0), (5.0, 5.0), (5.0, 5.0), (9.0, 9.0)]
    place_labels(panel, [Label("0.25", x, y, "#000000") for x, y in line], [line])
    figure.draw_without_rendering()
    boxes = [note.get_window_extent() for note in panel.texts]
    frame = panel.get_window_extent()
    for number, box in enumerate(boxes):
        steps = [panel.transData.transform((place / 50, place / 50)) for place in range(50, 451)]
        assert not any(box.contains(*step) for step in steps)
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1


# what is kept


def test_the_tables_name_ablations_and_scores_that_say_something_of_their_tasks() -> None:
    assert len(names()) == len(set(names()))
    for table in TABLES.values():
        tasks = [TASKS[read_study(name).task or ""] for name in table.ablations]
        assert all(name in SCORES and any(name not in task.without for task in tasks) for name in table.columns)


def test_the_pictures_show_swept_fields_of_ablations_in_the_tables() -> None:
    for picture in PICTURES.values():
        for along in picture.curves:
            study = read_study(along.ablation)
            assert along.ablation in names() and along.field in study.sweep
            assert all(value in study.sweep[field] for field, value in along.where.items())
            assert len(picture.curves) == 1 or along.label


def test_the_page_has_every_table_and_where_curves_are_as_good(tmp_path: Path) -> None:
    for name in names():
        sweep = read_study(name).sweep
        grid = [flat(values) for values in product(*sweep.values())]
        columns = zip("+".join(sweep).split("+"), zip(*grid, strict=True), strict=True)
        write(
            tmp_path / f"{name}.csv",
            dict(columns),
            {score: [i / len(grid) for i in range(len(grid))] for score in SCORES},
        )
    text = page(tmp_path)
    for title, table in TABLES.items():
        section = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
        assert all(SCORES[name].title in section for name in table.columns), title
    for picture in PICTURES.values():
        assert (f"## {picture.title}: where as many are right\n" in text) == picture.compares
        assert Image.open(BytesIO(picture.png(tmp_path))).format == "PNG"

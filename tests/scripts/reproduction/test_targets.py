"""What results should show, line by line beside what their images show, and what recipes say they measure."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from torch import Tensor, nn

from steerdiff.errors import UserError
from steerdiff.guidance.settings import Sampling
from steerdiff.io import read_settings
from steerdiff.scripts.papers import PAPERS
from steerdiff.scripts.papers.recipe import Data, MetricName, Ours, Published, Recipe, Run
from steerdiff.scripts.reproduction.metrics import METRICS
from steerdiff.scripts.reproduction.places import read_data
from steerdiff.scripts.reproduction.running import Experiment, draw
from steerdiff.scripts.reproduction.toy import toy_recipe, write_toy_data
from steerdiff.train.benchmark import draw_cases

from ...guidance.toys import formula_model
from .conftest import SIZE, pictures

RECIPES = {f"{paper.name}-{one.name}": one for paper in PAPERS.values() for one in paper.recipes}
WITH_TARGETS = [name for name, recipe in RECIPES.items() if recipe.data.targets]
SDEDIT = PAPERS["sdedit"].recipes[0]
HEARD: list[dict[str, Any]] = []


@dataclass(frozen=True)
class Listens:
    """A method that gives its images back and keeps what it was told."""

    strength: float = 1.0

    def __call__(self, model: Any, image: Tensor, **told: Any) -> Tensor:
        HEARD.append({"image": image.mean((1, 2, 3)).tolist(), **told})
        return image


def edited(**changes: Any) -> Recipe:
    """Return a recipe of one run with images, prompts and targets."""
    data = Data(name="pictures", images="pictures", prompts=True, targets=True)
    runs = (Run(label="only", settings=Listens()),)
    values = {"data": data, "runs": runs, "metrics": ("rms",), "published": (), "ours": (), "n": None, **changes}
    return replace(SDEDIT, name="told", **values)


def folder_of(path: Path, prompts: str, targets: str | None, n: int = 3) -> Path:
    pictures(path / "images", n)
    (path / "prompts.txt").write_text(prompts)
    if targets is not None:
        (path / "targets.txt").write_text(targets)
    return path


def takes(settings: Any, name: str) -> bool:
    return name in inspect.signature(type(settings).__call__).parameters


def test_there_are_recipes_with_targets() -> None:
    assert {"p2p-photographs", "diffedit-coco"} <= set(WITH_TARGETS)


@pytest.mark.parametrize("name", WITH_TARGETS)
def test_targets_are_said_where_the_methods_take_them_beside_what_the_images_show(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.data.prompts and recipe.data.images is not None
    for run in (*recipe.runs, *recipe.toy.runs):
        assert (
            not isinstance(run.settings, Sampling) and takes(run.settings, "prompt") and takes(run.settings, "target")
        )


@pytest.mark.parametrize("name", WITH_TARGETS)
def test_the_toys_targets_are_what_their_cases_should_show(name: str, tmp_path: Path) -> None:
    toy = toy_recipe(RECIPES[name])
    inputs, n = read_data(toy, write_toy_data(toy, tmp_path), toy.runs, None)
    cases = draw_cases(toy.toy.task, toy.toy.n)
    assert n == len(cases) == len(inputs.images)
    assert inputs.targets == tuple(case.target_text for case in cases)
    assert inputs.prompts == tuple(case.source_text for case in cases) and inputs.prompts != inputs.targets


def test_each_target_reaches_the_method_with_its_image_and_is_recorded(tmp_path: Path) -> None:
    HEARD.clear()
    data = folder_of(tmp_path / "data", "a cat\na dog\na bird\n", "a fox\na wolf\n an owl \n")
    recipe = edited()
    inputs, n = read_data(recipe, data, recipe.runs, None)
    model = formula_model(nn.Identity(), SIZE)
    fields = {"inputs": inputs, "n": n, "batch": 2, "folder": tmp_path / "out", "model": model}
    experiment = Experiment(paper="told", recipe=recipe, runs=recipe.runs, **fields)
    drawn = draw(experiment, recipe.runs[0])
    assert [(told["prompt"], told["target"]) for told in HEARD] == [
        (["a cat", "a dog"], ["a fox", "a wolf"]),
        (["a bird"], ["an owl"]),
    ]
    means = [float(inputs.image(number, (SIZE, SIZE)).mean()) for number in range(3)]
    assert [mean for told in HEARD for mean in told["image"]] == pytest.approx(means)
    recorded = [read_settings(path)["target"] for path in sorted(drawn.folder.glob("*.png"))]
    assert recorded == ["a fox", "a wolf", "an owl"]
    (data / "targets.txt").write_text("a fox\na wolf\na bear\n")
    changed = replace(experiment, inputs=read_data(recipe, data, recipe.runs, None)[0])
    with pytest.raises(UserError, match='was drawn with target "an owl", now "a bear"'):
        draw(changed, recipe.runs[0])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (None, "there is no file .*targets.txt"),
        ("\n \n", "targets.txt is empty; write one prompt a line"),
        ("a\n\nb\nc\n", "line 2 of .*targets.txt is blank"),
    ],
)
def test_targets_that_are_not_there_are_an_error(tmp_path: Path, targets: str | None, message: str) -> None:
    recipe = edited()
    data = folder_of(tmp_path, "a\nb\nc\n", targets)
    with pytest.raises(UserError, match=message):
        read_data(recipe, data, recipe.runs, None)


@pytest.mark.parametrize("short", ["images", "prompts.txt", "targets.txt"])
def test_each_result_needs_an_image_a_prompt_and_a_target(tmp_path: Path, short: str) -> None:
    recipe = edited(n=3)
    lines = {name: "a\nb\n" if name == short else "a\nb\nc\n" for name in ("prompts.txt", "targets.txt")}
    data = folder_of(tmp_path, *lines.values(), n=2 if short == "images" else 3)
    with pytest.raises(UserError, match=f"{short} has 2 and 3 are asked for"):
        read_data(recipe, data, recipe.runs, None)
    assert read_data(replace(recipe, n=None), data, recipe.runs, None)[1] == 2  # as many as all three have


def test_without_targets_the_file_is_not_asked_for(tmp_path: Path) -> None:
    recipe = edited()
    plain = replace(recipe, data=replace(recipe.data, targets=False))
    assert read_data(plain, folder_of(tmp_path, "a\nb\nc\n", None), plain.runs, None)[0].targets == ()


def test_the_names_of_metrics_are_those_that_can_be_measured() -> None:
    assert set(get_args(MetricName)) == set(METRICS)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_measures_what_it_compares_and_its_data_have_what_that_needs(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.metrics and len(set(recipe.metrics)) == len(recipe.metrics) and set(recipe.metrics) <= set(METRICS)
    data = recipe.data
    has = {"image": data.images, "reference": data.reference, "mask": data.masks, "subject": data.subject}
    for metric in recipe.metrics:
        need = METRICS[metric].needs
        assert need not in has or has[need], f"{metric} is compared with what the data have not"
    for number in (*recipe.published, *recipe.ours):
        assert number.metric in recipe.metrics and math.isfinite(number.value)
        assert number.n is None or (isinstance(number.n, int) and number.n > 0)
        assert number.metric not in ("precision", "recall") or 0 <= number.value <= 1


PUBLISHED = Published(value=1.0, metric="fid", setting="only", source="Table 1", read=True)
OURS = Ours(value=1.0, metric="rms", setting="only", n=3, version="0", command="steerdiff reproduce told")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"published": (PUBLISHED,)}, "told: fid is published but not measured"),
        ({"ours": (replace(OURS, metric="fid"),)}, "told: fid is published but not measured"),
        ({"ours": (replace(OURS, setting="other"),)}, "told: our result is of 'other', which is no run"),
        ({"runs": ()}, r"the runs of told are \[\]"),
        ({"runs": (Run(label="one", settings=Listens()),) * 2}, r"the runs of told are \['one', 'one'\]"),
        ({"runs": (Run(label="one", settings=Listens(), masks="thin"),)}, "one uses masks 'thin', which the data do"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    edited(published=(replace(PUBLISHED, metric="rms"),), ours=(OURS,))
    with pytest.raises(UserError, match=message):
        edited(**changes)

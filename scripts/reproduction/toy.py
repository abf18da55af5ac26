"""A recipe at toy size: emoji scenes laid out as its data, the embedded model in place of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.io import atomic_write, save_image
from steerdiff.methods.dreambooth_tuning import noun_behind
from steerdiff.scripts.papers.recipe import Recipe
from steerdiff.train.benchmark import Case, draw_cases
from steerdiff.train.scene_text import RESERVED_WORDS

from .masks import DRAWN

__all__ = ["toy_recipe", "write_toy_data"]

_REFERENCES = 16  # true scenes that results are compared with


def toy_recipe(recipe: Recipe) -> Recipe:
    """Return a recipe with the runs, the count and the data of its toy; layout and metrics stay."""
    toy = recipe.toy
    kinds = {run.masks: recipe.data.masks.get(run.masks, "") for run in toy.runs if run.masks is not None}
    data = replace(
        recipe.data,
        name=f"cases of the benchmark's task {toy.task!r}",
        masks=kinds,
        prompts=recipe.classifier is None,  # a classifier alone says what to draw
        box=None,
        bilinear=False,
    )
    return replace(recipe, runs=toy.runs, n=toy.n, data=data, published=(), ours=())


def write_toy_data(recipe: Recipe, folder: Path) -> Path:
    """Write the data of a toy recipe as a person would lay them out, and return the folder."""
    toy = recipe.toy
    cases = draw_cases(toy.task, toy.n) if recipe.data.subject is None else draw_cases(toy.task, 1) * toy.n
    if recipe.data.subject is not None:
        _save([cases[0].image], folder / "subject" / noun_behind(RESERVED_WORDS[0], [cases[0].source_text]))
    if recipe.data.images is not None:
        _save([case.image for case in cases], folder / "images")
    for kind in recipe.data.masks:
        if kind not in DRAWN:
            _save([_as_published(case) for case in cases], folder / "masks" / kind)
    shown = [case.target_text for case in cases]
    if recipe.data.prompts:
        _write([case.source_text for case in cases] if recipe.data.targets else shown, folder / "prompts.txt")
    if recipe.data.targets:
        _write(shown, folder / "targets.txt")
    if recipe.data.reference is not None:
        _save([case.truth for case in draw_cases("draw", _REFERENCES, seed=1)], folder / "reference")
    return folder


def _as_published(case: Case) -> Tensor:
    """Return the mask of a case as an image in [-1, 1] whose white is known."""
    if case.mask is None:
        raise UserError(f"the task {case.task!r} has no masks; the toy needs one that has")
    return 1 - 2 * case.mask


def _write(lines: Sequence[str], path: Path) -> None:
    text = "".join(f"{line}\n" for line in lines)
    atomic_write(path, lambda file: file.write(text.encode()))


def _save(images: Sequence[Tensor], folder: Path) -> None:
    for number, image in enumerate(images):
        save_image(image, folder / f"{number:06d}.png")

"""One call of ``steerdiff reproduce``: from flags to a report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerdiff.errors import UserError, require, warn
from steerdiff.guidance.loading import load_classifier
from steerdiff.io import ensure_writable
from steerdiff.models.published import PRESETS, open_published
from steerdiff.scripts.arguments import plain
from steerdiff.scripts.papers import Paper
from steerdiff.scripts.papers.recipe import Recipe, Run, Weights
from steerdiff.scripts.runtime import ModelFlags, environment
from steerdiff.scripts.suggestions import closest

from .measuring import Ruler
from .places import Inputs, find_weights, missing_data, read_data, weights_folder
from .report import Report, compare
from .running import Drawn, Experiment, draw
from .text import command_of, recipe_text
from .toy import toy_recipe, write_toy_data

if TYPE_CHECKING:
    from steerdiff.scripts.reproduce import Reproduce

__all__ = ["lacking", "run_real", "run_toy", "shown"]


_TOY_CLASSIFIER = "emoji64-classifier"  # in the place of the classifier of a recipe, at toy size


def shown(paper: Paper, recipe: Recipe, missing: Sequence[str] = ()) -> str:
    """Return a recipe for the terminal, with what is missing to run it."""
    if not missing:
        return recipe_text(paper, recipe)
    lines = [f"not run: {what}" for what in missing]
    return "\n".join([recipe_text(paper, recipe), *lines, f"run it by: {command_of(paper, recipe)}", ""])


def lacking(recipe: Recipe, flags: Reproduce) -> list[str]:
    """Return what was not given and not found: weights and data. What was given and is wrong is an error later."""
    found = []
    runs = chosen_runs(recipe, flags.setting)
    for role, weights, given in _needed(recipe, runs, flags):
        if given is None and find_weights(weights.preset) is None:
            folder = weights_folder()
            place = (
                "STEERDIFF_WEIGHTS names no folder"
                if folder is None
                else f"nothing of that name in {folder.absolute()}"
            )
            files = " or ".join(PRESETS[weights.preset].files)
            flag = "--weights" if role == "model" else "--classifier"
            found.append(f"weights absent: {role} {weights.preset} ({files}); no {flag} was given, and {place}")
    missing = missing_data(recipe, flags.data, runs)
    if missing is not None and flags.data is None:
        found.append(f"data absent: {missing}")
    return found


def chosen_runs(recipe: Recipe, labels: Sequence[str]) -> tuple[Run, ...]:
    """Return the runs of these labels, or the first without any; UserError names the nearest of an unknown one."""
    if not labels:
        return recipe.runs[:1]
    if tuple(labels) == ("all",):
        return recipe.runs
    known = {run.label: run for run in recipe.runs}
    for label in labels:
        require(label in known, f"{recipe.name} has no setting {label!r}; {closest(label, known)}, or all")
    return tuple(known[label] for label in dict.fromkeys(labels))


def run_real(paper: Paper, recipe: Recipe, flags: Reproduce) -> Report:
    """Run a recipe on the weights and data that were given, and save images and report.

    Raises:
        UserError: Something is wrong with weights, data or flags, before anything is drawn.
    """
    runs = chosen_runs(recipe, flags.setting)
    inputs, n = read_data(recipe, flags.data, runs, flags.n)
    folder = ensure_writable(flags.out / paper.name / recipe.name)
    options: dict[str, Any] = {"device": flags.device, "precision": flags.precision, "threads": flags.threads}
    source, config = _weights(recipe.weights, flags.weights, flags.weights_config)
    models = ModelFlags(weights=str(source), weights_config=config, **options)
    model = models.load()
    classifier = None
    if any(recipe.pulls(run) for run in runs) and recipe.classifier is not None:
        source, config = _weights(recipe.classifier, flags.classifier, flags.classifier_config)
        classifier = load_classifier(str(source), config, device=models.place(), dtype=model.dtype)
    doubts = []
    if recipe.n is not None and n != recipe.n:
        doubts.append(f"{n} results are a part of the recipe's {recipe.n}")
    if model.name != recipe.weights.preset:
        doubts.append(f"the weights are {model.name}, not {recipe.weights.preset}")
    experiment = Experiment(
        paper=paper.name,
        recipe=recipe,
        runs=runs,
        model=model,
        classifier=classifier,
        inputs=inputs,
        n=n,
        seed=flags.seed,
        batch=flags.batch,
        folder=folder,
        fresh=flags.fresh,
    )
    return _carried_out(experiment, Ruler(experiment=experiment, device=str(model.device)), doubts, data=flags.data)


def run_toy(paper: Paper, recipe: Recipe, flags: Reproduce) -> Report:
    """Run a recipe at toy size: the same steps from the files of data to the report."""
    for name in ("weights", "classifier", "data", "n"):
        require(getattr(flags, name) is None, f"--toy has its own {name}; leave --{name} out")
    toy = toy_recipe(recipe)
    runs = chosen_runs(toy, flags.setting or ("all",))
    folder = ensure_writable(flags.out / paper.name / f"{recipe.name}-toy")
    data = write_toy_data(toy, folder / "data")
    inputs, n = read_data(toy, data, runs, None)
    model = ModelFlags(device=flags.device, precision=flags.precision, threads=flags.threads).load()
    experiment = Experiment(
        paper=paper.name,
        recipe=toy,
        runs=runs,
        model=model,
        classifier=None if recipe.classifier is None else load_classifier(_TOY_CLASSIFIER, device=model.device),
        inputs=inputs,
        n=n,
        seed=flags.seed,
        batch=flags.batch,
        folder=folder,
        fresh=flags.fresh,
    )
    doubts = ["a toy run on the embedded model"]
    return _carried_out(experiment, Ruler(experiment=experiment, toy=True), doubts, data=data)


def _carried_out(experiment: Experiment, ruler: Ruler, doubts: Sequence[str], *, data: Path | None) -> Report:
    """Draw, measure, compare and save."""
    recipe, runs = experiment.recipe, experiment.runs
    _check_pictures(experiment)
    for reason in ruler.foreseen():
        warn(reason)
    drawn = {run.label: draw(experiment, run, progress=run.label) for run in runs}
    measured = [one for run in runs for one in ruler.measure(run, drawn[run.label].folder)]
    remarks = [recipe.missing] if recipe.missing else []
    if ruler.toy and recipe.toy.remark:
        remarks.append(f"Toy: {recipe.toy.remark}.")
    report = Report(
        title=f"{experiment.paper}, {recipe.name}{' (toy)' if ruler.toy else ''}",
        facts=_facts(experiment, drawn, data),
        rows=tuple(compare(recipe, measured, doubts)),
        remarks=tuple(remarks),
    )
    report.save(experiment.folder)
    return report


def _facts(experiment: Experiment, drawn: dict[str, Drawn], data: Path | None) -> dict[str, Any]:
    model, classifier, inputs = experiment.model, experiment.classifier, experiment.inputs
    return {
        "paper": experiment.paper,
        "recipe": experiment.recipe.name,
        "n": experiment.n,
        "seed": experiment.seed,
        "batch": experiment.batch,
        "settings": {run.label: plain(run.settings) for run in experiment.runs},
        "drawn now": {label: one.drawn for label, one in drawn.items()},
        "evaluations of each": {label: one.evaluations for label, one in drawn.items()},
        "model": {"name": model.name, "sha256": model.weights_hash, "dtype": str(model.dtype)},
        "classifier": None if classifier is None else classifier.weights_hash,
        "data": None if data is None else str(data),
        "reference": None if inputs.reference is None else str(inputs.reference),
        "environment": environment(str(model.device)),
    }


def _check_pictures(experiment: Experiment) -> None:
    """Read every picture that will be used once, so that a bad one is found before anything is drawn."""
    inputs: Inputs = experiment.inputs
    size = experiment.model.size
    kinds = sorted({run.masks for run in experiment.runs if run.masks is not None})
    for number in range(experiment.n if inputs.images else 0):
        inputs.image(number, size)
        for kind in kinds:
            inputs.mask(kind, number, size)


def _needed(recipe: Recipe, runs: Sequence[Run], flags: Reproduce) -> list[tuple[str, Weights, Path | None]]:
    """Return role, weights and what was given of all that the runs need."""
    needed = [("model", recipe.weights, flags.weights)]
    if recipe.classifier is not None and any(recipe.pulls(run) for run in runs):
        needed.append(("classifier", recipe.classifier, flags.classifier))
    return needed


def _weights(weights: Weights, given: Path | None, config: str | None) -> tuple[Path, str | None]:
    """Return the file and what it is: a file of this library says so itself, of others the recipe's preset does."""
    source = given if given is not None else find_weights(weights.preset)
    if source is None:
        raise UserError(f"the weights of {weights.preset} are absent; give their file")
    require(os.path.exists(source), f"'{source}' is neither a file nor a folder; give the weights of {weights.preset}")
    own = "steerdiff" in open_published(source).metadata
    return source, config if config is not None or own else weights.preset

"""Runs a recipe: draws the images of its runs, one file each, and skips those that are there."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from steerdiff._version import __version__
from steerdiff.errors import UserError
from steerdiff.guidance import Model
from steerdiff.guidance.classifier import ClassifierGuidance
from steerdiff.guidance.settings import Sampling
from steerdiff.io import ensure_writable, read_settings, save_image
from steerdiff.models import file_hash
from steerdiff.samplers import Denoiser
from steerdiff.scripts.arguments import plain
from steerdiff.scripts.evaluation.cells import counted
from steerdiff.scripts.outputs import FORMAT
from steerdiff.scripts.papers.recipe import Recipe, Run
from steerdiff.scripts.runtime import environment

from .places import Inputs, pictures_in

__all__ = ["Drawn", "Experiment", "draw"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Experiment:
    """A recipe with all that it needs to run."""

    paper: str  #: name of the paper
    recipe: Recipe
    runs: tuple[Run, ...]  #: those of the recipe that are run
    model: Model
    classifier: Any = None  #: ``classifier(x, t) -> logits`` with ``num_classes``; None without one
    inputs: Inputs
    n: int  #: results of each run
    seed: int = 0  #: result k is drawn with seed + k, and so is its label
    batch: int = 16  #: results computed together
    folder: Path  #: for images and report
    fresh: bool = False  #: draw again what was drawn with other settings

    def images_of(self, run: Run) -> Path:
        """Return the folder of a run's results."""
        return self.folder / "images" / re.sub(r"[^a-z0-9.]+", "-", run.label.lower()).strip("-")

    def classifier_of(self, run: Run) -> Any:
        """Return the classifier of a run that uses it, else None."""
        return self.classifier if self.recipe.pulls(run) else None

    def label_of(self, run: Run, number: int) -> int | None:
        """Return the label of a result, uniform and fixed by the seed; None without labels."""
        classes, classifier = self.model.num_classes, self.classifier_of(run)
        classes = classes if classes is not None or classifier is None else int(classifier.num_classes)
        return None if classes is None else int(np.random.default_rng((self.seed, number)).integers(classes))


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What became of a run."""

    folder: Path  #: of its images
    drawn: int  #: images that were computed now; the others were there
    evaluations: float | None  #: images through the network for each of those; None if all were there


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pulled(Model):
    """A model whose every denoiser is pulled by a classifier, for methods that know nothing of one."""

    classifier: Any
    targets: Tensor  #: labels [B] of the images that are computed together
    scale: float

    def denoiser(self, *arguments: Any, **options: Any) -> Denoiser:
        """Return the model's denoiser inside `ClassifierGuidance`."""
        plainly = super().denoiser(*arguments, **options)
        return ClassifierGuidance(denoise=plainly, classifier=self.classifier, y=self.targets, scale=self.scale)


def draw(experiment: Experiment, run: Run, progress: str | None = None) -> Drawn:
    """Draw the results of a run that are not there yet, and save each as soon as its batch is done.

    Args:
        experiment: What is run.
        run: One of its runs.
        progress: Label of a progress bar; None is silent.

    Raises:
        UserError: A picture cannot be read, the settings do not fit the model, or there are images of other settings
            and ``fresh`` is False.
    """
    folder = ensure_writable(experiment.images_of(run))
    todo = [number for number in range(experiment.n) if not _is_there(experiment, run, number)]
    parts = [todo[first : first + experiment.batch] for first in range(0, len(todo), experiment.batch)]
    with counted(experiment.model) as count:
        for numbers in tqdm(parts, desc=progress, disable=progress is None, unit="batch"):
            for number, image in zip(numbers, _results(experiment, run, numbers), strict=True):
                identity = _identity(experiment, run, number)
                settings = {**identity, "environment": environment(str(experiment.model.device))}
                save_image(image, _path(folder, number), settings)
        evaluations = count() / len(todo) if todo else None
    return Drawn(folder=folder, drawn=len(todo), evaluations=evaluations)


def _results(experiment: Experiment, run: Run, numbers: Sequence[int]) -> Tensor:
    """Return the results of these numbers, [B, 3, H, W]."""
    model, inputs = experiment.model, experiment.inputs
    seeds = [experiment.seed + number for number in numbers]
    drawn = [experiment.label_of(run, number) for number in numbers]
    labels = [label for label in drawn if label is not None]
    prompts = [inputs.prompts[number] for number in numbers] if inputs.prompts else None
    classifier = experiment.classifier_of(run)
    if isinstance(run.settings, Sampling):
        single = prompts is None and not labels
        given = {"y": labels or None, "n": len(seeds) if single else 1, "classifier": classifier}
        return _samples(model, run.settings, prompts, seeds, given)
    if inputs.subject is not None:
        taught = dataclasses.replace(run.settings, images=(inputs.subject,), nouns=(inputs.subject.name,))
        drawn_of: Tensor = taught(model, prompt=prompts, seed=seeds)
        return drawn_of
    arguments: dict[str, Any] = {"seed": seeds, "prompt": prompts}
    if inputs.targets:
        arguments["target"] = [inputs.targets[number] for number in numbers]
    if model.num_classes is not None:
        arguments["prompt"] = model.condition(y=labels)
    if classifier is not None:
        own = {field.name: getattr(model, field.name) for field in dataclasses.fields(Model)}
        targets = torch.tensor(labels, device=model.device)
        scale = experiment.recipe.classifier_scale
        model = _Pulled(**own, classifier=classifier, targets=targets, scale=scale)
    if run.masks is not None:
        masks = [inputs.mask(run.masks, number, model.size) for number in numbers]
        arguments["mask"] = torch.cat(masks).to(model.device)
    images = torch.cat([inputs.image(number, model.size) for number in numbers]).to(model.device)
    result: Tensor = run.settings(model, images, **arguments)
    return result


def _samples(
    model: Model, settings: Sampling, prompts: list[str] | None, seeds: list[int], given: dict[str, Any]
) -> Tensor:
    return model.sample(
        prompts,
        **given,
        steps=settings.steps,
        guidance=settings.guidance,
        classifier_scale=settings.classifier_scale,
        seed=seeds,
        solver=settings.solver,
        spacing=settings.spacing,
        clip=settings.clip,
        batch=len(seeds),
    )


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.png"


def _is_there(experiment: Experiment, run: Run, number: int) -> bool:
    """Say whether a result is there; UserError if its settings are others and nothing may be drawn again."""
    path = _path(experiment.images_of(run), number)
    if not path.is_file():
        return False
    wanted = json.loads(json.dumps(_identity(experiment, run, number)))
    found = read_settings(path)
    changed = [name for name, value in wanted.items() if found.get(name) != value]
    if changed and not experiment.fresh:
        name = changed[0]
        was, now = (json.dumps(values.get(name))[:80] for values in (found, wanted))
        raise UserError(
            f"{path} was drawn with {name} {was}, now {now}; give --fresh to draw again what differs, or another --out"
        )
    return not changed


def _subject_of(folder: Path) -> dict[str, Any]:
    """Return the class of a subject and the hashes of its pictures."""
    return {"class": folder.name, "pictures": [file_hash(path) for path in pictures_in(folder)]}


def _identity(experiment: Experiment, run: Run, number: int) -> dict[str, Any]:
    """Return all that determines a result besides the machine; JSON-able."""
    inputs, model, classifier = experiment.inputs, experiment.model, experiment.classifier_of(run)
    masks = inputs.masks.get(run.masks, ()) if run.masks is not None else ()
    drawn = None if run.masks is None else f"drawn: {run.masks}"
    return {
        "format": FORMAT,
        "command": f"reproduce {experiment.paper}",
        "recipe": experiment.recipe.name,
        "setting": run.label,
        "method": type(run.settings).__name__,
        "settings": plain(run.settings),
        "version": __version__,
        "model": {"name": model.name, "sha256": model.weights_hash, "dtype": str(model.dtype)},
        "classifier": None
        if classifier is None
        else {"sha256": classifier.weights_hash, "scale": experiment.recipe.classifier_scale},
        "seed": experiment.seed + number,
        "label": experiment.label_of(run, number),
        "prompt": inputs.prompts[number] if inputs.prompts else None,
        "target": inputs.targets[number] if inputs.targets else None,
        "image": file_hash(inputs.images[number]) if inputs.images else None,
        "mask": file_hash(masks[number]) if masks else drawn,
        "subject": None if inputs.subject is None else _subject_of(inputs.subject),
    }

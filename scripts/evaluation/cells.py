"""A cell: one method with one setting on one task of the benchmark, for some cases and seeds."""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.guidance import Model
from steerdiff.io import to_uint8
from steerdiff.scripts.arguments import plain
from steerdiff.scripts.suggestions import closest
from steerdiff.train.benchmark import TASKS, Case, Scores, draw_cases, score_edits
from steerdiff.train.recogniser import Recogniser

from .contestants import RUNNERS

__all__ = ["Cell", "Result", "call", "compute", "score"]

_NO_BACKWARD = -1  # number of the backward pass where there is none
_SEED_STRIDE = 1000  # image of case c and seed s is drawn with s * 1000 + c


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is run; two cells that are equal give the same images."""

    method: str  #: name in ``RUNNERS``
    settings: Any  #: instance of the method's class
    task: str  #: name in ``TASKS``
    cases: int = 16  #: the first so many of the task, half of them of held-out combinations
    seeds: tuple[int, ...] = (0, 1, 2)  #: each case is run with each of them
    batch: int = 32  #: images computed together
    case_seed: int = 0  #: another one draws other cases

    def __post_init__(self) -> None:
        """Check the names and the numbers."""
        require(self.method in RUNNERS, f"there is no method {self.method!r}; {closest(self.method, RUNNERS)}")
        require(self.task in TASKS, f"there is no task {self.task!r}; {closest(self.task, TASKS)}")
        kind = RUNNERS[self.method]
        require(
            isinstance(self.settings, kind), f"settings is {self.settings!r}; {self.method} needs a {kind.__name__}"
        )
        limit = f"cases is {self.cases}; it must be from 1 to {_SEED_STRIDE}"
        require(1 <= self.cases <= _SEED_STRIDE, limit)
        distinct = len(set(self.seeds)) == len(self.seeds) > 0 and min(self.seeds) >= 0
        require(distinct, f"seeds are {self.seeds}; give one or more, all different, none negative")
        require(self.batch >= 1, f"batch is {self.batch}; it must be at least 1")

    def identity(self) -> dict[str, Any]:
        """Return all that determines the images, besides code, weights and machine; JSON-able."""
        names = ("method", "task", "cases", "batch", "case_seed")
        values = {name: getattr(self, name) for name in names}
        return {**values, "seeds": list(self.seeds), "settings": plain(self.settings)}

    @property
    def key(self) -> str:
        """Hash of the identity, 20 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:20]


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What a cell gave."""

    images: Tensor  #: uint8 [cases, seeds, 3, H, W], as they would be saved
    evaluations: float  #: images that went through the network for each result; see `counted`
    seconds: float  #: for each result, in its batch, on the machine that ran it


def compute(cell: Cell, model: Model, progress: str | None = None) -> Result:
    """Run a cell.

    Args:
        cell: What to run.
        model: A model of emoji scenes, with text.
        progress: Label of a progress bar; None is silent.

    Raises:
        UserError: The settings do not fit the model.
    """
    cases = draw_cases(cell.task, cell.cases, cell.case_seed)
    jobs = [(case, seed) for case in cases for seed in cell.seeds]
    parts: list[Tensor] = []
    tuned = getattr(cell.settings, "deltas", None)
    if tuned is not None:  # tunes now if that was not done before, which is no part of an edit's time
        tuned(model, progress)
    start = time.perf_counter()
    with counted(model) as count:
        for first in range(0, len(jobs), cell.batch):
            some = jobs[first : first + cell.batch]
            seeds = [seed * _SEED_STRIDE + case.number for case, seed in some]
            parts.append(to_uint8(call(cell.settings, model, [case for case, _ in some], seeds, progress)))
    seconds = (time.perf_counter() - start) / len(jobs)
    flat = torch.cat(parts)
    images = flat.reshape(len(cases), len(cell.seeds), *flat.shape[1:])
    return Result(images=images, evaluations=count() / len(jobs), seconds=seconds)


def score(cell: Cell, result: Result, recogniser: Recogniser | None = None) -> Scores:
    """Return the scores of what a cell gave; they are computed from the stored images and never stored themselves.

    Args:
        cell: What was run.
        result: Its images.
        recogniser: None takes the shipped one.
    """
    return score_edits(draw_cases(cell.task, cell.cases, cell.case_seed), result.images, recogniser)


def call(method: Any, model: Model, cases: Sequence[Case], seeds: Sequence[int], progress: str | None = None) -> Tensor:
    """Call a method on cases as its signature asks: with their images and masks, and a text, two texts or a class.

    A method with ``y`` gets the name of the object that each true answer shows, and no prompt, so that the class is all
    it knows. Else ``prompt`` is what the answer shows, or where the method's class says ``prompt_is = "source"`` what
    the image shows. What a task has not is left out if the method can do without.

    Args:
        method: The settings, ready to be called.
        model: A model of emoji scenes.
        cases: Of one task.
        seeds: One for each case.
        progress: Label of a progress bar; None is silent.

    Raises:
        UserError: The method needs what the task has not.
    """
    arguments = {**_pictures(method, cases, model), **_words(method, cases)}
    result: Tensor = method(model, **arguments, seed=list(seeds), progress=progress)
    return result


def _pictures(method: Any, cases: Sequence[Case], model: Model) -> dict[str, Tensor]:
    """Return the images and masks of cases, as far as the method takes them and the task has them."""
    images = [case.image for case in cases if case.has_image]
    masks = [case.mask for case in cases if case.mask is not None]
    found = {}
    for name, kind, pictures in (("image", "an image", images), ("mask", "a mask", masks)):
        parameter = _parameters(method).get(name)
        if parameter is None:
            continue
        if len(pictures) == len(cases):
            found[name] = torch.stack(pictures).to(model.device)
        _require_given(method, parameter, name in found, f"{kind}, which the task {cases[0].task!r} has not")
    return found


def _words(method: Any, cases: Sequence[Case]) -> dict[str, list[str]]:
    """Return the texts or the classes of cases that the method takes."""
    parameters, target = _parameters(method), [case.target_text for case in cases]
    if "y" in parameters:
        return {"y": [_class_of(method, case) for case in cases]}
    if "prompt" not in parameters:
        return {}
    told = {"prompt": target}
    if "target" in parameters:
        told = {"prompt": [case.source_text for case in cases], "target": target}
    elif getattr(method, "prompt_is", "target") == "source":
        told = {"prompt": [case.source_text for case in cases]}
    if all(told["prompt"]):
        return told
    what = f"a text of what the image shows, and the task {cases[0].task!r} has no image"
    _require_given(method, parameters["prompt"], False, what)
    return {name: texts for name, texts in told.items() if name != "prompt"}


def _class_of(method: Any, case: Case) -> str:
    shown = ", ".join(case.objects) or "none that is known"
    what = (
        f"{type(method).__name__} draws one class, and the answer of case {case.number} of {case.task!r} shows {shown}"
    )
    require(len(case.objects) == 1, f"{what}; give it the task 'class' or another of single objects")
    return case.objects[0]


def _parameters(method: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(method).parameters


def _require_given(method: Any, parameter: inspect.Parameter, given: bool, what: str) -> None:
    needed = parameter.default is inspect.Parameter.empty
    require(given or not needed, f"{type(method).__name__} needs {what}")


@contextmanager
def counted(model: Model) -> Iterator[Callable[[], int]]:
    """Give a function that says how many images have gone through the model's network inside the ``with``.

    Both branches of guidance count, and copies of the network that carry its hooks on, as one with tuned weights does;
    what tuning calls does not, for its copies drop them. What a backward pass computes does not count, nor activations
    that it computes again.
    """
    seen = [0]

    def count(module: Any, inputs: tuple[Any, ...]) -> None:
        if torch._C._current_graph_task_id() == _NO_BACKWARD:
            seen[0] += len(inputs[0])

    network: Any = model.network
    handle = network.register_forward_pre_hook(count)
    try:
        yield lambda: seen[0]
    finally:
        handle.remove()

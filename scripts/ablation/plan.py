"""From flags and a file to the cells of an ablation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from steerdiff.errors import UserError, require
from steerdiff.scripts.evaluation.cells import Cell
from steerdiff.scripts.evaluation.contestants import RUNNERS
from steerdiff.scripts.method_flags import presets_of
from steerdiff.scripts.papers import PAPERS, Paper, PaperSetting
from steerdiff.scripts.suggestions import closest
from steerdiff.train.benchmark import TASKS, draw_cases

from .fields import replaced
from .studies import Study
from .sweeps import Axis, Point, axis_from_list, axis_from_text, check_axes, points

__all__ = ["Plan", "Request", "method_named", "plan"]

#: What a method may need to be given, by the argument of its call: in words, and whether a task has it.
_GIVEN: dict[str, tuple[str, Callable[[str], bool]]] = {
    "mask": ("a mask", lambda task: draw_cases(task, 1)[0].mask is not None),
    "image": ("an image", lambda task: draw_cases(task, 1)[0].has_image),
    "y": ("the class of a single object", lambda task: all(len(case.objects) == 1 for case in draw_cases(task, 4))),
}
_YARDSTICK_TASKS = {"sample": "draw", "unchanged": "reconstruct"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the flags ask for; they win over the file."""

    sweep: tuple[str, ...] = ()
    set: tuple[str, ...] = ()
    preset: str | None = None
    paper: str | None = None
    tradeoff: str | None = None
    task: str | None = None
    cases: int | None = None
    seeds: int | None = None
    random: int | None = None
    random_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run."""

    method: str
    title: str
    base: Any  #: settings where nothing is swept
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    cells: tuple[Cell | None, ...]  #: one for each point; None where its settings are refused
    task: str
    cases: int
    seeds: tuple[int, ...]
    tradeoff: tuple[str, ...] | None = None  #: two scores that are set against each other


def method_named(name: str) -> type[Any]:
    """Return what can be ablated under that name; UserError names the nearest."""
    require(name in RUNNERS, f"there is no method {name!r}; {closest(name, RUNNERS)}")
    return RUNNERS[name]


def plan(method: str, asked: Request, study: Study | None = None) -> Plan:
    """Return all that is run, checked as far as can be without a model.

    Args:
        method: Name in ``RUNNERS``.
        asked: The flags.
        study: The file, if there is one.

    Raises:
        UserError: An unknown name or field, a value that does not fit, a sweep over nothing, a task without a mask.
    """
    study = study or Study(method=method)
    fixed = dict(_assignment(text) for text in asked.set)
    task, cases, seeds = _size(method, asked, study)
    base = _base(method, task, asked, study, fixed)
    axes = tuple(axis.settled(base) for axis in _axes(asked, study, fixed))
    check_axes(axes)
    found = points(base, axes, asked.random, asked.random_seed)
    _check_given(method, task)

    def cell(point: Point) -> Cell | None:
        settings = point.settings
        return settings and Cell(method=method, settings=settings, task=task, cases=cases, seeds=seeds)

    return Plan(
        method=method,
        title=study.title or f"{method}: {', '.join(axis.name for axis in axes)}",
        base=base,
        axes=axes,
        points=tuple(found),
        cells=tuple(cell(point) for point in found),
        task=task,
        cases=cases,
        seeds=seeds,
        tradeoff=tuple(name.strip() for name in asked.tradeoff.split(",")) if asked.tradeoff else study.tradeoff,
    )


def _axes(asked: Request, study: Study, fixed: Mapping[str, Any]) -> list[Axis]:
    """Return the axes of the flags, and those of the file whose fields no flag sets or sweeps."""
    own = [axis_from_text(text) for text in asked.sweep]
    swept = {field for axis in own for field in axis.fields}
    for field in fixed:
        require(field not in swept, f"{field} is both set and swept; drop --set {field}=... or the sweep")
    kept = []
    for name, values in study.sweep.items():
        axis = axis_from_list(name, values, f"the sweep of {name}")
        if not {*swept, *fixed} & set(axis.fields):
            kept.append(axis)
    return kept + own


def _base(method: str, task: str, asked: Request, study: Study, fixed: Mapping[str, Any]) -> Any:
    """Return the settings where nothing is swept: ``--preset`` or ``--paper`` stand for the whole base of the file."""
    require(asked.preset is None or asked.paper is None, "both --preset and --paper are given; the base is one of them")
    replaces = asked.preset is not None or asked.paper is not None
    preset, paper = (asked.preset, asked.paper) if replaces else (study.preset, study.paper)
    require(preset is None or paper is None, "the file has both preset and paper; the base is one of them")
    settings = method_named(method)()
    if preset is not None:
        presets = presets_of(method) if method not in _YARDSTICK_TASKS else {}
        listed = closest(preset, presets) if presets else "it has none"
        require(preset in presets, f"{method} has no preset {preset!r}; {listed}")
        settings = presets[preset]
    if paper is not None:
        settings = _paper_settings(method, paper, task)
    settings = settings if replaces else replaced(settings, study.base)
    return replaced(settings, fixed)


def _paper_settings(method: str, which: str, task: str) -> Any:
    require(which in get_args(PaperSetting), f"paper is {which!r}; give published or tuned")
    paper = _paper(method)
    settings = None if paper is None else paper.settings(cast("PaperSetting", which), task)
    require(settings is not None, f"there are no {which} settings of {method}; give a --preset or --set its fields")
    return settings


def _paper(method: str) -> Paper | None:
    return next((paper for paper in PAPERS.values() if paper.method == method), None)


def _size(method: str, asked: Request, study: Study) -> tuple[str, int, tuple[int, ...]]:
    """Return task, number of cases and seeds."""
    paper = _paper(method)
    own = paper.tasks[0] if paper and paper.tasks else _YARDSTICK_TASKS.get(method, next(iter(TASKS)))
    task = asked.task or study.task or own
    require(task in TASKS, f"there is no task {task!r}; {closest(task, TASKS)}")
    cases = 16 if study.cases is None else study.cases
    seeds = (1 if paper and paper.deterministic else 3) if study.seeds is None else study.seeds
    cases, seeds = (cases if asked.cases is None else asked.cases), (seeds if asked.seeds is None else asked.seeds)
    require(cases >= 1, f"cases is {cases}; it must be at least 1")
    require(seeds >= 1, f"seeds is {seeds}; it must be at least 1")
    return task, cases, tuple(range(seeds))


def _check_given(method: str, task: str) -> None:
    """Raise ``UserError`` if the method needs a picture or a class and the task has none."""
    parameters = inspect.signature(RUNNERS[method].__call__).parameters
    for name, (what, has) in _GIVEN.items():
        parameter = parameters.get(name)
        needed = parameter is not None and parameter.default is inspect.Parameter.empty
        if needed and not has(task):
            fit = ", ".join(name for name in TASKS if has(name))
            raise UserError(f"{method} needs {what}, which the task {task!r} has not; these have one: {fit}")


def _assignment(text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    require(bool(equals) and bool(field.strip()), f"--set {text} sets nothing; write --set FIELD=VALUE")
    return field.strip(), value

"""Who runs on which task: the methods of the papers, with their settings, and two yardsticks that need no method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from steerdiff.errors import require
from steerdiff.scripts.papers import PAPERS, Paper, PaperSetting
from steerdiff.scripts.suggestions import closest
from steerdiff.train.benchmark import TASKS, draw_cases

from .cells import Cell
from .contestants import TextToImage, Unchanged

__all__ = [
    "SETTINGS",
    "YARDSTICKS",
    "Entrant",
    "Setting",
    "check_names",
    "entrants",
    "methods",
    "unclaimed",
    "yardsticks",
]

Setting = Literal["published", "tuned", "yardstick"]
#: In the order of the tables.
SETTINGS: tuple[Setting, ...] = ("published", "tuned", "yardstick")
#: What an edit is worth that does nothing, and one that forgets its image.
YARDSTICKS = {"unchanged": Unchanged(), "sample": TextToImage(steps=12)}


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A method with one setting on one task."""

    method: str  #: name in ``RUNNERS``
    setting: Setting
    cell: Cell  #: what is run
    paper: str = ""  #: name in ``PAPERS``; none of a yardstick

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"{self.method}, {self.setting}"

    @property
    def slug(self) -> str:
        """Its part in names of files, different for all entrants of a task."""
        return "-".join(filter(None, (self.paper, self.method, self.setting)))


def entrants(
    cases: int, seeds: int, *, tuned_only: bool = False, tasks: Sequence[str] = (), only: Sequence[str] = ()
) -> dict[str, list[Entrant]]:
    """Return who runs, by task: published settings, tuned ones, then the yardsticks; no task that none of them claims.

    Args:
        cases: Cases of each task.
        seeds: Each case is run with seeds 0, 1, ...; fewer where the paper's entry says so.
        tuned_only: Leave the published settings out.
        tasks: Names in ``TASKS``; empty takes all.
        only: Names of methods; empty takes all.

    Raises:
        UserError: Nobody is left.
    """
    found = {}
    for task in TASKS if not tasks else [task for task in TASKS if task in tasks]:
        papers = [paper for paper in _papers() if task in paper.tasks and (not only or paper.method in only)]
        if papers:
            settings: tuple[PaperSetting, ...] = ("tuned",) if tuned_only else ("published", "tuned")
            some = [_entrant(paper, setting, task, cases, seeds) for setting in settings for paper in papers]
            found[task] = some + [_yardstick(name, task, cases, seeds) for name in yardsticks(task)]
    require(
        bool(found), f"nobody is left: {_listed(only) or 'no method'} claims none of {_listed(tasks) or 'the tasks'}"
    )
    return found


def methods() -> list[str]:
    """Return the names of the methods that claim tasks, in the order of their papers."""
    return list(dict.fromkeys(str(paper.method) for paper in _papers()))


def yardsticks(task: str) -> list[str]:
    """Return the yardsticks of a task; where no image is given, none can stay unchanged."""
    given = draw_cases(task, 1)[0].has_image
    return [name for name in YARDSTICKS if given or name != "unchanged"]


def unclaimed(tasks: Sequence[str] = ()) -> list[str]:
    """Return which of some tasks (none: all) no method claims."""
    claimed = {task for paper in _papers() for task in paper.tasks}
    return [task for task in TASKS if task not in claimed and (not tasks or task in tasks)]


def check_names(tasks: Sequence[str], only: Sequence[str]) -> None:
    """Raise ``UserError`` for the first task or method that does not exist, and name the nearest ones."""
    for task in tasks:
        require(task in TASKS, f"there is no task {task!r}; {closest(task, TASKS)}")
    for method in only:
        require(method in methods(), f"no paper has a method {method!r}; {closest(method, methods())}")


def _papers() -> list[Paper]:
    return [paper for paper in PAPERS.values() if paper.method is not None]


def _entrant(paper: Paper, setting: PaperSetting, task: str, cases: int, seeds: int) -> Entrant:
    values = paper.settings(setting, task)
    cell = Cell(method=str(paper.method), settings=values, task=task, cases=cases, seeds=paper.seeds_of(seeds))
    return Entrant(method=cell.method, setting=setting, cell=cell, paper=paper.name)


def _yardstick(name: str, task: str, cases: int, seeds: int) -> Entrant:
    used = (0,) if name == "unchanged" else tuple(range(seeds))
    cell = Cell(method=name, settings=YARDSTICKS[name], task=task, cases=cases, seeds=used)
    return Entrant(method=name, setting="yardstick", cell=cell)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)

"""What an entry of a paper is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from steerdiff.errors import UserError, require
from steerdiff.scripts.ablation.fields import replaced

from .recipe import Recipe

__all__ = ["Claim", "Paper", "PaperSetting"]

PaperSetting = Literal["published", "tuned"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something a paper says, as a comparison of two settings of one method by one score."""

    text: str  #: one line, in our words
    source: str  #: where the paper says so
    method: str  #: name of a method, as in ``RUNNERS``
    task: str  #: of the benchmark
    base: Any  #: settings that both sides share, an instance of the method's class
    before: Mapping[str, Any]  #: fields of one side, by dotted path
    after: Mapping[str, Any]  #: fields of the other side, the same ones
    score: str  #: name in ``SCORES``
    rises: bool  #: the paper says that the score is higher after; False: lower
    cases: int = 16  #: of the task, to decide it

    def __post_init__(self) -> None:
        """Check that both sides set the same fields."""
        same = set(self.before) == set(self.after) and self.before != self.after
        require(same, f"the claim {self.text!r} compares {dict(self.before)} with {dict(self.after)}")


@dataclass(frozen=True, kw_only=True)
class Paper:
    """The entry of one paper."""

    name: str  #: word after ``steerdiff reproduce``
    title: str
    authors: str
    year: int
    arxiv: str  #: number, such as 2108.02938
    method: str | None = None  #: name in ``RUNNERS`` of what the benchmark runs; None: it has no entrant
    tasks: tuple[str, ...] = ()  #: of the benchmark, those that the paper claims to do
    published: Any = None  #: the published settings, translated to this model
    translation: str = ""  #: what was translated, and how
    tuned: Any = None  #: one setting for all tasks, tuned to this model on other cases than those of the benchmark
    by_task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: what both settings have otherwise on a task: fields by dotted path, such as the words of an edit
    deterministic: bool = False  #: the result does not depend on the seed
    seeds: int | None = None  #: most seeds of a case in ``evaluate edits``, where more are too slow; None: no limit
    claims: tuple[Claim, ...] = ()
    ablations: tuple[str, ...] = field(default=())  #: files in ``scripts/ablations`` without their suffix
    recipes: tuple[Recipe, ...] = ()  #: its experiments on real data and published weights, the main one first

    def __post_init__(self) -> None:
        """Check the number of seeds, and that what tasks change is there to be changed."""
        require(self.seeds is None or self.seeds >= 1, f"{self.name} has {self.seeds} seeds; give at least 1")
        for task in self.by_task:
            require(task in self.tasks, f"{self.name} has settings for {task!r}, which is none of its tasks")
            for setting in get_args(PaperSetting):
                try:
                    self.settings(setting, task)
                except UserError as error:
                    raise UserError(f"the {setting} settings of {self.name} for {task!r}: {error}") from error

    def seeds_of(self, asked: int) -> tuple[int, ...]:
        """Return the seeds that a case gets where so many are asked for: one if the result does not depend on it."""
        most = 1 if self.deterministic else asked if self.seeds is None else self.seeds
        return tuple(range(min(asked, most)))

    def settings(self, setting: PaperSetting, task: str | None = None) -> Any:
        """Return the published or the tuned settings, on a task with what it changes.

        Args:
            setting: Which.
            task: One of the paper's; another one, or None, changes nothing.
        """
        values = self.published if setting == "published" else self.tuned
        changes = self.by_task.get(task, {}) if task is not None else {}
        return replaced(values, changes) if changes else values

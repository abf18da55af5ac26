"""What the edits gave: scores with their intervals, who leads, and how two entrants compare case by case."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from steerdiff.train.benchmark import SCORES, Case, Interval, Scores, difference, summary

from .edit_entrants import Entrant

__all__ = ["COMPARED", "Comparison", "Entry", "TaskResults", "compare", "leads", "per_case", "pooled", "worst_first"]

#: Scores by which entrants of a task are compared in pairs.
COMPARED = ("right", "outside", "feature_inside")
Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """What became of an entrant."""

    entrant: Entrant
    error: str | None = None  #: why it failed
    scores: Scores | None = None  #: None if it failed
    images: Tensor | None = None  #: uint8 [cases, seeds, 3, H, W]
    evaluations: float = math.nan  #: of the network, for each edit
    seconds: float = math.nan  #: for each edit, on the machine that ran it

    def interval(self, score: str, cases: Sequence[int] | None = None) -> Interval | None:
        """Return a score over some cases (None: all); None if it does not apply, or the entrant failed."""
        if self.scores is None or (cases is not None and not cases):
            return None
        return summary(self.scores, score, cases=cases)

    def facts(self) -> dict[str, Any]:
        """Return all but images and seconds as JSON-able values."""
        cell = self.entrant.cell
        values: dict[str, Any] = {"method": cell.method, "setting": self.entrant.setting, "paper": self.entrant.paper}
        values |= {"cell": cell.key, "seeds": list(cell.seeds), "settings": cell.identity()["settings"]}
        if self.scores is None:
            return {**values, "failed": self.error}
        values |= {"evaluations": round(self.evaluations, 6), "scores": {}, "cases": {}}
        for name in SCORES:
            interval = self.interval(name)
            values["scores"][name] = None if interval is None else _rounded([*vars(interval).values()])
            if name in self.scores.values:
                values["cases"][name] = [_rounded(row) for row in self.scores.values[name].tolist()]
        return values


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskResults:
    """All entrants of a task."""

    task: str  #: name in ``TASKS``
    cases: Sequence[Case]
    entries: Sequence[Entry]

    def of_split(self, split: str) -> list[int]:
        """Return which cases are of seen ("train") or of held-out combinations."""
        return [number for number, case in enumerate(self.cases) if case.split == split]

    def contestants(self, setting: str | None = None) -> list[Entry]:
        """Return those that did not fail and are no yardsticks, of one setting or of both."""
        kept = ("published", "tuned") if setting is None else (setting,)
        return [entry for entry in self.entries if entry.scores is not None and entry.entrant.setting in kept]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How one entrant does beside another one on the same cases."""

    first: Entrant
    second: Entrant
    score: str
    interval: Interval  #: of the first minus the second
    verdict: Verdict  #: of the first; undecided if the interval holds 0
    better: int  #: cases in which the first is better
    same: int
    worse: int

    def facts(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        names = {"first": self.first.label, "second": self.second.label, "score": self.score, "verdict": self.verdict}
        numbers = {"difference": _rounded([*vars(self.interval).values()])}
        return {**names, **numbers, "better": self.better, "same": self.same, "worse": self.worse}


def compare(results: TaskResults) -> list[Comparison]:
    """Compare all methods of a setting with each other, and each method's tuned setting with its published one."""
    pairs: list[tuple[Entry, Entry]] = []
    for setting in ("published", "tuned"):
        pairs += combinations(results.contestants(setting), 2)
    for tuned in results.contestants("tuned"):
        same = (one for one in results.contestants("published") if one.entrant.paper == tuned.entrant.paper)
        pairs += ((tuned, published) for published in same)
    found = [_comparison(first, second, score) for first, second in pairs for score in COMPARED]
    return [comparison for comparison in found if comparison is not None]


def leads(results: TaskResults, entry: Entry, score: str) -> bool:
    """Say whether an entrant is the best of its setting and its interval against the runner-up excludes a tie."""
    ranked = []
    for one in results.contestants(entry.entrant.setting):
        interval = one.interval(score)
        if interval is not None and SCORES[score].better:
            ranked.append((interval.value * _sign(score), one))
    ranked.sort(key=lambda pair: -pair[0])
    if len(ranked) < 2 or ranked[0][1] is not entry:
        return False
    comparison = _comparison(entry, ranked[1][1], score)
    return comparison is not None and comparison.verdict == "better"


def per_case(entry: Entry, score: str) -> npt.NDArray[np.float64]:
    """Return a score's mean over seeds, [cases]; NaN where it does not apply or the entrant failed."""
    if entry.scores is None or score not in entry.scores.values:
        return np.full(entry.entrant.cell.cases, math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN, as is wanted
        means: npt.NDArray[np.float64] = np.nanmean(entry.scores.values[score], axis=1)
    return means


def worst_first(results: TaskResults, score: str = "feature_inside") -> list[tuple[int, float]]:
    """Return cases with the mean of a score over all methods and seeds, the worst first; the order of numbers in ties.

    Where the score applies to no case, or all methods failed, the order is that of the cases and the means are NaN.
    """
    rows = [per_case(entry, score) for entry in results.contestants()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        means = np.nanmean(rows, axis=0) if rows else np.full(len(results.cases), math.nan)
    badness = np.nan_to_num(means * -_sign(score), nan=-math.inf)
    return [(int(number), float(means[number])) for number in np.argsort(-badness, kind="stable")]


def pooled(entries: Sequence[Entry], score: str) -> Interval | None:
    """Return the mean of a score over the cases of several tasks, of those to which it applies."""
    kept = [entry.scores for entry in entries if entry.scores is not None and entry.interval(score) is not None]
    if not kept:
        return None
    values = {score: np.concatenate([scores.values[score] for scores in kept])}
    features, truths = (np.concatenate([getattr(scores, name) for scores in kept]) for name in ("features", "truths"))
    return summary(Scores(values=values, features=features, truths=truths), score)


def _comparison(first: Entry, second: Entry, score: str) -> Comparison | None:
    if first.scores is None or second.scores is None:
        return None
    interval = difference(second.scores, first.scores, score)
    if interval is None:
        return None
    low, high = sorted((interval.low * _sign(score), interval.high * _sign(score)))
    verdict: Verdict = "better" if low > 0 else "worse" if high < 0 else "undecided"
    gains = (per_case(first, score) - per_case(second, score)) * _sign(score)
    return Comparison(
        first=first.entrant,
        second=second.entrant,
        score=score,
        interval=interval,
        verdict=verdict,
        better=int((gains > 0).sum()),
        same=int((gains == 0).sum()),
        worse=int((gains < 0).sum()),
    )


def _sign(score: str) -> int:
    return -1 if SCORES[score].better == "lower" else 1


def _rounded(values: Sequence[float]) -> list[float | None]:
    return [round(value, 6) if math.isfinite(value) else None for value in values]

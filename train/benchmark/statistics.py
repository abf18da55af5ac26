"""Intervals of means over cases and seeds, and of differences between two settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from steerdiff.errors import require
from steerdiff.train.evaluate import Rate
from steerdiff.train.scene_text import known

from .scores import SCORES, Scores

__all__ = ["Interval", "Verdict", "difference", "summary", "verdict"]

Verdict = Literal["confirmed", "refuted", "undecided"]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_TAILS = (2.5, 97.5)  # percentiles
_KID_UNIT = 1000
_SET_LEVEL = "kid"


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the three numbers with the decimals that give the largest three digits, "12.3 (10.1 to 14.9)"."""
        numbers = (self.value, self.low, self.high)
        largest = max(map(abs, numbers))
        decimals = max(0, 2 - math.floor(math.log10(largest))) if largest > 1e-6 else 2
        value, low, high = (f"{round(number, decimals) + 0.0:.{decimals}f}" for number in numbers)  # no minus zero
        return f"{value} ({low} to {high})"


def summary(
    scores: Scores, name: str, *, cases: Sequence[int] | None = None, draws: int = 2000, seed: int = 0
) -> Interval | None:
    """Return a score's mean with its 95 % bootstrap interval.

    Each draw takes as many cases as there are, with replacement, and of each of them as many seeds as it has; the
    interval lies between the 2.5 and the 97.5 % point of the draws' means. It speaks of other cases and other seeds.
    In simulations with 3 seeds it held the true mean 94 times in 100 of 16 cases (91 where the cases make all the
    difference, 98 where the seeds do), 92 of 8 cases and 87 of 4: distrust intervals of few cases.
    Of a share that is 0 or 1 in every case no draw differs: its interval is Wilson's, each case counted once.

    "kid" is the squared maximum mean discrepancy with the kernel ``(x.y / D + 1)^3``, between results and true
    answers as sets, times 1000. A result and the true answer of its own case are of one scene and not independent,
    nor are the results of one case: only pairs of different cases enter any of the three sums, which makes it unbiased.
    In a draw that has a case twice, the two are one case.

    Args:
        scores: Of one cell.
        name: Name in ``SCORES``.
        cases: Positions of the cases to take; None takes all.
        draws: Number of bootstrap draws.
        seed: Of the random numbers.

    Returns:
        The interval; None where the score applies to no case ("kid": where there are fewer than two).

    Raises:
        UserError: The score or a case does not exist, or ``draws`` is too small.

    Source: Binkowski et al. 2018, "Demystifying MMD GANs", for the kernel; Davison and Hinkley 1997, section 3.8, for
    the bootstrap of two levels.
    """
    _check(name, draws)
    scores = _part(scores, name, cases)
    rows = _rows(scores, name)
    if len(rows) < (2 if name == _SET_LEVEL else 1):
        return None
    picks = _Picks(len(rows), draws, seed)
    if name == _SET_LEVEL:
        return _interval(*_kid(scores, picks, picks.seeds(scores.features.shape[1])))
    values = scores.values[name][rows]
    if SCORES[name].percent and values.min() == values.max() and values.min() in (0, 1):
        rate = Rate(len(rows) * int(values.min()), len(rows))
        return Interval(rate.value, *rate.interval())
    return _interval(float(values.mean()), picks.means(values, picks.seeds(values.shape[1])))


def difference(
    before: Scores,
    after: Scores,
    name: str,
    *,
    cases: Sequence[int] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Return the mean of after minus before, with its 95 % bootstrap interval.

    Paired: each draw takes the same cases on both sides and, where both have as many seeds, the same seeds. All else is
    as in ``summary``.

    Args:
        before: Of one cell.
        after: Of another cell with the same cases.
        name: Name in ``SCORES``.
        cases: Positions of the cases to take; None takes all.
        draws: Number of bootstrap draws.
        seed: Of the random numbers.

    Returns:
        The interval; None where the score applies to no case.

    Raises:
        UserError: The two sides have other cases, the score or a case does not exist, or ``draws`` is too small.
    """
    _check(name, draws)
    same = before.truths.shape == after.truths.shape and np.allclose(before.truths, after.truths, 1e-3, 1e-4)
    sizes = f"{len(before.truths)} and {len(after.truths)} cases"
    require(
        same, f"the two sides have other cases ({sizes}); compare runs with the same task, number and seed of cases"
    )
    before, after = _part(before, name, cases), _part(after, name, cases)
    rows = np.intersect1d(_rows(before, name), _rows(after, name))
    if len(rows) < (2 if name == _SET_LEVEL else 1):
        return None
    picks = _Picks(len(rows), draws, seed)
    if name == _SET_LEVEL:
        counts = [side.features.shape[1] for side in (before, after)]
        results = [_kid(side, picks, seeds) for side, seeds in zip((before, after), _both(picks, counts), strict=True)]
    else:
        values = [side.values[name][rows] for side in (before, after)]
        chosen = _both(picks, [value.shape[1] for value in values])
        results = [
            (float(value.mean()), picks.means(value, seeds)) for value, seeds in zip(values, chosen, strict=True)
        ]
    (first, first_draws), (second, second_draws) = results
    return _interval(second - first, second_draws - first_draws)


def verdict(interval: Interval, rises: bool) -> Verdict:
    """Return what the interval of a difference says about a claim.

    Args:
        interval: Of after minus before.
        rises: The claim is that the difference is above 0; False: below.

    Returns:
        "confirmed" where the whole interval lies on the claimed side of 0, "refuted" where it lies on the other, else
        "undecided".
    """
    if interval.low > 0:
        return "confirmed" if rises else "refuted"
    if interval.high < 0:
        return "refuted" if rises else "confirmed"
    return "undecided"


class _Picks:
    """The cases that each draw takes, and the seeds of each."""

    def __init__(self, cases: int, draws: int, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self.cases: IntArray = self._generator.integers(cases, size=(draws, cases))

    def seeds(self, count: int) -> IntArray:
        """Return seeds [draws, cases, count] with replacement, for each case that a draw takes."""
        return self._generator.integers(count, size=(*self.cases.shape, count))

    def means(self, values: FloatArray, seeds: IntArray) -> FloatArray:
        """Return the mean of values [cases, seeds] in each draw."""
        means: FloatArray = values[self.cases[:, :, None], seeds].mean((1, 2))
        return means

    def weights(self, seeds: IntArray) -> FloatArray:
        """Return how often each result is drawn, [draws, cases, seeds], in units of a case."""
        draws, cases, count = seeds.shape
        flat = (np.arange(draws)[:, None, None] * cases + self.cases[:, :, None]) * count + seeds
        times = np.bincount(flat.ravel(), minlength=draws * cases * count)
        weights: FloatArray = times.reshape(draws, cases, count) / count
        return weights


def _both(picks: _Picks, counts: Sequence[int]) -> list[IntArray]:
    """Return the seeds of both sides: the same where they have as many."""
    first = picks.seeds(counts[0])
    return [first, first if counts[1] == counts[0] else picks.seeds(counts[1])]


def _check(name: str, draws: int) -> None:
    known("score", name, tuple(SCORES))
    require(draws >= 100, f"draws is {draws}; an interval needs at least 100")


def _part(scores: Scores, name: str, cases: Sequence[int] | None) -> Scores:
    """Return the scores of some cases, as far as ``name`` needs them."""
    n = len(scores.truths)
    chosen = list(range(n)) if cases is None else list(cases)
    require(len(set(chosen)) == len(chosen), f"cases are {chosen}; give each once")
    require(all(0 <= case < n for case in chosen), f"cases are {chosen}; there are {n}, counted from 0")
    values = {} if name == _SET_LEVEL else {name: scores.values[name][chosen]}
    return Scores(values=values, features=scores.features[chosen], truths=scores.truths[chosen])


def _rows(scores: Scores, name: str) -> IntArray:
    """Return the cases that a score applies to."""
    if name == _SET_LEVEL:
        return np.arange(len(scores.truths))
    return np.flatnonzero(np.isfinite(scores.values[name]).all(1))


def _interval(value: float, draws: FloatArray) -> Interval:
    low, high = np.nanpercentile(draws, _TAILS)
    return Interval(value, float(low), float(high))


def _kid(scores: Scores, picks: _Picks, seeds: IntArray) -> tuple[float, FloatArray]:
    """Return the distance of all cases, and that of each draw; NaN in a draw of one case alone."""
    cases, count, width = scores.features.shape
    owner = np.arange(cases).repeat(count)
    results, truths = scores.features.reshape(-1, width), scores.truths
    apart = 1.0 - np.eye(cases)

    def kernel(left: FloatArray, right: FloatArray) -> FloatArray:
        values: FloatArray = (left @ right.T / width + 1) ** 3
        return values

    within = kernel(results, results) * apart[owner][:, owner]
    between = kernel(results, truths) * apart[owner]
    among = kernel(truths, truths) * apart

    def estimate(weights: FloatArray) -> FloatArray:
        taken = weights.sum(2)  # of each case [draws, cases]
        flat = weights.reshape(len(weights), -1)
        total = ((flat @ within) * flat).sum(1) + ((taken @ among) * taken).sum(1)
        total -= 2 * ((flat @ between) * taken).sum(1)
        pairs = taken.sum(1) ** 2 - (taken**2).sum(1)
        distance: FloatArray = _KID_UNIT * total / np.where(pairs > 0, pairs, np.nan)
        return distance

    whole = estimate(np.full((1, cases, count), 1 / count))
    return float(whole[0]), estimate(picks.weights(seeds))

"""Intervals of means over cases and seeds, and of differences between two settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .scores import Scores

__all__ = ["Interval", "difference", "summary"]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float


def summary(
    scores: Scores, name: str, *, cases: Sequence[int] | None = None, draws: int = 2000, seed: int = 0
) -> Interval | None:
    """Return a score of some cases (None: all); None where the score does not apply."""
    raise NotImplementedError


def difference(before: Scores, after: Scores, name: str, *, draws: int = 2000, seed: int = 0) -> Interval | None:
    """Return after minus before, of the same cases; None where the score does not apply."""
    raise NotImplementedError

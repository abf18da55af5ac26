"""Points of a sweep with their scores, as CSV and as Markdown. The same results give the same bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steerdiff.scripts.arguments import plain
from steerdiff.scripts.evaluation.cells import Cell, Result, score
from steerdiff.scripts.evaluation.running import Outcome
from steerdiff.train.benchmark import SCORES, Interval, Scores, draw_cases, summary

from .plan import Plan
from .sweeps import Point

__all__ = ["Measured", "cases_csv", "markdown", "line", "measure", "scores_csv", "shown", "shown_scores", "value_of"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """A point of the grid with what it gave."""

    point: Point
    cell: Cell | None = None  #: None if the settings are refused
    result: Result | None = None  #: None if they are refused, or the cell failed
    error: str | None = None  #: why there is no result
    scores: Scores | None = None
    intervals: Mapping[str, Interval] = field(default_factory=dict)  #: of the scores that apply


def measure(point: Point, outcome: Outcome | None) -> Measured:
    """Score what became of a point; ``outcome`` is None where its settings are refused."""
    if outcome is None:
        return Measured(point=point, error=point.error)
    if outcome.result is None:
        return Measured(point=point, cell=outcome.cell, error=outcome.error)
    scores = score(outcome.cell, outcome.result)
    found = {name: summary(scores, name) for name in SCORES}
    intervals = {name: interval for name, interval in found.items() if interval is not None}
    return Measured(point=point, cell=outcome.cell, result=outcome.result, scores=scores, intervals=intervals)


def shown_scores(rows: Sequence[Measured]) -> list[str]:
    """Return the scores that apply to some row, in the order of ``SCORES``."""
    return [name for name in SCORES if any(name in row.intervals for row in rows)]


def shown(value: Any) -> str:
    """Return a value of a swept field as tables and plots show it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def scores_csv(plan: Plan, rows: Sequence[Measured]) -> bytes:
    """Return a row for each point and score: the mean over cases and seeds with its 95 % interval.

    A point that failed has one row, with the reason in ``error`` and nothing in the columns of the score.
    """
    fields = _fields(plan)
    head = ["method", "task", *fields, "score", "value", "low", "high", "n", "evaluations", "key", "error"]

    def lines() -> Iterator[list[Any]]:
        for row in rows:
            own = [plan.method, plan.task, *(plain(row.point.changes[name]) for name in fields)]
            key = row.cell.key if row.cell else ""
            if row.result is None or row.scores is None:
                yield [*own, "", "", "", "", "", "", key, row.error]
                continue
            for name, i in row.intervals.items():
                count = _count(row.scores, name)
                yield [*own, name, i.value, i.low, i.high, count, row.result.evaluations, key, ""]

    return _csv(head, lines())


def cases_csv(plan: Plan, rows: Sequence[Measured]) -> bytes:
    """Return a row for each point, case, seed and score; diversity is of all seeds of a case, so its seed is empty."""
    fields = _fields(plan)
    head = ["method", "task", *fields, "case", "split", "seed", "score", "value", "key"]
    splits = [case.split for case in draw_cases(plan.task, plan.cases)]

    def lines() -> Iterator[list[Any]]:
        for row in rows:
            if row.scores is None or row.cell is None:
                continue
            own = [plan.method, plan.task, *(plain(row.point.changes[name]) for name in fields)]
            for name, values in row.scores.values.items():
                for (case, number), value in np.ndenumerate(values):
                    seed = row.cell.seeds[number] if values.shape[1] == len(row.cell.seeds) else ""
                    if np.isfinite(value):
                        yield [*own, case, splits[case], seed, name, float(value), row.cell.key]

    return _csv(head, lines())


def markdown(plan: Plan, rows: Sequence[Measured]) -> str:
    """Return the table: a row for each point, a column for each score with its interval."""
    names, fields = shown_scores(rows), _fields(plan)
    heads = [*fields, *(SCORES[name].title for name in names), "network evaluations"]
    lines = [f"# {plan.title}", "", *_about(plan), "", line(heads), line(["---"] * len(heads))]
    failed = []
    for row in rows:
        cells = [shown(plain(row.point.changes[name])) for name in fields]
        if row.result is None:
            failed.append(f"- {_setting(row.point)}: {row.error}")
        cells += [value_of(row.intervals.get(name), SCORES[name].percent) for name in names]
        lines.append(line([*cells, "failed" if row.result is None else f"{row.result.evaluations:g}"]))
    if failed:
        lines += ["", f"Failed, {len(failed)} of {len(rows)}:", "", *failed]
    return "\n".join(lines) + "\n"


def _about(plan: Plan) -> list[str]:
    count = f"{plan.cases} case{'s' * (plan.cases > 1)}, {len(plan.seeds)} seed{'s' * (len(plan.seeds) > 1)} each"
    fixed = {name: value for name, value in plain(plan.base).items() if name not in _fields(plan)}
    settings = ", ".join(f"{name} = {shown(value)}" for name, value in fixed.items())
    return [
        f"`{plan.method}` on the task *{plan.task}*, {count}; means with their 95 % intervals.",
        *([f"Everywhere: {settings}."] if settings else []),
    ]


def _setting(point: Point) -> str:
    return ", ".join(f"{name} = {shown(plain(value))}" for name, value in point.changes.items())


def value_of(interval: Interval | None, percent: bool) -> str:
    """Return a mean with its interval as a cell of a table; nothing for None."""
    if interval is None:
        return ""
    if percent:
        return f"{100 * interval.value:.0f} % ({100 * interval.low:.0f} to {100 * interval.high:.0f})"
    return str(interval)


def line(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _fields(plan: Plan) -> list[str]:
    return [name for axis in plan.axes for name in axis.fields]


def _count(scores: Scores, name: str) -> int:
    """Return how many numbers stand behind a mean: of a score of the whole set, the images."""
    if name in scores.values:
        return int(np.isfinite(scores.values[name]).sum())
    return int(np.prod(scores.features.shape[:2]))


def _csv(head: Sequence[str], lines: Iterator[list[Any]]) -> bytes:
    """Return CSV as RFC 4180 has it: lines end in CR LF, and quotes stand only where they must."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(head)
    writer.writerows(lines)
    return text.getvalue().encode()

"""What a run of a recipe gave, beside what was published."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steerdiff.io import atomic_write
from steerdiff.scripts.papers.recipe import Published, Recipe

from .measuring import Measured
from .metrics import METRICS

__all__ = ["Comparison", "Report", "compare", "number"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One of our numbers beside a published one."""

    ours: Measured
    published: Published | None  #: None where none is known
    doubts: tuple[str, ...]  #: why the two cannot be compared; none if they can

    @property
    def difference(self) -> float | None:
        """Ours minus the published one; None without both, or where they cannot be compared."""
        if self.doubts or self.published is None or self.ours.value is None:
            return None
        return self.ours.value - self.published.value


def compare(recipe: Recipe, measured: Sequence[Measured], doubts: Sequence[str]) -> list[Comparison]:
    """Put each number beside the published ones of its setting.

    Args:
        recipe: Whose numbers.
        measured: What was measured.
        doubts: Why nothing of this run can be compared, such as a toy's size.
    """
    rows = []
    for ours in measured:
        found: list[Published | None] = [
            one for one in recipe.published if (one.setting, one.metric) == (ours.setting, ours.metric)
        ]
        for published in found or [None]:
            own = list(doubts)
            if published is not None and published.n not in (None, ours.n):
                own.append(f"ours is of {ours.n} results, theirs of {published.n}")
            rows.append(Comparison(ours=ours, published=published, doubts=tuple(own)))
    return rows


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of a run."""

    title: str
    facts: Mapping[str, Any]  #: paper, recipe, settings, weights, data, environment
    rows: tuple[Comparison, ...]
    remarks: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Return a title, the table and what to know about it."""
        head = ["setting", "metric", "ours", "published", "difference", "n", "remark"]
        lines = [f"# {self.title}", "", _row(head), _row(["---"] * len(head))]
        lines += [_row(_cells(row)) for row in self.rows]
        doubts = sorted({doubt for row in self.rows for doubt in row.doubts})
        notes = [f"Not comparable with the published numbers: {'; '.join(doubts)}."] if doubts else []
        return "\n".join([*lines, *(f"\n{note}" for note in (*notes, *self.remarks))]) + "\n"

    def save(self, folder: Path) -> None:
        """Write ``report.json`` and ``report.md``."""
        values = {**self.facts, "remarks": list(self.remarks), "results": [_values(row) for row in self.rows]}
        text = json.dumps(values, indent=2) + "\n"
        atomic_write(folder / "report.json", lambda file: file.write(text.encode()))
        table = self.markdown()
        atomic_write(folder / "report.md", lambda file: file.write(table.encode()))


def number(value: float | None, metric: str) -> str:
    """Return a number of a metric as tables show it."""
    return "" if value is None else f"{value:.{METRICS[metric].digits}f}"


def _cells(row: Comparison) -> list[str]:
    ours, published = row.ours, row.published
    theirs = "" if published is None else f"{published.value:g}{'' if published.read else ' (unverified)'}"
    difference = row.difference
    shown = "" if difference is None else f"{difference:+.{METRICS[ours.metric].digits}f}"
    value = number(ours.value, ours.metric) if ours.value is not None else "not computed"
    return [ours.setting, METRICS[ours.metric].title, value, theirs, shown, str(ours.n), ours.why or ours.how]


def _values(row: Comparison) -> dict[str, Any]:
    published = None if row.published is None else asdict(row.published)
    own = {"difference": row.difference, "comparable": published is not None and not row.doubts}
    return {**asdict(row.ours), "published": published, **own, "doubts": list(row.doubts)}


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"

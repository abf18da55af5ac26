"""What several ablations wrote as CSV, in one table: a row for each setting and a few of its scores."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from steerdiff.errors import require
from steerdiff.train.benchmark import SCORES, Interval

from .tables import line, shown, value_of

__all__ = ["COLUMNS", "Setting", "number", "overview", "read_settings"]

#: Scores of the overview.
COLUMNS = ("right", "layout", "outside", "feature_inside", "kid")
#: Columns of ``ablation.csv`` that are no swept fields.
_OWN = ("method", "task", "score", "value", "low", "high", "n", "evaluations", "key", "error")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting of an ablation, read from its CSV."""

    method: str
    task: str
    fields: Mapping[str, str]  #: what is swept, as the file has it
    intervals: Mapping[str, Interval]  #: by score; those that do not apply are left out


def read_settings(file: Path) -> list[Setting]:
    """Return the settings in an ``ablation.csv``, in its order.

    Raises:
        UserError: A setting failed.
    """
    with file.open(newline="", encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    failed = [row["error"] for row in rows if row["error"]]
    require(not failed, f"{file} has settings that failed ({'; '.join(failed)}); run them again")
    groups: dict[tuple[tuple[str, str], ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple((k, v) for k, v in row.items() if k not in _OWN), []).append(row)
    return [
        Setting(
            method=own[0]["method"],
            task=own[0]["task"],
            fields=dict(fields),
            intervals={row["score"]: Interval(*(float(row[end]) for end in ("value", "low", "high"))) for row in own},
        )
        for fields, own in groups.items()
    ]


def overview(files: Sequence[Path], columns: Sequence[str] = COLUMNS) -> str:
    """Return a Markdown table of the settings in several ``ablation.csv``, in their order.

    Args:
        files: What ``steerdiff ablate`` wrote.
        columns: Names in ``SCORES``, a column each.

    Raises:
        UserError: A setting in a file failed.
    """
    heads = ["method", "task", "setting", *(SCORES[name].title for name in columns)]
    lines = [line(heads), line(["---"] * len(heads))]
    for setting in (setting for file in files for setting in read_settings(file)):
        label = ", ".join(f"{name} {number(value)}" for name, value in setting.fields.items())
        found = [value_of(setting.intervals.get(name), SCORES[name].percent) for name in columns]
        lines.append(line([setting.method, setting.task, label, *found]))
    return "\n".join(lines) + "\n"


def number(text: str) -> str:
    """Return a value of a swept field, given as in the CSV, as tables show it."""
    try:
        return shown(float(text))
    except ValueError:
        return text or "none"

"""Several ablations in one table: what they wrote as CSV, a row for each setting and a few of its scores."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from steerdiff.errors import require
from steerdiff.train.benchmark import SCORES, Interval

from .tables import line, shown, value_of

__all__ = ["COLUMNS", "overview"]

#: Scores of the overview.
COLUMNS = ("right", "layout", "outside", "feature_inside", "kid")
#: Columns of ``ablation.csv`` that are no swept fields.
_OWN = ("method", "task", "score", "value", "low", "high", "n", "evaluations", "key", "error")


def overview(files: Sequence[Path]) -> str:
    """Return a Markdown table of the settings in several ``ablation.csv``, in their order.

    Raises:
        UserError: A setting in a file failed.
    """
    heads = ["method", "task", "setting", *(SCORES[name].title for name in COLUMNS)]
    lines = [line(heads), line(["---"] * len(heads))]
    for file in files:
        with file.open(newline="", encoding="utf-8") as text:
            rows = list(csv.DictReader(text))
        failed = [row["error"] for row in rows if row["error"]]
        require(not failed, f"{file} has settings that failed ({'; '.join(failed)}); run them again")
        settings = {tuple((k, v) for k, v in row.items() if k not in _OWN): row for row in rows}
        for setting, first in settings.items():
            own = [row for row in rows if setting == tuple((k, v) for k, v in row.items() if k not in _OWN)]
            found = {row["score"]: row for row in own}
            label = ", ".join(f"{name} {_number(value)}" for name, value in setting)
            lines.append(line([first["method"], first["task"], label, *(_interval(found, name) for name in COLUMNS)]))
    return "\n".join(lines) + "\n"


def _interval(found: Mapping[str, Mapping[str, str]], name: str) -> str:
    row = found.get(name)
    known = None if row is None else Interval(*(float(row[end]) for end in ("value", "low", "high")))
    return value_of(known, SCORES[name].percent)


def _number(text: str) -> str:
    try:
        return shown(float(text))
    except ValueError:
        return text or "none"

"""Several ablations in one table: what they wrote as CSV, a row for each setting and a few of its scores."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from steerdiff.errors import require
from steerdiff.train.benchmark import SCORES, Interval

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
    lines = [_line(heads), _line(["---"] * len(heads))]
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
            lines.append(_line([first["method"], first["task"], label, *(_value(found, name) for name in COLUMNS)]))
    return "\n".join(lines) + "\n"


def _value(found: dict[str, dict[str, str]], name: str) -> str:
    if name not in found:
        return ""
    value, low, high = (float(found[name][end]) for end in ("value", "low", "high"))
    if SCORES[name].percent:
        return f"{100 * value:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
    return str(Interval(value, low, high))


def _number(text: str) -> str:
    try:
        return f"{float(text):g}"
    except ValueError:
        return text or "none"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"

"""Tables of what the edits gave: built once, shown as Markdown and as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from steerdiff.train.benchmark import SCORES, TASKS, Interval

from .edit_entrants import SETTINGS
from .edit_results import COMPARED, Comparison, Entry, TaskResults, compare, leads, pooled

__all__ = [
    "SHOWN",
    "Table",
    "Text",
    "comparison_table",
    "head",
    "held_out_table",
    "html",
    "main_table",
    "markdown",
    "shown",
    "summary_table",
    "timing_table",
]

#: Scores of the main table, in the order of its columns; ``edits.json`` has all.
SHOWN = ("right", "outside", "inside", "feature_outside", "feature_inside", "iou", "layout", "diversity")
_HELD_OUT = ("right", "inside", "feature_inside")
_GREY_LEVELS = ("inside", "outside", "guide")  # of 255, so that one digit after the point is enough
_NONE = "-"


@dataclass(frozen=True)
class Text:
    """What stands in a field of a table."""

    text: str
    strong: bool = False  #: in bold
    muted: bool = False  #: in grey, where there are colours


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; the first column is the widest in meaning and names the row."""

    heads: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]


def markdown(table: Table) -> str:
    """Return a table as Markdown."""
    lines = [table.heads, tuple("---" for _ in table.heads)]
    lines += [tuple(f"**{field.text}**" if field.strong else field.text for field in row) for row in table.rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines) + "\n"


def html(table: Table) -> str:
    """Return a table as HTML."""
    heads = "".join(f"<th>{escape(head)}</th>" for head in table.heads)
    rows = "\n".join(f"<tr>{''.join(map(_field, row))}</tr>" for row in table.rows)
    return f"<div class='wide'><table><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table></div>"


def shown(interval: Interval | None, score: str, *, signed: bool = False) -> str:
    """Return a mean with its interval in brackets, as a column shows it; "-" for None."""
    if interval is None:
        return _NONE
    factor, digits = (100, 0) if SCORES[score].percent else (1, 1) if score in _GREY_LEVELS else (1, 3 if signed else 2)
    values = [round(factor * value, digits) + 0.0 for value in (interval.value, interval.low, interval.high)]
    mean, low, high = (f"{value:{'+' if signed and value else ''}.{digits}f}" for value in values)
    return f"{mean} [{low}, {high}]"


def main_table(all_results: Sequence[TaskResults], *, tasks: bool = True) -> Table:
    """Return one row for each task and entrant; ``tasks=False`` leaves out the column that names the task."""
    heads = ("method", "setting", *map(head, SHOWN), "network evaluations")
    rows = []
    for results in all_results:
        for entry in results.entries:
            first = (Text(TASKS[results.task].title),) if tasks else ()
            rows.append((*first, *_names(entry), *_scores(results, entry)))
    return Table(heads=("task", *heads) if tasks else heads, rows=tuple(rows))


def held_out_table(all_results: Sequence[TaskResults]) -> Table:
    """Return the scores of seen and of held-out combinations beside each other, of all entrants that did not fail."""
    heads = ["task", "method", "setting"]
    for score in _HELD_OUT:
        heads += [f"{head(score)}, seen", f"{head(score)}, held out"]
    rows = []
    for results in all_results:
        splits = (results.of_split("train"), results.of_split("held_out"))
        for entry in (entry for entry in results.entries if entry.scores is not None):
            fields = [Text(shown(entry.interval(score, some), score)) for score in _HELD_OUT for some in splits]
            rows.append((Text(TASKS[results.task].title), *_names(entry), *fields))
    return Table(heads=tuple(heads), rows=tuple(rows))


def comparison_table(all_results: Sequence[TaskResults]) -> Table:
    """Return one row for each pair of entrants of a task: differences with verdicts."""
    rows = []
    for results in all_results:
        comparisons: dict[tuple[str, str], dict[str, Comparison]] = {}
        for one in compare(results):
            comparisons.setdefault((one.first.label, one.second.label), {})[one.score] = one
        for (first, second), found in comparisons.items():
            names = (Text(TASKS[results.task].title), Text(first), Text(second))
            rows.append((*names, *(_compared(found.get(score)) for score in COMPARED)))
    return Table(heads=("task", "first", "second", *map(head, COMPARED)), rows=tuple(rows))


def summary_table(all_results: Sequence[TaskResults]) -> Table:
    """Return one row for each method and setting: means over its tasks, beside those of the yardsticks on them."""
    heads = ("method", "setting", "tasks", head("right"), "same, unchanged", "same, sample")
    rows = []
    for setting in SETTINGS[:2]:
        names = (entry.entrant.method for results in all_results for entry in results.contestants(setting))
        for method in dict.fromkeys(names):
            chosen = [results for results in all_results if _entry(results, method, setting) is not None]
            mine = _entries(chosen, method, setting)
            fields = [method, setting, str(len(mine)), shown(pooled(mine, "right"), "right")]
            for name in ("unchanged", "sample"):
                fields.append(shown(pooled(_entries(chosen, name, "yardstick"), "right"), "right"))
            fields += [shown(pooled(mine, score), score) for score in ("outside", "feature_inside")]
            fields.append(f"{sum(entry.evaluations for entry in mine) / len(mine):.0f}")
            rows.append(tuple(map(Text, fields)))
    return Table(
        heads=(*heads, head("outside"), head("feature_inside"), "network evaluations"),
        rows=tuple(rows),
    )


def timing_table(all_results: Sequence[TaskResults]) -> Table:
    """Return the seconds of each edit."""
    rows = []
    for results in all_results:
        for entry in (entry for entry in results.entries if entry.scores is not None):
            numbers = (Text(f"{entry.evaluations:.0f}"), Text(f"{entry.seconds:.3f}"))
            rows.append((Text(TASKS[results.task].title), *_names(entry), *numbers))
    return Table(heads=("task", "method", "setting", "network evaluations", "seconds"), rows=tuple(rows))


def head(score: str) -> str:
    """Return the head of a score's column, with its unit and an arrow to the better side."""
    arrow = {"higher": " ↑", "lower": " ↓", "": ""}[SCORES[score].better]
    return SCORES[score].title + (", %" if SCORES[score].percent else "") + arrow


def _names(entry: Entry) -> tuple[Text, Text]:
    muted = entry.entrant.setting == "yardstick"
    return Text(entry.entrant.method, muted=muted), Text(entry.entrant.setting, muted=muted)


def _scores(results: TaskResults, entry: Entry) -> list[Text]:
    if entry.scores is None:
        return [Text(f"failed: {entry.error}"), *[Text(_NONE)] * len(SHOWN)]
    muted = entry.entrant.setting == "yardstick"
    fields = [
        Text(shown(entry.interval(score), score), strong=not muted and leads(results, entry, score), muted=muted)
        for score in SHOWN
    ]
    return [*fields, Text(f"{entry.evaluations:.0f}", muted=muted)]


def _compared(comparison: Comparison | None) -> Text:
    if comparison is None:
        return Text(_NONE)
    counts = f"{comparison.better}/{comparison.same}/{comparison.worse}"
    text = f"{shown(comparison.interval, comparison.score, signed=True)} {comparison.verdict} ({counts})"
    return Text(text, strong=comparison.verdict != "undecided", muted=comparison.verdict == "undecided")


def _entry(results: TaskResults, method: str, setting: str) -> Entry | None:
    for entry in results.entries:
        if (entry.entrant.method, entry.entrant.setting) == (method, setting) and entry.scores is not None:
            return entry
    return None


def _entries(all_results: Sequence[TaskResults], method: str, setting: str) -> list[Entry]:
    found = (_entry(results, method, setting) for results in all_results)
    return [entry for entry in found if entry is not None]


def _field(field: Text) -> str:
    text = f"<b>{escape(field.text)}</b>" if field.strong else escape(field.text)
    return f"<td class='muted'>{text}</td>" if field.muted else f"<td>{text}</td>"

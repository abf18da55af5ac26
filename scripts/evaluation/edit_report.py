"""The files of `evaluate edits`: tables, plots and all numbers in JSON; the page is in `edit_page`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerdiff.io import atomic_write
from steerdiff.train.benchmark import SCORES, TASKS

from .edit_results import Entry, TaskResults, compare
from .edit_tables import (
    SHOWN,
    comparison_table,
    held_out_table,
    main_table,
    markdown,
    summary_table,
    timing_table,
)

__all__ = ["Report", "failures", "report_json", "report_markdown", "summary_markdown", "timing_markdown", "write_text"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """All that is known at the end."""

    results: Sequence[TaskResults]
    unclaimed: Sequence[str]  #: tasks that no method claims
    methods: Sequence[str]  #: all that there are, in an order that decides their colours
    cases: int  #: of each task
    seeds: int  #: of each case
    quick: bool
    facts: Mapping[str, Any]  #: settings, model, environment: JSON-able, the same for the same numbers
    command: str  #: that makes the numbers again

    @property
    def size(self) -> str:
        """How much was computed, for captions."""
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        cases = "1 case" if self.cases == 1 else f"{self.cases} cases"
        return f"{cases} a task ({self.cases // 2} of held-out combinations), {seeds}"

    @property
    def caution(self) -> str:
        """What a reader must know before the numbers; empty if nothing."""
        few = f"Only {self.size}: too few to conclude from; the full run has 16 cases and 3 seeds. "
        quick = "Published settings are left out in a quick run." if self.quick else ""
        return (few if self.cases < 16 or self.seeds < 3 else "") + quick


def failures(report: Report) -> list[tuple[str, Entry]]:
    """Return the entrants that failed, with their tasks."""
    return [(one.task, entry) for one in report.results for entry in one.entries if entry.error is not None]


def report_json(report: Report) -> str:
    """Return all numbers as JSON; nothing in it depends on how long something took."""
    tasks = {
        one.task: {
            "note": TASKS[one.task].note,
            "splits": [case.split for case in one.cases],
            "entrants": [entry.facts() for entry in one.entries],
            "comparisons": [comparison.facts() for comparison in compare(one)],
        }
        for one in report.results
    }
    scores = {name: vars(score) for name, score in SCORES.items()}
    whole = {"command": report.command, **report.facts, "unclaimed": list(report.unclaimed), "scores": scores}
    return json.dumps({**whole, "tasks": tasks}, indent=1) + "\n"


def report_markdown(report: Report) -> str:
    """Return the tables with what is needed to read them."""
    parts = ["# Edits against their true answers", _lead(report), markdown(main_table(report.results)), _legend()]
    if report.unclaimed:
        parts.append(unclaimed_note(report))
    parts += ["## Held-out combinations", HELD_OUT_NOTE, markdown(held_out_table(report.results))]
    parts += ["## Comparisons", COMPARED_NOTE, markdown(comparison_table(report.results)), stamp(report)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def summary_markdown(report: Report) -> str:
    """Return the compact table for the README."""
    return markdown(summary_table(report.results)) + "\n" + SUMMARY_NOTE + f" {report.size}.\n"


def timing_markdown(report: Report) -> str:
    """Return the seconds of each edit, which depend on the machine and on what else it did."""
    lead = "Seconds of each edit, in its batch, on the machine that ran it; all other files are free of them."
    return f"# Time\n\n{lead}\n\n{markdown(timing_table(report.results))}"


def write_text(text: str, path: Path) -> None:
    """Write a text whole or not at all."""
    atomic_write(path, lambda file: file.write(text.encode()))


def unclaimed_note(report: Report) -> str:
    """Return the tasks that nobody runs on."""
    names = ", ".join(f'"{task}"' for task in report.unclaimed)
    return f"No method that is present claims {names}; without one, there are no yardsticks either."


def stamp(report: Report) -> str:
    """Return what the numbers depend on, in one line."""
    facts = report.facts
    versions = ", ".join(f"{name} {value}" for name, value in facts["environment"].items())
    model, recogniser = facts["model"], facts["recogniser"]
    weights = f"weights {model['name']}, sha256 {model['sha256']}; recogniser sha256 {recogniser}"
    return f"`{report.command}`; {report.size}; {weights}; {versions}."


HELD_OUT_NOTE = (
    "The same scores for combinations of object and colour that training showed and for those that it never showed. "
    "Each half has half of the cases, so its intervals are wider."
)
COMPARED_NOTE = (
    "The first minus the second, on the same cases: difference [95 % interval], the verdict on the first, and in how "
    "many cases it is better/the same/worse. Undecided: the interval holds 0. Many pairs are compared and intervals "
    "are not widened for that: of twenty verdicts on equals, one is expected to be false."
)
SUMMARY_NOTE = (
    "Means over each method's tasks with 95 % intervals; beside them, on the same tasks, what the attribute's share is "
    "if the image is given back unchanged and if it is forgotten and the caption drawn anew. Methods claim different "
    "tasks: compare a row with its yardsticks, and methods within a task."
)


def _lead(report: Report) -> str:
    text = (
        f"{report.size}, of a method whose result does not depend on it, or that is slow, fewer (`edits.json` says how "
        "many). Mean [95 % interval of a bootstrap over cases and seeds]. Published settings are the paper's, "
        "translated to this model; tuned is one setting of each method for all tasks. Bold: best of its setting on "
        "its task, where the paired interval against the runner-up excludes a tie. Yardsticks are never in bold: "
        "`unchanged` gives the image back, `sample` forgets it and draws the caption. `-`: does not apply."
    )
    return f"{report.caution}\n\n{text}" if report.caution else text


def _legend() -> str:
    return "\n".join(f"- {SCORES[name].title}: {SCORES[name].note}" for name in SHOWN)

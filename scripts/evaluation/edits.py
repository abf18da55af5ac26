"""``steerdiff evaluate edits``: every method on the edits that it claims, scored against the true answers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerdiff.errors import require
from steerdiff.scripts.arguments import parse, plain
from steerdiff.scripts.runtime import ModelFlags

from .running import RunFlags

if TYPE_CHECKING:
    from .edit_entrants import Entrant
    from .edit_report import Report
    from .edit_results import TaskResults

__all__ = ["Edits", "main"]


@dataclass(frozen=True, kw_only=True)
class Edits(RunFlags):
    """Run every method on the edits that it claims and score the results against the true answers.

    Writes tables, plots and a page with all cases next to each other, worst first. What was computed before is taken
    from the cache, so that a killed run goes on where it was.
    """

    cases: int | None = None  #: of each task, half of them of held-out combinations; None is 16, in a quick run 4
    seeds: int | None = None  #: each case is run with so many; None is 3, in a quick run 1
    quick: bool = False  #: a look in about three minutes on two cores: few cases, tuned settings only
    tasks: tuple[str, ...] = ()  #: only these tasks; none given: all
    methods: tuple[str, ...] = ()  #: only these methods, beside the yardsticks; none given: all
    out: Path = Path("out/evaluate")  #: folder for index.html, edits.md, edits.json, the plots and the pictures

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        for name in ("cases", "seeds"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}; it must be at least 1")

    @property
    def n_cases(self) -> int:
        """Cases of each task."""
        return self.cases or (4 if self.quick else 16)

    @property
    def n_seeds(self) -> int:
        """Seeds of each case."""
        return self.seeds or (1 if self.quick else 3)


def main(arguments: Sequence[str], prog: str) -> int:
    """Run the cells, write all files and say where they are; 1 if some cell failed."""
    flags = parse(Edits, arguments, prog=prog)
    from steerdiff.io import ensure_writable

    from .edit_entrants import check_names, entrants
    from .edit_report import failures
    from .running import run_cells

    check_names(flags.tasks, flags.methods)
    running = entrants(flags.n_cases, flags.n_seeds, tuned_only=flags.quick, tasks=flags.tasks, only=flags.methods)
    ensure_writable(flags.out, need=64 * 2**20)
    everyone = [entrant for of_task in running.values() for entrant in of_task]
    outcomes = run_cells([entrant.cell for entrant in everyone], flags, progress="edits")
    report = _report(flags, running, outcomes)
    _write(report, flags.out)
    for task, entry in failures(report):
        print(f"failed: {task}, {entry.entrant.label}: {entry.error}")
    print(f"tables: {flags.out / 'edits.md'}\npage:   {flags.out / 'index.html'}")
    return 1 if failures(report) else 0


def _report(flags: Edits, running: dict[str, list[Entrant]], outcomes: Sequence[Any]) -> Report:
    from .edit_entrants import methods, unclaimed
    from .edit_report import Report

    by_key = {outcome.cell.key: outcome for outcome in outcomes}
    return Report(
        results=[_scored(task, of_task, by_key) for task, of_task in running.items()],
        unclaimed=unclaimed(flags.tasks),
        methods=methods(),
        cases=flags.n_cases,
        seeds=flags.n_seeds,
        quick=flags.quick,
        facts=_facts(flags),
        command=_command(flags),
    )


def _scored(task: str, of_task: Sequence[Entrant], by_key: dict[str, Any]) -> TaskResults:
    from steerdiff.train.benchmark import draw_cases

    from .cells import score
    from .edit_results import Entry, TaskResults

    entries = []
    for entrant in of_task:
        outcome = by_key[entrant.cell.key]
        if outcome.result is None:
            entries.append(Entry(entrant=entrant, error=outcome.error))
            continue
        result = outcome.result
        entries.append(
            Entry(
                entrant=entrant,
                scores=score(entrant.cell, result),
                images=result.images,
                evaluations=result.evaluations,
                seconds=result.seconds,
            )
        )
    return TaskResults(task=task, cases=draw_cases(task, of_task[0].cell.cases), entries=entries)


def _facts(flags: Edits) -> dict[str, Any]:
    """Return what the numbers depend on: not the folders, nor how the work was shared, nor what was stored before."""
    from importlib.resources import as_file, files

    from steerdiff.models.checkpoint import file_hash
    from steerdiff.scripts.runtime import environment

    model = flags.load()
    with as_file(files("steerdiff.assets").joinpath("weights/recogniser.safetensors")) as path:
        recogniser = file_hash(str(path))
    shared = {field.name for field in fields(RunFlags)} - {field.name for field in fields(ModelFlags)}
    free = {"out", "threads", *shared}
    return {
        "options": {name: value for name, value in plain(flags).items() if name not in free},
        "model": {"name": model.name, "sha256": model.weights_hash},
        "recogniser": recogniser,
        "environment": {name: value for name, value in environment(str(model.device)).items() if name not in free},
    }


def _command(flags: Edits) -> str:
    """Return the command that makes the numbers again."""
    words = ["steerdiff", "evaluate", "edits", *(["--quick"] if flags.quick else [])]
    for name in ("cases", "seeds", "weights"):
        value, usual = getattr(flags, name), Edits.__dataclass_fields__[name].default
        words += [] if value == usual else [f"--{name}", str(value)]
    for name in ("tasks", "methods"):
        words += [f"--{name}", *getattr(flags, name)] if getattr(flags, name) else []
    return shlex.join(words)


def _write(report: Report, out: Path) -> None:
    from steerdiff.io import atomic_write

    from .edit_page import build_edit_page
    from .edit_pictures import plot_path, write_pictures
    from .edit_report import report_json, report_markdown, summary_markdown, timing_markdown, write_text
    from .pareto import draw, draw_all, plot_of

    plots = {one.task: plot_of(one, report.methods, report.size) for one in report.results}
    shown = {task: plot for task, plot in plots.items() if plot is not None}
    for task, plot in shown.items():
        picture = draw(plot)
        atomic_write(out / plot_path(task), lambda file, picture=picture: file.write(picture))  # type: ignore[misc]
    if shown:
        together = draw_all(list(shown.values()), "Edits against their true answers")
        atomic_write(out / "edits.png", lambda file: file.write(together))
    for results in report.results:
        write_pictures(results, out)
    write_text(report_json(report), out / "edits.json")
    write_text(report_markdown(report), out / "edits.md")
    write_text(summary_markdown(report), out / "edits-summary.md")
    write_text(timing_markdown(report), out / "timing.md")
    write_text(build_edit_page(report, shown), out / "index.html")

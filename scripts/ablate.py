"""``steerdiff ablate METHOD``: vary the settings of a method, and measure and show what each gives."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import tyro

from steerdiff.errors import require

from .ablation.studies import read_study, shipped
from .arguments import parse, plain, take_flag
from .evaluation.running import RunFlags
from .runtime import environment

if TYPE_CHECKING:
    from .ablation.plan import Plan
    from .ablation.tables import Measured
    from .evaluation.cells import Cell

__all__ = ["Ablation", "main"]

_NOTE = """Values are separated by commas, or by ; where one holds a comma; t0=0.1:0.9:5 is five values from 0.1 to 0.9.
Several sweeps make a grid; fields joined by + vary together: steps+jump_n_sample=50+4,185+1.

Writes ablation.csv (a row for each cell and score: value, low and high end of its 95 % interval, n), cases.csv (a row
for each cell, case, seed and score), ablation.md, ablation.json, plot-FIELD.png for each sweep, tradeoff.png if one was
asked for, and sheet.png.

A file has the keys method, title, preset or paper, base, sweep, tradeoff, task, cases and seeds; those that come with
the library are found by their name: {shipped}."""


@dataclass(frozen=True, kw_only=True)
class Ablation(RunFlags):
    """Vary the settings of a method and measure each against the true answers of the benchmark.

    Every cell is stored by what determines it, so that a killed sweep goes on and a wider one computes only what is
    new. The exit code is 1 if a cell failed; the others do not stop for it.
    """

    sweep: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  #: FIELD=A,B,C: a field, by dotted path, and its values
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  #: FIELD=VALUE: a field of the base
    preset: str | None = None  #: base: a preset of the method, instead of its defaults
    paper: Literal["published", "tuned"] | None = None  #: base: the settings of its paper on this model
    tradeoff: str | None = None  #: UP,RIGHT: also plot one score against another, such as right,diversity
    task: str | None = None  #: of the benchmark; None is the first that the paper claims
    cases: int | None = None  #: of the task, half of them of held-out combinations; None is 16
    seeds: int | None = None  #: seeds 0, 1, ... of each case; None is 3, or 1 where the seed does not matter
    random: int | None = None  #: so many points of the grid; a larger number keeps those of a smaller one
    random_seed: int = 0  #: which points
    out: Path | None = None  #: folder for the results; None is out/ablate/METHOD, or the name of the file


def main(arguments: Sequence[str], prog: str) -> int:
    """Plan, run, score and write; without a method, list what can be ablated."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(prog))
        return 0
    rest, file = take_flag(arguments, "--config", "--config names no file; give a .yaml file or an ablation after it")
    made, flags, out = _planned(rest, file, prog)
    from steerdiff.io import ensure_writable

    from .evaluation.running import run_cells

    ensure_writable(out)
    cells = {cell.key: cell for cell in made.cells if cell is not None}
    if os.environ.get("RANK", "0") == "0":  # once under torchrun, where the other processes end in run_cells
        print(_size(made, cells, flags))
    outcomes = run_cells(list(cells.values()), flags, progress=f"ablate {made.method}")
    from .ablation.tables import measure
    from .evaluation.provenance import machine

    by_key = {outcome.cell.key: outcome for outcome in outcomes}
    rows = []
    for point, cell in zip(made.points, made.cells, strict=True):
        outcome = by_key[cell.key] if cell else None
        rows.append(measure(point, outcome))
    facts = {
        "command": shlex.join([*prog.split(), *arguments]),
        "file": file,
        "flags": plain(flags),
        "weights": machine(flags)["weights"],
        "environment": environment(flags.place()),
    }
    _write(made, rows, out, facts)
    return int(any(row.error for row in rows))


def _planned(arguments: Sequence[str], file: str | None, prog: str) -> tuple[Plan, Ablation, Path]:
    """Return what is run, the flags, and the folder for the results."""
    named = bool(arguments) and not arguments[0].startswith("-")
    asks = any(word in ("-h", "--help") for word in arguments)
    require(named or asks or file is not None, f"the method comes first: {prog} METHOD {shlex.join(arguments[:1])} ...")
    note = _NOTE.format(shipped=", ".join(shipped()))
    flags = parse(Ablation, arguments[int(named) :], prog=f"{prog} {arguments[0] if named else 'METHOD'}", note=note)
    study = None if file is None else read_study(file)
    from .ablation.plan import Request, method_named, plan

    method = arguments[0] if named else study.method if study else ""
    method_named(method)
    other = study is not None and study.method != method
    require(not other, f"{file} is an ablation of {study and study.method}, not of {method}; drop {method} or the file")
    fields = {field.name: getattr(flags, field.name) for field in dataclasses.fields(Request)}
    made = plan(method, Request(**fields), study)
    from .ablation.tradeoff import check_tradeoff

    check_tradeoff(made)
    return made, flags, flags.out or Path("out/ablate") / (Path(file).stem if file else method)


def _size(made: Plan, cells: Mapping[str, Cell], flags: Ablation) -> str:
    """Say how much there is to do."""
    from .evaluation.provenance import machine, provenance
    from .evaluation.store import Store

    store, shared = Store(flags.cache), machine(flags)
    stored = sum(store.path(cell, provenance(cell, shared)).is_file() for cell in cells.values())
    refused = len(made.points) - sum(cell is not None for cell in made.cells)
    words = (
        f"{len(cells)} cell{'s' * (len(cells) != 1)} of {made.cases * len(made.seeds)} images, {stored} of them stored"
    )
    return f"{made.title}: {words}" + (
        f"; {refused} of the grid's {len(made.points)} points are refused" if refused else ""
    )


def _write(made: Plan, rows: Sequence[Measured], out: Path, facts: dict[str, Any]) -> None:
    """Write all files, and print the table and where they are."""
    from steerdiff.io import atomic_write

    from .ablation.plots import plot
    from .ablation.report import facts_of
    from .ablation.sheet import contact_sheet
    from .ablation.tables import cases_csv, markdown, scores_csv
    from .ablation.tradeoff import tradeoff_plot

    table = markdown(made, rows)
    record = {**facts, **facts_of(made, rows)}
    files = {
        "ablation.csv": scores_csv(made, rows),
        "cases.csv": cases_csv(made, rows),
        "ablation.md": table.encode(),
        "ablation.json": (json.dumps(record, indent=2) + "\n").encode(),
    }
    if any(row.result for row in rows):
        plots = {f"plot-{axis.name}.png": plot(made, number, rows) for number, axis in enumerate(made.axes)}
        tradeoff = tradeoff_plot(made, rows)
        plots |= {} if tradeoff is None else {"tradeoff.png": tradeoff}
        files |= {**plots, "sheet.png": contact_sheet(made, rows)}
    for name, content in files.items():
        atomic_write(out / name, partial(_put, content))
    print(f"{table}\n{', '.join(files)} in {out}")


def _put(content: bytes, stream: IO[bytes]) -> None:
    stream.write(content)


def _overview(prog: str) -> str:
    from .evaluation.contestants import RUNNERS

    width = max(map(len, RUNNERS))
    lines = [f"  {name:<{width}}  {(cls.__doc__ or '').strip().splitlines()[0]}" for name, cls in RUNNERS.items()]
    usage = f"usage: {prog} METHOD --sweep FIELD=A,B,C [--sweep ...] [OPTIONS]\n       {prog} --config NAME [OPTIONS]"
    names = textwrap.fill(
        f"Ablations of the papers, by --config NAME: {', '.join(shipped())}.", 100, break_on_hyphens=False
    )
    return "\n".join([usage, "", *lines, "", names, f"{prog} METHOD --help shows the flags."])

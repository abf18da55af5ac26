"""Runs cells: those that are not stored yet, and in whatever processes there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steerdiff.errors import UserError
from steerdiff.scripts.runtime import ModelFlags

from .cells import Cell, Result, compute

__all__ = ["Outcome", "RunFlags", "run_cells"]


@dataclass(frozen=True, kw_only=True)
class RunFlags(ModelFlags):
    """How cells are run and where their results are kept."""

    cache: Path = Path("out/cells")  #: folder of stored results, shared by all commands
    fresh: bool = False  #: compute again what was stored by other code, weights or versions; the old results stay


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What became of a cell."""

    cell: Cell
    result: Result | None = None  #: None if it failed
    error: str | None = None  #: why, in one line


def run_cells(cells: Sequence[Cell], flags: RunFlags, *, progress: str | None = None) -> list[Outcome]:
    """Return an outcome for each cell, in their order; a cell that fails does not stop the others."""
    model = flags.load()
    outcomes = []
    for cell in cells:
        try:
            outcomes.append(Outcome(cell=cell, result=compute(cell, model, progress)))
        except UserError as error:
            outcomes.append(Outcome(cell=cell, error=str(error)))
    return outcomes

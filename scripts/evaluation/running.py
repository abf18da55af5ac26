"""Runs cells: those that are not stored yet, and in whatever processes there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from steerdiff.errors import UserError, require
from steerdiff.scripts.runtime import ModelFlags

if TYPE_CHECKING:  # PyTorch is imported where cells are run: the flags alone are needed for --help
    from steerdiff.train.distributed import World

    from .cells import Cell, Result
    from .store import Store
    from .work import Missing

__all__ = ["Outcome", "RunFlags", "run_cells"]

_MOST_REASONS = 4
_WAY_OUT = "--fresh computes them again; the stored results stay"


@dataclass(frozen=True, kw_only=True)
class RunFlags(ModelFlags):
    """How cells are run and where their results are kept; under ``torchrun`` its processes share the cells."""

    cache: Path = Path("out/cells")  #: folder of stored results, shared by all commands
    fresh: bool = False  #: compute again what was stored by other code, weights or versions; the old results stay
    jobs: int = 1  #: processes on this machine; they share its threads, and its GPUs if there are several
    slurm: int | None = None  #: run as a Slurm array of at most so many tasks; needs pip install 'steerdiff[cluster]'
    slurm_partition: str | None = None  #: Slurm's partition; None is its default. SBATCH_ACCOUNT and the like count too
    slurm_time: int = 120  #: minutes that a Slurm task may take
    wait: bool = True  #: wait for the Slurm array; without, the same command collects the results later

    def __post_init__(self) -> None:
        """Check the numbers, and that what belongs to Slurm is not given without it."""
        require(self.jobs >= 1, f"jobs is {self.jobs}; it must be at least 1")
        require(self.slurm_time >= 1, f"slurm_time is {self.slurm_time}; it must be at least 1 minute")
        if self.slurm is None:
            alone = self.slurm_partition is None and self.wait
            require(alone, "slurm_partition and --no-wait do nothing without slurm; give --slurm N too")
        else:
            require(self.slurm >= 1, f"slurm is {self.slurm}; it is the number of tasks, at least 1")
            require(self.jobs == 1, "jobs are processes on this machine and slurm is elsewhere; give one of them")


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What became of a cell."""

    cell: Cell
    result: Result | None = None  #: None if it failed
    error: str | None = None  #: why, in one line


def run_cells(cells: Sequence[Cell], flags: RunFlags, *, progress: str | None = None) -> list[Outcome]:
    """Return an outcome for each cell, in their order; a cell that fails does not stop the others.

    Cells that are stored are read, the others computed, each stored as soon as it is done: a run that was killed goes
    on where it was, and a cell that is asked for twice runs once. Under ``torchrun`` only the first process returns;
    the others work for it, in this call and in later ones, and end with it.

    Args:
        cells: What to run.
        flags: The model, the store, and the way to run.
        progress: Label of a bar over the cells that are not stored; None is silent.

    Raises:
        UserError: Cells are stored that other code, weights or versions made and ``fresh`` is not set; there is no
            such model or device; the store cannot be written; submitit is missing.
        SystemExit: Under ``torchrun`` in all processes but the first, at the end; with ``--no-wait`` after submission.
    """
    from .provenance import machine, provenance
    from .ranks import join_ranks
    from .store import Store
    from .work import Missing

    store = Store(flags.cache)
    world = join_ranks(flags, store)
    require(world.size == 1 or (flags.jobs == 1 and flags.slurm is None), "under torchrun give neither jobs nor slurm")
    shared = machine(flags)
    wanted = {cell.key: Missing(cell=cell, provenance=provenance(cell, shared)) for cell in cells}
    results = {key: store.read(item.cell, item.provenance) for key, item in wanted.items()}
    missing = [item for key, item in wanted.items() if results[key] is None]
    if not flags.fresh:
        _refuse_stale(missing, store, len(wanted))
    errors = _run(missing, flags, store, world, progress) if missing else {}
    for item in missing:
        results[item.cell.key] = store.read(item.cell, item.provenance)
        if results[item.cell.key] is None:
            lost = f"its result is not in {flags.cache}; all processes must see the same folder"
            errors.setdefault(item.cell.key, lost)
    return [Outcome(cell=cell, result=results[cell.key], error=errors.get(cell.key)) for cell in cells]


def _run(
    missing: Sequence[Missing], flags: RunFlags, store: Store, world: World, progress: str | None
) -> dict[str, str]:
    """Compute and store cells in the way that the flags ask for; return why some failed, by key."""
    from steerdiff.io import ensure_writable

    from .ranks import run_ranks
    from .slurm import run_slurm
    from .work import run_here
    from .workers import run_workers

    ensure_writable(flags.cache)
    if world.size > 1:
        return run_ranks(missing, flags, store, progress)
    if flags.slurm is not None:
        return run_slurm(missing, flags, store, progress)
    if flags.jobs > 1:
        return run_workers(missing, flags, store, progress)
    return run_here(missing, flags, store, progress)


def _refuse_stale(missing: Sequence[Missing], store: Store, total: int) -> None:
    """Raise one error for all missing cells that are stored with another provenance."""
    from .provenance import changes
    from .work import title

    stale: list[Cell] = []
    reasons: dict[str, None] = {}
    for item in missing:
        differ = [changes(stored.provenance, item.provenance) for stored in store.others(item.cell)]
        if differ:
            stale.append(item.cell)
            nearest: dict[str, str] = min(differ, key=len)
            reasons |= dict.fromkeys(nearest.values())
    if not stale:
        return
    count = f"{len(stale)} of {total} cells, such as" if total > 1 else "the cell"
    example = f"{title(stale[0])} in {store.home(stale[0])},"
    what, more = "; ".join(list(reasons)[:_MOST_REASONS]), len(reasons) - _MOST_REASONS
    what += f"; and {more} more" if more > 0 else ""
    raise UserError(f"{count} {example} {'were' if total > 1 else 'was'} stored with other {what}: {_WAY_OUT}")

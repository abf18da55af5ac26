"""Cells as a Slurm array, through submitit."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from steerdiff.errors import UserError
from steerdiff.scripts.runtime import ModelFlags

from .store import Store
from .work import Missing, bar_of, model_flags, one_line, run_elsewhere

if TYPE_CHECKING:
    from .running import RunFlags

__all__ = ["run_slurm"]


def run_slurm(
    missing: Sequence[Missing], flags: RunFlags, store: Store, progress: str | None, *, cluster: str = "slurm"
) -> dict[str, str]:
    """Compute and store cells in at most ``flags.slurm`` array tasks and wait for them; Ctrl-C cancels them.

    Nodes must see the store and this installation, and have the device that this machine has. Submitit's files and
    the tasks' output are in ``slurm/`` of the store.

    Args:
        missing: What to compute.
        flags: The model, and what is asked of Slurm.
        store: Where results go.
        progress: Label of a bar over the cells; None is silent.
        cluster: Submitit's name of where jobs run; "local" is processes on this machine, for tests.

    Returns:
        Why cells failed, in one line, by the cell's key.

    Raises:
        UserError: Submitit or Slurm is missing, or refuses the array.
        SystemExit: After submission, if ``flags.wait`` is not set.
    """
    groups = [list(missing[first :: flags.slurm]) for first in range(min(flags.slurm or 1, len(missing)))]
    model = dataclasses.replace(model_flags(flags), device=flags.place())
    jobs = _submit(groups, model, flags, store, cluster)
    if not flags.wait:
        name = jobs[0].job_id.split("_")[0]
        print(f"submitted {len(missing)} cells as Slurm array {name} of {len(jobs)} tasks.")
        print(f"When squeue --job {name} lists it no more, run the same command without --no-wait to collect them.")
        raise SystemExit(0)
    errors: dict[str, str] = {}
    with bar_of(len(missing), progress) as bar:
        try:
            for job, group in zip(jobs, groups, strict=True):
                errors |= _result(job, group, store)
                bar.update(len(group))
        except BaseException:
            for job in jobs:
                with contextlib.suppress(Exception):
                    job.cancel(check=False)
            raise
    return errors


def _submit(
    groups: Sequence[list[Missing]], model: ModelFlags, flags: RunFlags, store: Store, cluster: str
) -> list[Any]:
    try:
        import submitit
    except ImportError as error:
        raise UserError("Slurm needs submitit, which is not installed; pip install 'steerdiff[cluster]'") from error
    wanted: dict[str, Any] = {"name": "steerdiff", "timeout_min": flags.slurm_time}
    if flags.slurm_partition is not None:
        wanted["slurm_partition"] = flags.slurm_partition
    if flags.threads is not None:
        wanted["cpus_per_task"] = flags.threads
    if model.device.startswith("cuda"):
        wanted["gpus_per_node"] = 1
    try:
        executor = submitit.AutoExecutor(folder=store.folder / "slurm", cluster=cluster)
        executor.update_parameters(**wanted)
        jobs: list[Any] = executor.map_array(
            run_elsewhere, groups, *([part] * len(groups) for part in (model, store, None))
        )
    except (RuntimeError, OSError, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"Slurm does not take the array: {one_line(error)}") from error
    return jobs


def _result(job: Any, group: Sequence[Missing], store: Store) -> dict[str, str]:
    """Wait for a task; if it died, the cells that it had not stored failed."""
    try:
        errors: dict[str, str] = job.result()
    except Exception as error:
        line = f"Slurm task {job.job_id} failed ({one_line(error)}); see {job.paths.stderr}"
        return {item.cell.key: line for item in group if store.read(item.cell, item.provenance) is None}
    return errors

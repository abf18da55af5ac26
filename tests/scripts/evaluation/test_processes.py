"""Cells in several processes: killed, interrupted, dying, under torchrun and as submitit's jobs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from steerdiff.errors import UserError
from steerdiff.scripts.evaluation.cells import Cell
from steerdiff.scripts.evaluation.contestants import TextToImage, Unchanged
from steerdiff.scripts.evaluation.provenance import machine, provenance
from steerdiff.scripts.evaluation.running import RunFlags, run_cells
from steerdiff.scripts.evaluation.slurm import run_slurm
from steerdiff.scripts.evaluation.store import Store
from steerdiff.scripts.evaluation.work import Missing

from .cells_worker import told

WORKER = Path(__file__).with_name("cells_worker.py")
LAST_WORDS = """
import torch.distributed as dist
from steerdiff.scripts.evaluation import ranks

def gone(_):
    raise RuntimeError("Connection closed by peer")

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
print(dist.is_initialized())
dist.broadcast_object_list = gone
ranks._dismiss()
print(dist.is_initialized())
"""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def start(folder: Path, cells: Sequence[int | str], *before: str, **flags: Any) -> subprocess.Popen[str]:
    words = [sys.executable, *before, str(WORKER), str(folder), json.dumps(cells), json.dumps({"threads": 1, **flags})]
    return subprocess.Popen(
        words,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests run in the background ignore Ctrl-C
    )


def ended(process: subprocess.Popen[str]) -> list[list[str | None]]:
    """Return [error, hash of the images] of each cell."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found: list[list[str | None]] = json.loads(out.splitlines()[-1])
    return found


def here(folder: Path) -> list[list[str | None]]:
    """Return what `ended` gives of samples of 1, 2 and 3 steps, run in this process and disturbed by nothing."""
    samples = (TextToImage(steps=n) for n in (1, 2, 3))
    cells = [Cell(method="sample", settings=one, task="colour", cases=1, seeds=(0,)) for one in samples]
    return [told(outcome) for outcome in run_cells(cells, RunFlags(cache=folder, threads=1))]


def waiting(folder: Path, n: int, process: subprocess.Popen[str]) -> list[int]:
    """Wait until ``n`` processes run the cell that waits; return their numbers."""
    for _ in range(3000):
        found = [int(path.suffix[1:]) for path in folder.parent.glob(f"{folder.name}.*")]
        if len(found) >= n:
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("the cell that waits was never reached")


def stored(folder: Path) -> dict[str, tuple[int, str]]:
    """Return when each result was written, and the hash of its bytes."""
    files = sorted(folder.glob("*/*.npz"))
    return {p.parent.name: (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[list[str | None]]:
    """Three cells of a run that nothing disturbs."""
    return here(tmp_path_factory.mktemp("whole") / "cells")


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_and_gives_the_same_images(
    uninterrupted: list[list[str | None]], tmp_path: Path
) -> None:
    folder = tmp_path / "cells"
    process = start(folder, [1, 2, "waits"])
    waiting(folder, 1, process)
    process.kill()
    process.wait(60)
    before = stored(folder)
    assert len(before) == 2
    assert here(folder) == uninterrupted
    after = stored(folder)
    assert len(after) == 3 and before.items() <= after.items()  # read, not written again


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_ends_all_processes_and_keeps_what_is_stored(jobs: int, tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    process = start(folder, [1, *(f"waits:{seed}" for seed in range(jobs))], jobs=jobs)
    workers = waiting(folder, jobs, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0 and "KeyboardInterrupt" in err
    assert len(stored(folder)) == 1
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


@pytest.mark.slow
def test_workers_give_what_one_process_gives_and_one_that_dies_fails_its_cell_alone(
    uninterrupted: list[list[str | None]], tmp_path: Path
) -> None:
    # The first cell runs alone, with both threads, which may round otherwise: it is one that computes nothing.
    found = ended(start(tmp_path / "cells", ["unchanged", 1, "dies", 2, "fails", 3], jobs=2, threads=2))
    assert [found[1], found[3], found[5]] == uninterrupted
    assert found[2] == ["the process that ran it was killed by signal 9 (SIGKILL); was the memory full?", None]
    assert found[4] == ["ZeroDivisionError: a bug of the method", None]


@pytest.mark.slow
def test_processes_of_torchrun_share_the_cells_and_the_first_tells(
    uninterrupted: list[list[str | None]], tmp_path: Path
) -> None:
    found = ended(start(tmp_path / "cells", [1, 2, "fails", 3], *TORCHRUN))
    assert [found[0], found[1], found[3]] == uninterrupted
    assert found[2][0] == "ZeroDivisionError: a bug of the method"


def test_the_first_ends_its_group_though_the_others_are_gone() -> None:
    """The threads of a group that is left behind abort Python at its end, and torchrun calls the whole run failed."""
    words = (sys.executable, "-c", LAST_WORDS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.split() == ["True", "False"], done.stderr


@pytest.mark.slow
def test_jobs_of_submitit_store_their_cells(tmp_path: Path) -> None:
    flags = RunFlags(cache=tmp_path / "cells", slurm=2, threads=1)
    store, shared = Store(flags.cache), machine(flags)
    cells = [
        Cell(method="unchanged", settings=Unchanged(), task="colour", cases=1, seeds=(0,)),
        Cell(method="sample", settings=TextToImage(steps=1), task="colour", cases=1, seeds=(0,)),
        Cell(method="unchanged", settings=Unchanged(), task="style", cases=1, seeds=(0,)),
    ]
    missing = [Missing(cell=cell, provenance=provenance(cell, shared)) for cell in cells]
    assert run_slurm(missing, flags, store, None, cluster="local") == {}
    assert all(store.read(item.cell, item.provenance) is not None for item in missing)


def test_slurm_without_submitit_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    flags = RunFlags(cache=tmp_path / "cells", slurm=1)
    cell = Cell(method="unchanged", settings=Unchanged(), task="colour", cases=1, seeds=(0,))
    missing = [Missing(cell=cell, provenance=provenance(cell, machine(flags)))]
    with pytest.raises(UserError, match=r"pip install 'steerdiff\[cluster\]'"):
        run_slurm(missing, flags, Store(flags.cache), None)

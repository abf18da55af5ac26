"""Runs cells in a process of its own, for tests that kill or interrupt it or start several.

Arguments: the folder of the store, a JSON list of what each cell is (an integer is the steps of a sample, a text a
method of this file), a JSON object of flags. Prints a JSON list of [error, hash of the images] for each cell.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from steerdiff.scripts.evaluation import contestants
from steerdiff.scripts.evaluation.cells import Cell
from steerdiff.scripts.evaluation.running import Outcome, RunFlags, run_cells


@dataclass(frozen=True, kw_only=True)
class Fails:
    """Has a bug."""

    def __call__(self, model: Any, image: Tensor, **_: Any) -> Tensor:
        raise ZeroDivisionError("a bug of\nthe method")


@dataclass(frozen=True, kw_only=True)
class Dies:
    """Takes its process with it, as the kernel does where the memory is full."""

    def __call__(self, model: Any, image: Tensor, **_: Any) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return image


@dataclass(frozen=True, kw_only=True)
class Waits:
    """Leaves the number of its process beside the store and takes longer than any test."""

    folder: str

    def __call__(self, model: Any, image: Tensor, **_: Any) -> Tensor:
        Path(f"{self.folder}.{os.getpid()}").touch()
        time.sleep(600)
        return image


def cell(what: int | str, folder: Path) -> Cell:
    contestants.RUNNERS |= {"fails": Fails, "dies": Dies, "waits": Waits}  # type: ignore[operator]
    cls = contestants.RUNNERS["sample" if isinstance(what, int) else what.split(":")[0]]
    settings = cls(steps=what) if isinstance(what, int) else cls(folder=str(folder)) if cls is Waits else cls()
    seed = int(what.split(":")[1]) if isinstance(what, str) and ":" in what else 0
    method = next(name for name, known in contestants.RUNNERS.items() if known is cls)
    return Cell(method=method, settings=settings, task="colour", cases=1, seeds=(seed,))


def told(outcome: Outcome) -> list[str | None]:
    """Return an outcome as JSON-able values."""
    result = outcome.result
    seen = None if result is None else hashlib.sha256(result.images.numpy().tobytes()).hexdigest()
    return [outcome.error, seen]


def main() -> None:
    folder = Path(sys.argv[1])
    cells = [cell(what, folder) for what in json.loads(sys.argv[2])]
    flags = RunFlags(cache=folder, **json.loads(sys.argv[3]))
    first = run_cells(cells[:1], flags)  # twice, so that under torchrun the others must come back to work
    print(json.dumps([told(outcome) for outcome in [*first, *run_cells(cells[1:], flags)]]), flush=True)


if __name__ == "__main__":
    main()

"""Checkpoints that survive a crash: written beside, then moved into place; the newest few stay."""

from __future__ import annotations

import logging
import pickle
import re
from pathlib import Path
from typing import IO, Any

import torch

from steerdiff.errors import UserError
from steerdiff.io import atomic_write

__all__ = ["Checkpoints"]

FORMAT = 1
_NAME = re.compile(r"step-(\d{8})\.pt")
_log = logging.getLogger(__name__)


def _write(contents: dict[str, Any], file: IO[bytes]) -> None:
    try:
        torch.save(contents, file)
    except RuntimeError as error:  # what torch makes of a full disk
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


class Checkpoints:
    """The checkpoints of one run, ``step-00001000.pt`` after 1000 steps.

    Args:
        folder: Where they live; made on the first save.
        keep: How many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def paths(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(path for path in found if _NAME.fullmatch(path.name))

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after ``step`` steps, then delete what is older than the newest ``keep``."""
        path = self.folder / f"step-{step:08d}.pt"
        contents = {"format": FORMAT, "step": step, **state}
        atomic_write(path, lambda file: _write(contents, file))
        for old in self.paths()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def latest(self) -> dict[str, Any] | None:
        """Return the newest readable state on the CPU, or None if there is none; damaged files are passed over.

        Raises:
            UserError: There are checkpoints, but none can be read.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                _log.warning("%s cannot be read (%s); trying the one before", path, error)
                continue
            if state.get("format") != FORMAT:
                raise UserError(f"{path} has checkpoint format {state.get('format')}; this version reads {FORMAT}")
            return state
        if paths:
            raise UserError(f"none of the {len(paths)} checkpoints in {self.folder} can be read; start a new run")
        return None

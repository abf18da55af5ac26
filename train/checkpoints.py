"""Checkpoints that survive a crash: written beside, then moved into place; the newest few stay."""

from __future__ import annotations

import logging
import os
import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch

from steerdiff.errors import UserError

__all__ = ["Checkpoints", "write_atomically"]

FORMAT = 1
_NAME = re.compile(r"step-(\d{8})\.pt")
_log = logging.getLogger(__name__)


class _Writer(Protocol):
    def __call__(self, file: BinaryIO, /) -> object: ...


def write_atomically(path: Path, write: _Writer) -> None:
    """Let ``write(file)`` fill a new file, force it to disk and move it to ``path``: there is never half a file.

    Raises:
        UserError: The file cannot be written (full disk, no permission); ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error}); free space or choose another folder") from error
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        write_atomically(path, lambda file: torch.save(contents, file))
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

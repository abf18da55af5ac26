"""Results of cells on the disk: a folder for each cell, in it a file for each provenance it was computed with.

``out/cells/sdedit-object-<key>/<provenance>.npz`` holds the images (uint8), and as JSON text the identity, the
provenance, evaluations, seconds and the machine. The same content gives the same bytes; no file holds a date.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steerdiff.errors import UserError, require, warn
from steerdiff.io import atomic_write

from .cells import Cell, Result
from .provenance import digest

__all__ = ["Store", "Stored"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """A result as it lies on the disk, with what it was made from."""

    result: Result
    provenance: Mapping[str, Any]  #: what it was computed with
    environment: Mapping[str, Any]  #: machine and versions, for the record


@dataclass(frozen=True)
class Store:
    """Stored results. A damaged file is warned of, put aside under another name, and counts as missing."""

    folder: Path  #: made when the first result is written

    def home(self, cell: Cell) -> Path:
        """Return the folder of a cell; its name tells method and task."""
        words = re.sub(r"[^a-z0-9]+", "-", f"{cell.method} {cell.task}".lower()).strip("-")
        return self.folder / f"{words}-{cell.key}"

    def path(self, cell: Cell, provenance: Mapping[str, Any]) -> Path:
        """Return where a result of this provenance is or will be."""
        return self.home(cell) / f"{digest(provenance)}.npz"

    def read(self, cell: Cell, provenance: Mapping[str, Any]) -> Result | None:
        """Return the result of a cell that was computed with this provenance; None if there is none."""
        stored = self._read(cell, self.path(cell, provenance))
        return None if stored is None else stored.result

    def others(self, cell: Cell) -> list[Stored]:
        """Return all results of a cell, whatever they were computed with."""
        found = (self._read(cell, path) for path in sorted(self.home(cell).glob("*.npz")))
        return [stored for stored in found if stored is not None]

    def write(self, cell: Cell, provenance: Mapping[str, Any], result: Result, environment: Mapping[str, Any]) -> Path:
        """Store a result, whole or not at all; results of other provenances stay.

        Raises:
            UserError: The disk is full or the folder cannot be written.
        """
        facts = {
            "identity": cell.identity(),
            "provenance": dict(provenance),
            "evaluations": result.evaluations,
            "seconds": result.seconds,
            "environment": dict(environment),
        }
        text = np.array(json.dumps(facts, sort_keys=True))
        images = result.images.numpy()
        path = self.path(cell, provenance)
        return atomic_write(path, lambda file: np.savez_compressed(file, images=images, facts=text))

    def _read(self, cell: Cell, path: Path) -> Stored | None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return _unpacked(cell, path, data)
        except Exception as error:  # a damaged archive can raise nearly anything
            reason = str(error) if isinstance(error, UserError) else f"it is damaged: {type(error).__name__}"
            aside = _put_aside(path)
            warn(f"{path} is not used ({reason}); it is kept as {aside.name}")
            return None


def _unpacked(cell: Cell, path: Path, data: bytes) -> Stored:
    """Return what a file holds; anything that is not exactly a result of this cell under its own name is an error."""
    with np.load(BytesIO(data), allow_pickle=False) as arrays:
        images, facts = arrays["images"], json.loads(str(arrays["facts"]))
    require(facts["identity"] == cell.identity(), "it holds another cell")
    require(f"{digest(facts['provenance'])}.npz" == path.name, "its name is not that of what it was computed with")
    shape = (cell.cases, len(cell.seeds), 3)
    fits = images.dtype == np.uint8 and images.ndim == 5 and images.shape[:3] == shape
    require(fits, f"its images are {images.dtype} {list(images.shape)}")
    result = Result(
        images=torch.from_numpy(images), evaluations=float(facts["evaluations"]), seconds=float(facts["seconds"])
    )
    return Stored(result=result, provenance=facts["provenance"], environment=facts["environment"])


def _put_aside(path: Path) -> Path:
    """Rename a file so that it is no longer found, without replacing one that was put aside before."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    os.replace(path, aside)
    return aside

"""One view of every file of weights: which tensors it holds, and each of them read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerdiff.errors import require

__all__ = ["Entry", "WeightFile"]


@dataclass(frozen=True)
class Entry:
    """What a file says about one tensor, known before any of its numbers are read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Size in memory."""
        size = self.dtype.itemsize
        for side in self.shape:
            size *= side
        return size


@dataclass(frozen=True, eq=False)
class WeightFile:
    """The tensors of a file (or of several) by their names. Names inside nested containers are joined by dots."""

    path: Path  #: the file or folder, for messages
    entries: Mapping[str, Entry]  #: every tensor, in the order of the file
    load: Callable[[str], Tensor]  #: reads one tensor by its name into memory of its own, in the stored dtype
    values: Mapping[str, Any] = field(default_factory=dict)  #: numbers and texts beside the tensors, by dotted name
    metadata: Mapping[str, str] = field(default_factory=dict)  #: the text header of a safetensors file
    prefix: str = ""  #: what has been taken off the names

    @staticmethod
    def of(tensors: Mapping[str, Tensor], source: str) -> WeightFile:
        """Return tensors in memory as if they were a file; ``source`` stands for its path in messages."""
        entries = {name: Entry(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        return WeightFile(Path(source), entries, tensors.__getitem__)

    def read(self, name: str) -> Tensor:
        """Return the tensor ``name`` on the CPU, in the dtype it is stored in; nothing else is read.

        Raises:
            UserError: There is no such tensor, the file ends early or its data are damaged.
        """
        require(name in self.entries, f"{self.path} has no tensor {self.prefix}{name}; see what it has in entries")
        return self.load(name)

    def under(self, prefix: str) -> WeightFile:
        """Return only what begins with ``prefix``, which is taken off the names."""
        entries = {name[len(prefix) :]: entry for name, entry in self.entries.items() if name.startswith(prefix)}
        values = {name[len(prefix) :]: value for name, value in self.values.items() if name.startswith(prefix)}
        load = self.load
        return WeightFile(
            self.path, entries, lambda name: load(prefix + name), values, self.metadata, self.prefix + prefix
        )

    def without(self, drop: Callable[[str], bool]) -> WeightFile:
        """Return the file less the tensors whose name ``drop`` says yes to."""
        entries = {name: entry for name, entry in self.entries.items() if not drop(name)}
        return WeightFile(self.path, entries, self.load, self.values, self.metadata, self.prefix)

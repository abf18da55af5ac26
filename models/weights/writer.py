"""Writing safetensors one tensor after another, so that a model never has to be in memory as a whole."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from steerdiff.errors import UserError, require

from .reader import Entry

__all__ = ["Group", "write_safetensors"]

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Group:
    """Tensors that are made together, known before any of their numbers are."""

    entries: Mapping[str, Entry]  #: by name
    make: Callable[[], Sequence[Tensor]]  #: gives them on the CPU, in the order of ``entries``


def write_safetensors(
    path: str | os.PathLike[str], groups: Iterable[Group], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``groups`` to ``path``, each made when it is its turn: the old file stays whole until the new one is.

    Raises:
        UserError: The folder is missing or not writable, the disk is full, or two tensors have one name.
    """
    path, groups = Path(path), list(groups)
    header = _header(groups, metadata or {}, path)
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for group in groups:
                _write(file, group)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written ({reason}); check that its folder exists and has space") from error
    finally:
        temporary.unlink(missing_ok=True)


def _header(groups: Sequence[Group], metadata: Mapping[str, str], path: Path) -> bytes:
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for group in groups:
        for name, entry in group.entries.items():
            require(name not in table, f"{path} would have two tensors named {name}; check the source")
            require(entry.dtype in _NAMES, f"{name} is {entry.dtype}, which safetensors does not hold; give a dtype")
            end = place + entry.bytes
            table[name] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [place, end]}
            place = end
    text = json.dumps(table, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)  # data begin at a multiple of 8


def _write(file: BinaryIO, group: Group) -> None:
    for tensor, (name, entry) in zip(group.make(), group.entries.items(), strict=True):
        fits = tuple(tensor.shape) == tuple(entry.shape) and tensor.dtype == entry.dtype
        if not fits:
            raise RuntimeError(f"{name} was announced as {entry} and is {list(tensor.shape)} {tensor.dtype}")
        numbers = tensor.contiguous().reshape(-1)
        if numbers.numel():
            file.write(numbers.view(torch.uint8).numpy().data)

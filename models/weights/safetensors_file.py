"""The safetensors format: its own package checks the header, then each tensor is read from where the header says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from steerdiff.errors import UserError, require

from .raw import FETCH_AGAIN, as_tensor, opened, read_bytes, shown
from .reader import Entry, WeightFile

__all__ = ["open_safetensors"]

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
_PARSED, _SPARE = 10, 8 * 2**20  # memory of a header that has been parsed, in times its size; and what any file may use


def open_safetensors(path: Path) -> WeightFile:
    """Open a safetensors file; its text header becomes ``metadata``.

    Raises:
        UserError: The file is missing, cut short, or its header lies (offsets beyond the file, overlaps, wrong sizes).
    """
    header, start = _header(path)
    metadata = header.pop("__metadata__", None) or {}
    entries = {name: Entry(tuple(item["shape"]), _dtype(path, name, item["dtype"])) for name, item in header.items()}

    def load(name: str) -> torch.Tensor:
        first, last = header[name]["data_offsets"]
        data = read_bytes(path, start + first, last - first)
        entry = entries[name]
        return as_tensor(data, entry.dtype, entry.shape, None)

    return WeightFile(path, entries, load, metadata=metadata)


def _header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the parsed header, once the package has found it true, and where the data begin."""
    with opened(path) as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        bounded = _PARSED * length <= size + _SPARE
        require(
            bounded or length > size,
            f"{path} has a header of {length} bytes in a file of {size}; it is damaged, do not trust it",
        )
        try:
            with safe_open(path, framework="pt"):
                text = file.read(length)
            header = json.loads(text)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} is not a whole safetensors file ({error}); {FETCH_AGAIN}") from error
    return dict(header), 8 + length


def _dtype(path: Path, name: str, kind: str) -> torch.dtype:
    dtype = getattr(torch, _DTYPES.get(kind, ""), None)
    if not isinstance(dtype, torch.dtype):
        raise UserError(f"{path} stores {shown(name)} as {kind}, which this PyTorch cannot hold; save it as F32 or F16")
    return dtype

"""PyTorch's own files, read without running anything in them: zip archives, TorchScript archives, and the older stream.

Source: the layouts are those of ``torch/serialization.py`` (PyTorch 0.4 to 2.x): in an archive, ``data.pkl`` describes
the objects and ``data/KEY`` holds the numbers of a storage; in the older stream, pickles of a magic number, a version,
the machine, the objects and the list of keys come first, and the storages follow in the order of that list.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from steerdiff.errors import require

from .archive import Archive, Record, read_archive
from .flatten import Members, flatten
from .inert import Global, LazyTensor, Opaque, Storage, Table, storage_dtype
from .raw import FETCH_AGAIN, Budget, Stream, as_tensor, opened, read_bytes, shown
from .reader import Entry, WeightFile
from .unpickle import unpickle

__all__ = ["open_archive", "open_stream"]

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_LONGEST_PICKLE = 2**26
_MOST_SIDES = 64
_SHARING = 4  # as often may tensors of a file share its bytes on average


@dataclass(frozen=True, slots=True)
class _Block:
    """Where the bytes of a storage lie."""

    start: int
    size: int
    crc: int | None = None


def open_archive(path: Path) -> WeightFile:
    """Open what ``torch.save`` (since 1.6) or ``torch.jit.save`` wrote.

    Raises:
        UserError: The archive is damaged, is none of PyTorch's, or holds code.
    """
    size = path.stat().st_size
    budget = Budget(path, size)
    archive = read_archive(path, budget)
    root = _root(archive)
    table = archive.records[f"{root}data.pkl"]
    require(table.size <= _LONGEST_PICKLE, f"{path} has a table of contents of {table.size} bytes; it holds no weights")
    order = archive.text(f"{root}byteorder") or "little"
    require(order == "little", f"{path} is big-endian; load and save it again on the machine that wrote it")
    start = archive.place(table)
    read_bytes(path, start, table.size, table.crc or None)
    with opened(path) as file:
        tree = unpickle(Stream(path, file, start, start + table.size), path, budget, _archive_storage)
    members = _members(archive, root, budget) if f"{root}constants.pkl" in archive.records else None
    tensors, values = flatten(tree, path, budget, members)

    def locate(storage: Storage) -> _Block:
        record = archive.records.get(f"{root}data/{storage.key}")
        require(record is not None, f"{path} lacks the numbers of data/{shown(storage.key)}; {FETCH_AGAIN}")
        return _record_block(archive, record) if record else _Block(0, 0)

    sizes = {name: archive.records[name].size for name in archive.records}
    return _weights(path, tensors, values, lambda storage: sizes.get(f"{root}data/{storage.key}"), locate)


def open_stream(path: Path) -> WeightFile:
    """Open what ``torch.save`` wrote before 1.6, or writes with ``_use_new_zipfile_serialization=False``.

    Raises:
        UserError: The file is cut short or damaged, or holds code.
    """
    size = path.stat().st_size
    budget = Budget(path, size)
    storages: dict[str, Storage] = {}
    with opened(path) as file:
        stream = Stream(path, file, 0, min(size, _LONGEST_PICKLE))
        for expected in (_MAGIC, _VERSION):
            foreign = f"{path} is a pickle that torch.save did not write; where you trust it, load it and torch.save it"
            require(unpickle(stream, path, budget) == expected, foreign)
        require(
            _is_little(unpickle(stream, path, budget)),
            f"{path} is big-endian; load and save it again on the machine that wrote it",
        )
        tree = unpickle(stream, path, budget, lambda key: _stream_storage(key, storages))
        keys = unpickle(stream, path, budget)
        blocks = _stream_blocks(Stream(path, file, stream.position, size), keys, storages, path)
    tensors, values = flatten(tree, path, budget)

    def extent(storage: Storage) -> int | None:
        return blocks[storage.key].size if storage.key in blocks else None

    return _weights(path, tensors, values, extent, lambda storage: blocks[storage.key])


def _weights(
    path: Path,
    tensors: dict[str, LazyTensor],
    values: dict[str, Any],
    extent: Callable[[Storage], int | None],
    locate: Callable[[Storage], _Block],
) -> WeightFile:
    """Check what the file claims of each tensor, and return the view of it."""
    entries = {name: _checked(path, name, tensor, extent(tensor.storage)) for name, tensor in tensors.items()}
    claimed, size = [entry.bytes for entry in entries.values()], path.stat().st_size
    require(
        max(claimed, default=0) <= size and sum(claimed) <= _SHARING * size,
        f"{path} claims tensors of {sum(claimed)} bytes in {size}; it is damaged, do not trust it",
    )
    return WeightFile(path, entries, lambda name: _read(path, tensors[name], locate(tensors[name].storage)), values)


def _checked(path: Path, name: str, tensor: LazyTensor, extent: int | None) -> Entry:
    """Return the entry of a tensor whose view lies inside its storage, which is all there."""
    where = f"the tensor {shown(name)} of {path}"
    require(extent is not None, f"{where} has no numbers in the file; {FETCH_AGAIN}")
    shape, stride = tensor.shape, tensor.stride
    require(
        isinstance(shape, (tuple, list)) and isinstance(stride, (tuple, list)) and len(shape) == len(stride),
        f"{where} has no proper shape; {FETCH_AGAIN}",
    )
    proper = all(type(value) is int and 0 <= value < 2**62 for value in (*shape, *stride, tensor.offset))
    spans = math.prod(max(side, 1) for side in shape) * tensor.dtype.itemsize if proper else 2**63
    require(proper and spans < 2**62 and len(shape) <= _MOST_SIDES, f"{where} has no proper shape; {FETCH_AGAIN}")
    require(tensor.plain, f"{where} is a conjugated or negated view; save it after resolve_conj() and resolve_neg()")
    storage = tensor.storage
    end = (storage.start + storage.numel) * storage.dtype.itemsize
    fits = _last(tensor) * tensor.dtype.itemsize <= storage.numel * storage.dtype.itemsize
    require(fits and end <= (extent or 0), f"{where} reaches beyond its numbers in the file; {FETCH_AGAIN}")
    return Entry(tuple(shape), tensor.dtype)


def _last(tensor: LazyTensor) -> int:
    """Return one more than the index in the storage of the last number of a tensor, 0 where it has none."""
    if 0 in tensor.shape:
        return 0
    steps = sum((side - 1) * step for side, step in zip(tensor.shape, tensor.stride, strict=True))
    return int(tensor.offset + steps + 1)


def _read(path: Path, tensor: LazyTensor, block: _Block) -> Tensor:
    width = tensor.dtype.itemsize
    shape, stride = tuple(tensor.shape), tuple(tensor.stride)
    end = _last(tensor)
    first = tensor.offset if end else 0
    start = tensor.storage.start * tensor.storage.dtype.itemsize + first * width
    size = (end - first) * width
    crc = block.crc if size == block.size else None
    data = read_bytes(path, block.start + start, size, crc)
    return as_tensor(data, tensor.dtype, shape, stride if end else None)


# archives


def _root(archive: Archive) -> str:
    """Return the folder of data.pkl in the archive, with its slash."""
    roots = [name[: -len("data.pkl")] for name in archive.records if re.fullmatch(r"([^/]*/)?data\.pkl", name)]
    require(
        len(roots) == 1,
        f"{archive.path} is a zip archive that PyTorch (1.6 or later) did not write; unpack it and give the file in it",
    )
    return roots[0]


def _record_block(archive: Archive, record: Record) -> _Block:
    return _Block(archive.place(record), record.size, record.crc or None)


def _archive_storage(key: object) -> object:
    tag, kind, name, _, numel = key if isinstance(key, tuple) else ()
    return _storage(tag, kind, name, numel, None)


def _storage(tag: object, kind: object, name: object, numel: object, view: object) -> Storage | Opaque:
    """Return the storage of a persistent id; ``view`` (key, start, numel) is a part of it in the oldest files."""
    proper = tag == "storage" and isinstance(name, (str, int)) and type(numel) is int and numel >= 0
    if not proper or not isinstance(numel, int):
        raise ValueError
    start = 0
    if isinstance(view, tuple):
        _, start, numel = view
        if type(start) is not int or type(numel) is not int or min(start, numel) < 0:
            raise ValueError
    dtype = storage_dtype(kind)
    return Opaque() if dtype is None else Storage(str(name), dtype, numel, start)


def _members(archive: Archive, root: str, budget: Budget) -> Members:
    """Return the function that finds the parameters and buffers of a TorchScript class in the text of its code."""
    known: dict[str, dict[str, frozenset[str] | None]] = {}

    def members(kind: Global) -> frozenset[str] | None:
        if kind.module not in known:
            text = archive.text(f"{root}code/{kind.module.replace('.', '/')}.py")
            budget.spend(4 * len(text))
            known[kind.module] = _classes(text)
        return known[kind.module].get(kind.name)

    return members


def _classes(text: str) -> dict[str, frozenset[str] | None]:
    """Return the names that each class declares; the text is searched, never compiled."""
    found: dict[str, frozenset[str] | None] = {}
    for part in re.split(r"^class ", text, flags=re.MULTILINE)[1:]:
        lists = [re.search(rf"^  __{kind}__ = \[(.*)\]$", part, re.MULTILINE) for kind in ("parameters", "buffers")]
        names = [re.findall(r'"([^"]*)"', match.group(1)) for match in lists if match]
        found[part.partition("(")[0]] = frozenset(names[0] + names[1]) if len(names) == 2 else None
    return found


# streams


def _is_little(machine: object) -> bool:
    return isinstance(machine, Table) and not any(key == "little_endian" and not value for key, value in machine.pairs)


def _stream_storage(key: object, storages: dict[str, Storage]) -> object:
    if isinstance(key, tuple) and key[:1] == ("module",):
        return key[1]
    tag, kind, name, _, numel, view = key if isinstance(key, tuple) else ()
    whole = _storage(tag, kind, name, numel, None)
    if isinstance(whole, Opaque):
        return whole
    known = storages.setdefault(whole.key, whole)
    if (known.dtype, known.numel) != (whole.dtype, whole.numel):
        raise ValueError
    return _storage(tag, kind, name, numel, view)


def _stream_blocks(stream: Stream, keys: object, storages: dict[str, Storage], path: Path) -> dict[str, _Block]:
    """Find the storages that follow the pickles: each is the count of its numbers (int64), then the numbers."""
    blocks: dict[str, _Block] = {}
    for key in keys if isinstance(keys, list) else ():
        storage = storages.get(str(key)) if isinstance(key, (str, int)) else None
        require(storage is not None, f"{path} has numbers that no tensor names, so it is damaged; {FETCH_AGAIN}")
        count = int.from_bytes(stream.read(8), "little", signed=True)
        if storage is not None:
            require(count == storage.numel, f"{path} disagrees about the size of its tensors; {FETCH_AGAIN}")
            size = count * storage.dtype.itemsize
            blocks[storage.key] = _Block(stream.position, size)
            stream.skip(size)
    return blocks

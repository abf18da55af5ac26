"""One way to open a file of weights, whatever wrote it: the content says what it is, not its name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from steerdiff.errors import UserError, require

from .raw import FETCH_AGAIN, opened, shown
from .reader import Entry, WeightFile
from .safetensors_file import open_safetensors
from .torch_file import open_archive, open_stream

__all__ = ["joined", "open_weights"]

#: Whether the first bytes of a file are of this format, and its reader.
_Format = tuple[Callable[[bytes], bool], Callable[[Path], WeightFile]]

_HEAD = 1024
_LONGEST_INDEX = 2**24


def open_weights(path: str | os.PathLike[str]) -> WeightFile:
    """Open a file of weights; nothing in it is run, and its numbers are read one tensor at a time when asked for.

    Args:
        path: A safetensors file; a file of ``torch.save`` of any age; a TorchScript archive; or the index
            (``*.index.json``) of a model in several such files, which are opened as one.

    Returns:
        The view of its tensors. Names inside nested containers are joined by dots.

    Raises:
        UserError: The file is missing, empty, not readable, cut short, damaged, no file of weights, or holds code.
    """
    return _open(Path(path), (*_FORMATS, _INDEX))


def _open(path: Path, formats: Sequence[_Format]) -> WeightFile:
    with opened(path) as file:
        head = file.read(_HEAD)
    require(bool(head), f"{path} is empty; {FETCH_AGAIN}")
    for recognises, read in formats:
        if recognises(head):
            weights = read(path)
            empty = (
                f"{path} holds no tensors; give a file of weights (the state_dict() of a model, not a pickled model)"
            )
            require(bool(weights.entries), empty)
            return weights
    known = "safetensors, torch.save (.pt, .pth, .ckpt, .bin), TorchScript"
    raise UserError(f"{path} is {_what(head)}; steerdiff reads {known}")


def joined(parts: Mapping[str, WeightFile]) -> WeightFile:
    """Return several files as one: each part's names get its prefix.

    Args:
        parts: Files by prefix, such as ``{"unet.": ..., "vae.": ...}``.

    Raises:
        UserError: There are no parts, or two of them have a tensor of one name.
    """
    require(bool(parts), "there are no files of weights to join; give at least one")
    folder = os.path.commonpath([file.path.absolute().parent for file in parts.values()])
    return _joined(Path(folder), parts.items())


def _joined(path: Path, parts: Iterable[tuple[str, WeightFile]]) -> WeightFile:
    entries: dict[str, Entry] = {}
    where: dict[str, tuple[WeightFile, str]] = {}
    values: dict[str, object] = {}
    metadata: dict[str, str] = {}
    for prefix, file in parts:
        for name, entry in file.entries.items():
            twice = f"{path} has two tensors named {shown(prefix + name)}; leave one of the files out"
            require(prefix + name not in entries, twice)
            entries[prefix + name], where[prefix + name] = entry, (file, name)
        values.update({prefix + name: value for name, value in file.values.items()})
        metadata.update(file.metadata)

    def load(name: str) -> torch.Tensor:
        file, own = where[name]
        return file.read(own)

    return WeightFile(path, entries, load, values, metadata)


def _open_index(path: Path) -> WeightFile:
    """Open the files that an index names, each tensor from the one that the index gives it."""
    require(path.stat().st_size <= _LONGEST_INDEX, f"{path} is too large for an index of weights; {FETCH_AGAIN}")
    try:
        places = json.loads(path.read_bytes())["weight_map"]
        shards = {str(shard): Path(shard).name == shard for shard in places.values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is JSON but no index of weights (it has no weight_map); give a file of weights"
        ) from error
    outside = [shown(shard) for shard, plain in shards.items() if not plain]
    require(not outside, f"{path} names files outside its folder ({', '.join(outside[:3])}); do not trust it")
    files = {shard: _open(path.parent / shard, _FORMATS) for shard in shards}
    missing = [name for name, shard in places.items() if name not in files[shard].entries]
    require(not missing, f"{path} names {shown(missing[:1])}, which its file lacks; {FETCH_AGAIN} with its files")
    return _joined(path, (("", _only(file, places, shard)) for shard, file in files.items()))


def _only(file: WeightFile, places: Mapping[str, str], shard: str) -> WeightFile:
    return file.without(lambda name: places.get(name) != shard)


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of a length, which are never all text, then a JSON object."""
    return head[8:9] == b"{" and any(byte < 9 or byte > 126 for byte in head[:8])


_FORMATS: tuple[_Format, ...] = (
    (_is_safetensors, open_safetensors),  # first, as its length may look like the beginning of a pickle
    (lambda head: head.startswith(b"PK\x03\x04"), open_archive),
    (lambda head: head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"), open_stream),
)
_INDEX: _Format = (lambda head: head.lstrip().startswith(b"{"), _open_index)

#: What else may lie in the place of weights: beginnings (lower case) and what to say.
_OTHERS = (
    ((b"version https://git-lfs",), "a Git LFS pointer, not the weights; run `git lfs pull` in its repository"),
    ((b"<!doctype", b"<html", b"<?xml", b"<head"), "a web page saved in the place of weights; download it again"),
    ((b"pk\x05\x06",), "an empty zip archive; fetch it again"),
    ((b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"7z\xbc\xaf", b"rar!", b"\x28\xb5\x2f\xfd"), "compressed; unpack it first"),
    ((b"\x89hdf",), "an HDF5 file; convert it with the program that wrote it"),
    ((b"\x93numpy",), "a numpy array; save the whole model with safetensors"),
    ((b"gguf",), "a GGUF file, whose numbers are quantised; get the safetensors file of the model"),
)


def _what(head: bytes) -> str:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginnings, what in _OTHERS:
        if start.startswith(beginnings):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive (unpack it; PyTorch of before 2017 is not read)"
    if not head.strip(b"\0"):
        return f"filled with zeros, an interrupted download; {FETCH_AGAIN}"
    return "no file of weights"

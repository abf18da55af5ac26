"""Bytes of a file: counted before they are read, read into memory of their own, refused where there are none."""

from __future__ import annotations

import zlib
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from steerdiff.errors import UserError, require

__all__ = ["FETCH_AGAIN", "Budget", "Stream", "as_tensor", "opened", "read_bytes", "shown"]

FETCH_AGAIN = "fetch or save it again"

_BLOCK = 2**20
_SPARE = 8 * 2**20
_MOST = 2**28
_LONGEST_NAME = 80


def shown(text: object) -> str:
    """Return a name from a file for a message: one line, no control characters, not too long."""
    line = str(text).encode("unicode_escape", "backslashreplace").decode("ascii")
    return line if len(line) <= _LONGEST_NAME else line[:_LONGEST_NAME] + "..."


class Budget:
    """Memory that may be spent on what a file *says* (names, shapes, containers): not much more than its own size.

    A few bytes of a file can ask for many of memory (an empty dictionary is one byte of a pickle), so whoever makes
    objects from a file pays for each of them first.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._left = min(size, _MOST) + _SPARE

    def spend(self, size: int) -> None:
        """Pay for ``size`` bytes.

        Raises:
            UserError: There is no budget left.
        """
        self._left -= size
        if self._left < 0:
            raise UserError(f"{self._path} describes far more than a file of weights does; do not trust this file")


class Stream:
    """The bytes of an open file from ``start`` on, in order; whatever reaches beyond ``end`` is refused."""

    def __init__(self, path: Path, file: BufferedReader, start: int, end: int) -> None:
        file.seek(start)
        self._path, self._file, self._end = path, file, end
        self.position = start  #: offset in the file of the next byte

    def _advance(self, size: int) -> None:
        if not 0 <= size <= self._end - self.position:
            raise UserError(f"{self._path} ends early; {FETCH_AGAIN}")
        self.position += size

    def read(self, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        self._advance(size)
        data = self._file.read(size)
        require(len(data) == size, f"{self._path} ends early; {FETCH_AGAIN}")
        return data

    def skip(self, size: int) -> None:
        """Pass over the next ``size`` bytes without reading them."""
        self._advance(size)
        self._file.seek(self.position)

    def line(self, longest: int = 1024) -> str:
        """Return the text up to the next line break, which is passed over."""
        data = self._file.readline(min(longest, self._end - self.position))
        require(data.endswith(b"\n"), f"{self._path} has a damaged table of contents; {FETCH_AGAIN}")
        self.position += len(data)
        return data[:-1].decode("utf-8", "backslashreplace")


def opened(path: Path) -> BufferedReader:
    """Open ``path`` for reading.

    Raises:
        UserError: It is missing, a folder or not readable.
    """
    try:
        require(not path.is_dir(), f"{path} is a folder; give a file of weights in it")
        require(path.is_file(), f"{path} is not a file; check the path")
        return open(path, "rb")  # whoever calls closes it
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check who may read it") from error


def read_bytes(path: Path, offset: int, size: int, crc: int | None = None) -> Tensor:
    """Return ``size`` bytes of ``path`` as uint8 ``[size]``, read into memory that nothing else holds.

    Memory mapping is avoided on purpose: mapped pages would stay in memory beside the weights made from them.

    Args:
        path: The file.
        offset: Where the bytes begin.
        size: How many; at most the size of the file.
        crc: Their CRC-32, where the file has one.

    Raises:
        UserError: The file ends early, cannot be read, or the checksum differs.
    """
    data = torch.empty(size, dtype=torch.uint8, device="cpu")
    view = data.numpy().data
    done = check = 0
    with opened(path) as file:
        try:
            file.seek(offset)
            while done < size and (count := file.readinto(view[done : done + _BLOCK])):
                check = zlib.crc32(view[done : done + count], check) if crc is not None else 0
                done += count
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); check the disk") from error
    require(done == size, f"{path} ends early; {FETCH_AGAIN}")
    require(crc is None or check == crc, f"{path} is damaged (its checksum at byte {offset} differs); {FETCH_AGAIN}")
    return data


def as_tensor(data: Tensor, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...] | None) -> Tensor:
    """Return uint8 ``data`` seen as contiguous values of ``dtype`` in ``shape``; no copy where the strides allow it."""
    values = data.ne(0) if dtype is torch.bool else data.view(dtype)  # a bool other than 0 and 1 would be undefined
    if stride is None or (view := values.as_strided(shape, stride)).is_contiguous():
        return values.view(shape)
    return view.contiguous()

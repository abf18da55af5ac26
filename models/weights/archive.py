"""The directory of a zip archive, for PyTorch's archives: entries lie in the file as they are, at known offsets.

Python's ``zipfile`` is not used: it makes an object of several hundred bytes for each of the 46 bytes of a directory
record, which a hostile file can repeat at will, and hides where an entry lies. Source: PKWARE's APPNOTE 6.3.10.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from steerdiff.errors import UserError, require

from .raw import FETCH_AGAIN, Budget, opened, shown

__all__ = ["Archive", "Record", "read_archive"]

_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_LOCAL, _CENTRAL = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L")
_STORED, _DEFLATED, _ENCRYPTED = 0, 8, 1
_ZIP64, _FULL = 1, 0xFFFFFFFF
_RECORD = 600  # bytes of memory for one, with its place in the dictionary
_LONGEST_TEXT = 2**20


@dataclass(frozen=True, slots=True)
class Record:
    """One entry as the archive's directory describes it."""

    name: str  #: its path in the archive
    method: int  #: 0 is stored as it is
    crc: int  #: CRC-32 of its bytes; 0 where PyTorch was told not to compute it
    packed: int  #: bytes in the file
    size: int  #: bytes when unpacked
    header: int  #: where its local header begins


@dataclass(frozen=True, eq=False)
class Archive:
    """A zip file's entries by name; their bytes are read by whoever wants them."""

    path: Path  #: the file
    records: dict[str, Record]  #: in the order of the directory

    def place(self, record: Record) -> int:
        """Return where in the file the bytes of a stored entry begin.

        Raises:
            UserError: The entry is compressed, or its own header disagrees with the directory.
        """
        where = f"its entry {shown(record.name)}"
        require(
            record.method == _STORED and record.packed == record.size,
            f"{self.path} is compressed ({where}), which torch.save never does; save it again with torch.save",
        )
        with opened(self.path) as file:
            return self._data_offset(file, record)

    def text(self, name: str) -> str:
        """Return a small text, such as the code of a TorchScript class; "" where there is none. It may be compressed.

        Raises:
            UserError: The text is damaged.
        """
        record = self.records.get(name)
        if record is None or max(record.size, record.packed) > _LONGEST_TEXT:
            return ""
        with opened(self.path) as file:
            file.seek(self._data_offset(file, record))
            data = file.read(record.packed)
        if record.method == _DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, record.size + 1)
            except zlib.error as error:
                raise UserError(f"{self.path} is damaged ({shown(name)}: {error}); {FETCH_AGAIN}") from error
        whole = len(data) == record.size and record.crc in (0, zlib.crc32(data))
        require(whole, f"{self.path} is damaged ({shown(name)}); {FETCH_AGAIN}")
        return data.decode("utf-8", "backslashreplace")

    def _data_offset(self, file: BufferedReader, record: Record) -> int:
        file.seek(record.header)
        head = file.read(_LOCAL.size)
        damaged = f"{self.path} is damaged (its entry {shown(record.name)} is not where it should be); {FETCH_AGAIN}"
        require(len(head) == _LOCAL.size, damaged)
        signature, *_, name_size, extra_size = _LOCAL.unpack(head)
        name = file.read(name_size).decode("utf-8", "backslashreplace")
        require(signature == b"PK\x03\x04" and name == record.name, damaged)
        return record.header + _LOCAL.size + int(name_size) + int(extra_size)


def read_archive(path: Path, budget: Budget) -> Archive:
    """Read the directory of the zip file ``path``; archives over 4 GB too.

    Raises:
        UserError: The archive is cut short or damaged, has an encrypted entry or two of one name, or its entries claim
            more bytes than it has.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        start, length = _directory(path, file, size)
        budget.spend(length)
        file.seek(start)
        directory = file.read(length)
    records: dict[str, Record] = {}
    try:
        for record in _records(directory):
            budget.spend(_RECORD + 4 * len(record.name))
            require(record.name not in records, f"{path} has two entries {shown(record.name)}; {FETCH_AGAIN}")
            records[record.name] = record
    except struct.error as error:
        raise UserError(f"{path} has a damaged directory; {FETCH_AGAIN}") from error
    claimed = sum(record.packed + _LOCAL.size for record in records.values())
    inside = all(record.header + _LOCAL.size + record.packed <= start for record in records.values())
    require(
        inside and claimed <= start, f"{path} claims more bytes than it has (damaged, or a zip bomb); {FETCH_AGAIN}"
    )
    return Archive(path, records)


def _directory(path: Path, file: BufferedReader, size: int) -> tuple[int, int]:
    """Return where the central directory begins and how many bytes it has."""
    file.seek(max(0, size - 22 - 0xFFFF))
    tail_start = file.tell()
    tail = file.read()
    end = tail.rfind(_END)
    require(end >= 0 and len(tail) - end >= 22, f"{path} is a zip archive without its end, cut short; {FETCH_AGAIN}")
    length, start = struct.unpack_from("<2L", tail, end + 12)
    if end >= 20 and tail[end - 20 : end - 16] == _LOCATOR:
        (end64,) = struct.unpack_from("<Q", tail, end - 12)
        local = end64 - tail_start
        whole = 0 <= local <= len(tail) - 56 and tail[local : local + 4] == _END64
        require(whole, f"{path} has a damaged directory; {FETCH_AGAIN}")
        length, start = struct.unpack_from("<2Q", tail, local + 40)
    require(start + length <= size, f"{path} has a damaged directory; {FETCH_AGAIN}")
    return int(start), int(length)


def _records(directory: bytes) -> Iterator[Record]:
    position = 0
    while position < len(directory):
        signature, _, _, flags, method, _, _, crc, packed, size, *more = _CENTRAL.unpack_from(directory, position)
        name_size, extra_size, comment_size, _, _, _, header = more
        position += _CENTRAL.size
        name = directory[position : position + name_size]
        extra = directory[position + name_size : position + name_size + extra_size]
        position += name_size + extra_size + comment_size
        if signature != b"PK\x01\x02" or position > len(directory) or flags & _ENCRYPTED:
            raise struct.error
        size, packed, header = _wide(extra, size, packed, header)
        yield Record(name.decode("utf-8", "backslashreplace"), method, crc, packed, size, header)


def _wide(extra: bytes, *narrow: int) -> tuple[int, ...]:
    """Replace 32-bit fields that are full by the 64-bit ones of the zip64 extra field, which has them in this order."""
    position, values = 0, list(narrow)
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        position += 4
        if kind == _ZIP64:
            at = position
            for index, value in enumerate(narrow):
                if value == _FULL:
                    (values[index],) = struct.unpack_from("<Q", extra, at)
                    at += 8
        position += length
    return tuple(values)

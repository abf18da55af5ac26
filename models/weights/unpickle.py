"""A pickle read as data: a stack machine of its own that makes only inert descriptions and cannot call anything.

Python's unpickler is not used: even with ``find_class`` overridden it hashes keys of the file, calls what it finds, and
lets a memo index of 0xFFFFFFFF allocate gigabytes. Source: the opcodes of Python's ``pickletools`` module.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steerdiff.errors import UserError

from .inert import Opaque, Refused, Table, call, named
from .raw import FETCH_AGAIN, Budget, Stream

__all__ = ["unpickle"]

_LONGEST_TEXT = 2**16  # longer texts are passed over: no name is as long
_SLOT, _MEMO, _PAIR, _OBJECT = 16, 140, 72, 160  # bytes of memory, rounded up


def unpickle(
    stream: Stream, path: Path, budget: Budget, persistent: Callable[[object], object] | None = None
) -> object:
    """Return the object of the pickle that begins at ``stream.position``, and leave the stream behind it.

    Args:
        stream: Where the pickle lies.
        path: The file, for messages.
        budget: Pays for every object made.
        persistent: What a persistent id (torch's way to name a storage) stands for; None where there are none.

    Returns:
        None, bool, int, float, str, list, tuple, or one of the classes of `inert`.

    Raises:
        UserError: The pickle is cut short, damaged, holds code, or asks for too much.
    """
    machine = _Machine(stream, budget, persistent)
    try:
        return machine.run()
    except UserError:
        raise
    except Refused as error:
        raise UserError(f"{path} {error}") from error
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
        raise UserError(f"{path} has a damaged table of contents (byte {stream.position}); {FETCH_AGAIN}") from error


class _Machine:
    """The stack, the marks and the memo of one pickle."""

    def __init__(self, stream: Stream, budget: Budget, persistent: Callable[[object], object] | None) -> None:
        self._stream, self._budget, self._persistent = stream, budget, persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}

    def run(self) -> object:
        read = self._stream.read
        while (code := read(1)) != b".":
            step = _STEPS.get(code)
            if step is None:
                raise Refused(f"has an instruction ({code!r}) that torch.save does not write; {FETCH_AGAIN}")
            step(self)
        return self._stack.pop()

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._stream.read(struct.calcsize(form)))[0])

    def _push(self, value: object, cost: int = 0) -> None:
        self._budget.spend(_SLOT + cost)
        self._stack.append(value)

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    # values

    def _push_struct(self, form: str) -> None:
        (value,) = struct.unpack(form, self._stream.read(struct.calcsize(form)))
        self._push(value, 32)

    def _push_long(self, form: str) -> None:
        data = self._stream.read(self._number(form))
        self._push(int.from_bytes(data, "little", signed=True), 32 + len(data))

    def _push_text_int(self) -> None:
        text = self._stream.line(32)
        self._push({"00": False, "01": True}.get(text) if text in ("00", "01") else int(text), 32)

    def _push_text(self, form: str) -> None:
        size = self._number(form)
        if size > _LONGEST_TEXT:
            self._stream.skip(size)
            self._push(Opaque(), _OBJECT)
            return
        text = self._stream.read(size).decode("utf-8", "backslashreplace")
        self._push(text, sys.getsizeof(text))

    def _push_bytes(self, form: str) -> None:
        self._stream.skip(self._number(form))
        self._push(Opaque(), _OBJECT)

    # the stack and the memo

    def _mark(self) -> None:
        self._budget.spend(_SLOT + 32)
        self._marks.append(len(self._stack))

    def _pop(self) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()

    def _put(self, form: str) -> None:
        self._remember(self._number(form))

    def _remember(self, index: int) -> None:
        self._budget.spend(_MEMO)
        self._memo[index] = self._stack[-1]

    def _get(self, form: str) -> None:
        self._push(self._memo[self._number(form)])

    # containers

    def _tuple(self, items: list[Any]) -> None:
        self._push(tuple(items), 56 + 8 * len(items))

    def _tuple_of(self, count: int) -> None:
        items = self._stack[-count:]
        if len(items) != count:
            raise IndexError
        del self._stack[-count:]
        self._tuple(items)

    def _list(self, items: list[Any]) -> None:
        self._push(items, 72 + 8 * len(items))

    def _table(self, items: list[Any]) -> None:
        self._push(Table([]), _OBJECT)
        self._fill(items)

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            self._budget.spend(_SLOT * len(items))
            target.extend(items)

    def _fill(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Table):
            self._budget.spend(_PAIR * (len(items) // 2))
            target.pairs.extend(zip(items[::2], items[1::2], strict=True))

    def _last(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _frozenset(self) -> None:
        self._since_mark()
        self._push(Opaque(), _OBJECT)

    # names and calls

    def _global(self, module: object, name: object) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError
        self._push(named(module, name), _OBJECT + 2 * 64 + len(module) + len(name))

    def _call(self, callee: object, args: object) -> None:
        pairs = args[0] if isinstance(args, tuple) and args and isinstance(args[0], list) else []
        self._push(call(callee, args), _OBJECT + _PAIR * len(pairs))

    def _reduce(self) -> None:
        self._call(*self._last(2))

    def _reduce_with_keywords(self) -> None:
        callee, args, _ = self._last(3)
        self._call(callee, args)

    def _construct(self) -> None:
        callee, *args = self._since_mark()
        self._call(callee, tuple(args))

    def _construct_named(self) -> None:
        kind = named(self._stream.line(), self._stream.line())
        self._call(kind, tuple(self._since_mark()))

    def _build(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, Opaque):
            target.state = state

    def _by_id(self) -> None:
        if self._persistent is None:
            raise Refused(f"names a storage where there can be none; {FETCH_AGAIN}")
        self._push(self._persistent(self._stack.pop()), 2 * _OBJECT)


_STEPS: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": lambda m: m._stream.skip(1),  # PROTO
    b"\x95": lambda m: m._stream.skip(8),  # FRAME
    b"N": lambda m: m._push(None),
    b"\x88": lambda m: m._push(True),
    b"\x89": lambda m: m._push(False),
    b"I": _Machine._push_text_int,  # Python 2 wrote large integers so
    b"K": lambda m: m._push_struct("<B"),
    b"M": lambda m: m._push_struct("<H"),
    b"J": lambda m: m._push_struct("<i"),
    b"G": lambda m: m._push_struct(">d"),
    b"\x8a": lambda m: m._push_long("<B"),
    b"\x8b": lambda m: m._push_long("<i"),
    b"U": lambda m: m._push_text("<B"),
    b"T": lambda m: m._push_text("<i"),
    b"X": lambda m: m._push_text("<I"),
    b"\x8c": lambda m: m._push_text("<B"),
    b"\x8d": lambda m: m._push_text("<Q"),
    b"C": lambda m: m._push_bytes("<B"),
    b"B": lambda m: m._push_bytes("<I"),
    b"\x8e": lambda m: m._push_bytes("<Q"),
    b"\x96": lambda m: m._push_bytes("<Q"),
    b"(": _Machine._mark,
    b"0": _Machine._pop,
    b"1": _Machine._since_mark,
    b"2": lambda m: m._push(m._stack[-1]),
    b"q": lambda m: m._put("<B"),
    b"r": lambda m: m._put("<I"),
    b"\x94": lambda m: m._remember(len(m._memo)),
    b"h": lambda m: m._get("<B"),
    b"j": lambda m: m._get("<I"),
    b")": lambda m: m._push(()),
    b"]": lambda m: m._list([]),
    b"}": lambda m: m._table([]),
    b"\x8f": lambda m: m._push(Opaque(), _OBJECT),  # EMPTY_SET
    b"t": lambda m: m._tuple(m._since_mark()),
    b"\x85": lambda m: m._tuple_of(1),
    b"\x86": lambda m: m._tuple_of(2),
    b"\x87": lambda m: m._tuple_of(3),
    b"l": lambda m: m._list(m._since_mark()),
    b"d": lambda m: m._table(m._since_mark()),
    b"a": lambda m: m._extend([m._stack.pop()]),
    b"e": lambda m: m._extend(m._since_mark()),
    b"s": lambda m: m._fill(m._last(2)),
    b"u": lambda m: m._fill(m._since_mark()),
    b"\x90": _Machine._since_mark,  # ADDITEMS to a set
    b"\x91": _Machine._frozenset,
    b"c": lambda m: m._global(m._stream.line(), m._stream.line()),
    b"\x93": lambda m: m._global(*m._last(2)),
    b"R": _Machine._reduce,
    b"\x81": _Machine._reduce,  # NEWOBJ
    b"\x92": _Machine._reduce_with_keywords,
    b"i": _Machine._construct_named,
    b"o": _Machine._construct,
    b"b": _Machine._build,
    b"Q": _Machine._by_id,
}

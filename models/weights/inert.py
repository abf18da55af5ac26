"""What the objects of a pickle become here: descriptions without behaviour. No global of a file is ever imported."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .raw import shown

__all__ = ["Global", "LazyTensor", "Opaque", "Refused", "Storage", "Table", "call", "named", "storage_dtype"]


class Refused(Exception):
    """What is wrong with a pickle; who reads the file puts its path before it."""


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """The name of a class or function of some module."""

    module: str  #: dotted name of the module
    name: str  #: name in it

    @property
    def path(self) -> tuple[str, str]:
        """Module and name, for tables."""
        return self.module, self.name


@dataclass(slots=True, eq=False)
class Opaque:
    """An object of a class that is not known here; it takes every argument, item and attribute, and does nothing."""

    kind: Global | None = None  #: its class, where the file names it directly
    state: object = None  #: its attributes, as stored


@dataclass(slots=True, eq=False)
class Table:
    """A dictionary as pairs, so that no key of a file is hashed or compared."""

    pairs: list[tuple[object, object]]  #: in the order of the file


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A flat block of numbers in the file."""

    key: str  #: its name in the file
    dtype: torch.dtype  #: of its numbers
    numel: int  #: how many it has
    start: int = 0  #: the number it begins with, where it is a part of the block ``key``


@dataclass(frozen=True, slots=True, eq=False)
class LazyTensor:
    """A strided view of a storage, as the file claims it: nothing has been checked yet."""

    storage: Storage  #: where its numbers lie
    dtype: torch.dtype  #: what they are
    offset: Any  #: number of the storage that it begins with
    shape: Any  #: sizes
    stride: Any  #: steps in numbers
    plain: bool = True  #: False for a conjugated or negated view, which are not read


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}

#: Names that reach the system or other code: no file of weights has a use for them.
_HARMFUL = re.compile(
    r"(os|posix|nt|sys|subprocess|commands|pty|importlib|imp|pkgutil|runpy|shutil|socket|_?ctypes|_?pickle|cPickle|dill"
    r"|cloudpickle|marshal|code|codeop|webbrowser|pip|zipimport|timeit|pdb|bdb|cProfile|profile|multiprocessing|urllib2?"
    r"|http|httplib|ftplib|smtplib|telnetlib|requests|linecache|atexit)\..*"
    r"|(builtins|__builtin__|__builtins__|io|_io)\."
    r"(eval|exec|execfile|compile|__import__|open|open_code|FileIO|file|input|raw_input|breakpoint|globals|locals|vars"
    r"|getattr|setattr|delattr|reload|exit|quit|apply)(\..*)?",
    re.DOTALL,
)


def named(module: str, name: str) -> Global:
    """Return the description of a global; nothing is imported.

    Raises:
        Refused: No file of weights needs that global, and it can do harm.
    """
    path = f"{module}.{name}"
    if _HARMFUL.fullmatch(path):
        raise Refused(f"holds code ({shown(path)}); it was not run; do not trust this file")
    return Global(module, name)


def storage_dtype(kind: object) -> torch.dtype | None:
    """Return the dtype of a storage class, None where it is not known (quantised numbers)."""
    known = isinstance(kind, Global) and kind.module in ("torch", "torch.cuda", "torch.storage")
    return _STORAGES.get(kind.name) if known and isinstance(kind, Global) else None


def call(callee: object, args: object) -> object:
    """Return what a call in a pickle stands for: a table, a lazy tensor, or an `Opaque`."""
    kind = callee if isinstance(callee, Global) else None
    make = _CALLS.get(kind.path) if kind else None
    return make(*args) if make and isinstance(args, tuple) else Opaque(kind)


def _ordered(*args: Any) -> Table:
    """OrderedDict, which Python 2 gave a list of [key, value]."""
    pairs = args[0] if args and isinstance(args[0], list) else []
    return Table([(pair[0], pair[1]) for pair in pairs])


def _tensor(storage: object, offset: object, shape: object, stride: object, *rest: object) -> object:
    """Describe what torch._utils._rebuild_tensor and _v2 make; the rest is requires_grad, hooks and metadata."""
    if not isinstance(storage, Storage):
        return Opaque()
    return LazyTensor(storage, storage.dtype, offset, shape, stride, not _marked(rest[2:]))


def _typed_tensor(storage: object, *args: object) -> object:
    """Describe what torch._utils._rebuild_tensor_v3 makes: the storage is untyped, the dtype an argument."""
    offset, shape, stride, _, _, dtype, *metadata = args
    known = getattr(torch, dtype.name, None) if isinstance(dtype, Global) and dtype.module == "torch" else None
    if not isinstance(storage, Storage) or not isinstance(known, torch.dtype):
        return Opaque()
    return LazyTensor(storage, known, offset, shape, stride, not _marked(metadata))


def _marked(metadata: Any) -> bool:
    """Whether a tensor has its conjugate or negative bit set."""
    return any(isinstance(table, Table) and any(value is True for _, value in table.pairs) for table in metadata)


def _first(*args: object) -> object:
    """Stand for a call that wraps its first argument."""
    return args[0]


def _from_type(function: object, _: object, args: object, *state: object) -> object:
    """Stand for the rebuilding of a tensor subclass: the plain tensor."""
    return call(function, args) if isinstance(function, Global) and function.name.startswith("_rebuild_t") else Opaque()


_CALLS: dict[tuple[str, str], Callable[..., object]] = {
    ("collections", "OrderedDict"): _ordered,
    ("collections", "defaultdict"): lambda *factory: Table([]),
    ("torch", "Size"): _first,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type"): _from_type,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch.jit._pickle", "build_intlist"): _first,
    ("torch.jit._pickle", "build_doublelist"): _first,
    ("torch.jit._pickle", "build_boollist"): _first,
    ("torch.jit._pickle", "build_tensorlist"): _first,
    ("torch.jit._pickle", "restore_type_tag"): _first,
}

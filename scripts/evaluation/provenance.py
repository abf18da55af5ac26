"""What a cell's bits depend on besides its identity: code, weights, the cases as drawn, device and versions.

Not in it: the number of threads and the instructions of the processor, which may round sums otherwise. Results of
machines that differ in these alone are taken for the same; what a machine had is stored beside each result.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerdiff._version import __version__
from steerdiff.errors import UserError
from steerdiff.guidance.loading import SHIPPED, locate
from steerdiff.guidance.noisy_classifier import hash_of
from steerdiff.models.checkpoint import file_hash
from steerdiff.models.published.assembly import open_published, weight_files
from steerdiff.scripts.runtime import ModelFlags
from steerdiff.train.benchmark import draw_cases

from .cells import Cell
from .dependencies import Root, hashes

__all__ = ["changes", "code_roots", "digest", "file_hashes", "files_of", "machine", "provenance", "weights_hash"]

#: What every cell runs.
_ROOTS: tuple[Root, ...] = (
    ("steerdiff.scripts.evaluation.cells", "compute"),
    ("steerdiff.guidance.loading", "load_model"),
)
_HASHED_BY_VALUE = ("steerdiff.train.benchmark",)  # what it draws is hashed, so its code need not be
_ONLY_SCORED = ("task", "split", "truth", "changed", "target")  # fields of a case that no method is given
_DIGITS = 16
_MOST_NAMES = 3


def machine(flags: ModelFlags) -> dict[str, Any]:
    """Return the part of a provenance that all cells of a run share.

    Raises:
        UserError: There are no such weights or no such device.
    """
    device = flags.place()
    config = flags.weights_config
    named = config is not None and len(config) < 1000 and Path(config).is_file()
    return {
        "steerdiff": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else f"cpu ({platform.machine()})",
        "precision": flags.precision,
        "weights": weights_hash(flags.weights),
        "weights_config": file_hash(str(config)) if named else config,
        "ema": flags.ema,
        "size": None if flags.size is None else list(flags.size),
        "tile": flags.tile,
    }


def provenance(cell: Cell, shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that determines a cell's bits besides its identity, JSON-able.

    The code is that which the cell's method, its settings (a solver among them), the loader of models and the
    computation of cells reach (see `dependencies`); the cases are taken as they are drawn; of the files that the
    settings name (see `files_of`) the hashes are taken.

    Args:
        cell: The cell.
        shared: What `machine` gives.
    """
    code = _code(frozenset(code_roots(cell.settings)))
    named = file_hashes(cell.settings)
    files = {"files": named} if named else {}  # none leaves the provenances of most methods as they always were
    return {**shared, "cases": _cases(cell.task, cell.cases, cell.case_seed), "code": dict(code), **files}


def files_of(settings: Any) -> dict[str, Path]:
    """Return the files and folders that settings name, by dotted path of the field, such as the weights of a CLIP.

    A value names one if it is a ``Path``, the name of shipped weights, or a text with a folder or a suffix in it that
    is the path of something there.
    """
    return dict(_named_files(settings, ""))


def code_roots(settings: Any) -> list[Root]:
    """Return the definitions from which all code is reached that a cell with these settings runs."""
    own = {(kind.__module__, kind.__qualname__.split(".")[0]) for kind in _kinds(settings)}
    return [*_ROOTS, *sorted(own)]


def digest(facts: Mapping[str, Any]) -> str:
    """Return the hash of a provenance, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return what differs between two provenances: for each field, how to say it."""
    found = {}
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if name == "code":
            old, new = old or {}, new or {}
            modules = [module for module in sorted({*old, *new}) if old.get(module) != new.get(module)]
            found[name] = f"code ({_some(module.removeprefix('steerdiff.') for module in modules)})"
        elif name == "files":
            old, new = old or {}, new or {}
            fields = [field for field in sorted({*old, *new}) if old.get(field) != new.get(field)]
            found[name] = f"content of the files of {_some(fields)}"
        elif name in ("weights", "cases"):
            found[name] = name
        else:
            found[name] = f"{name} ({old}, now {new})"
    return found


def weights_hash(source: str) -> str | None:
    """Return what ``Model.weights_hash`` will be, without building the network.

    Raises:
        UserError: There are no such weights, or the file is damaged.
    """
    return hash_of(weight_files(open_published(locate(source)).path))


@cache
def _code(roots: frozenset[Root]) -> dict[str, str]:
    return hashes(sorted(roots), without=_HASHED_BY_VALUE)


@cache
def _cases(task: str, n: int, seed: int) -> str:
    """Hash what methods are given of the cases: all fields but those that only scores read."""
    sha = hashlib.sha256()
    for case in draw_cases(task, n, seed):
        given = {f.name: getattr(case, f.name) for f in dataclasses.fields(case) if f.name not in _ONLY_SCORED}
        for part in _parts(given):
            sha.update(part)
    return sha.hexdigest()[:_DIGITS]


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().numpy().tobytes()
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield f"{name}:".encode()
            yield from _parts(item)
    elif isinstance(value, (list, tuple)):
        yield f"{len(value)} of".encode()
        for item in value:
            yield from _parts(item)
    else:
        yield f"{value!r};".encode()


def _kinds(value: Any) -> Iterator[type[Any]]:
    """Yield the classes of settings and of all that is given in their fields."""
    if dataclasses.is_dataclass(value):
        yield type(value)
        for field in dataclasses.fields(value):
            yield from _kinds(getattr(value, field.name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _kinds(item)
    elif isinstance(value, Mapping):
        yield from _kinds(list(value.values()))


def file_hashes(settings: Any) -> dict[str, str | None]:
    """Return the hashes of what `files_of` finds; None of what is not there, for the cell itself fails and says so."""
    return {name: _content_hash(path) for name, path in files_of(settings).items()}


def _named_files(value: Any, where: str) -> Iterator[tuple[str, Path]]:
    """Yield field and path of each file that a value of settings, or a part of it, names."""
    if dataclasses.is_dataclass(value):
        parts = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        parts = [(str(name), item) for name, item in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(str(number), item) for number, item in enumerate(value)]
    else:
        is_text = isinstance(value, str)
        path_like = is_text and bool(Path(value).suffix or len(Path(value).parts) > 1)
        if isinstance(value, Path) or (is_text and value in SHIPPED) or (path_like and Path(value).exists()):
            yield where, Path(value)
        return
    for name, item in parts:
        yield from _named_files(item, f"{where}.{name}".lstrip("."))


def _content_hash(source: Path) -> str | None:
    """Return the hash of shipped weights, of a file or of all files in a folder; None if there is nothing."""
    try:
        path = locate(source)
    except UserError:
        return None
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    facts = [(file.relative_to(path).as_posix(), _hash_as_it_is(file)) for file in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:_DIGITS]


def _hash_as_it_is(file: Path) -> str:
    stat = file.stat()
    return _file_hash(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _file_hash(file: Path, changed: int, size: int) -> str:
    """Return the hash of a file, computed once while neither its time nor its size changes."""
    _ = changed, size
    return file_hash(str(file))


def _some(names: Iterable[str]) -> str:
    words = list(names)
    more = len(words) - _MOST_NAMES
    return ", ".join(words[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")

"""Computes and stores cells in this process, one after the other; what all ways of running cells end in."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from tqdm import tqdm

from steerdiff.errors import UserError, require
from steerdiff.guidance import Model
from steerdiff.scripts.runtime import ModelFlags, environment

from .cells import Cell, compute
from .provenance import changes, file_hashes, files_of, machine
from .store import Store

__all__ = ["Missing", "bar_of", "finish", "loaded", "model_flags", "one_line", "run_elsewhere", "run_here", "title"]

_LONGEST = 300


@dataclass(frozen=True, kw_only=True, eq=False)
class Missing:
    """A cell that is not stored yet."""

    cell: Cell
    provenance: Mapping[str, Any]  #: what it is to be stored with


def run_here(missing: Sequence[Missing], flags: ModelFlags, store: Store, progress: str | None) -> dict[str, str]:
    """Compute and store cells one after the other.

    Args:
        missing: What to compute.
        flags: The model.
        store: Where each goes as soon as it is done.
        progress: Label of a bar over the cells; None is silent.

    Returns:
        Why cells failed, in one line, by the cell's key.

    Raises:
        UserError: The model cannot be loaded, or results cannot be stored.
    """
    errors: dict[str, str] = {}
    if not missing:
        return errors
    model = loaded(model_flags(flags), missing[0].provenance["weights"])
    with bar_of(len(missing), progress) as bar:
        for item in missing:
            bar.set_postfix_str(title(item.cell))
            error = finish(item, model, store)
            if error is not None:
                errors[item.cell.key] = error
            bar.update()
    return errors


def run_elsewhere(missing: Sequence[Missing], flags: ModelFlags, store: Store, progress: str | None) -> dict[str, str]:
    """As `run_here`, in a process that may be on another machine than the one that planned the cells.

    Its cells fail if device, weights or versions are others here, for the results would be stored as what they are not.
    """
    if not missing:
        return {}
    here = machine(flags)
    planned = {name: missing[0].provenance.get(name) for name in here}
    other = changes(planned, here)
    if other:
        line = f"{platform.node()} has another {', '.join(other.values())} than the machine that planned the cells"
        return {item.cell.key: f"{line}; start the command on one that is alike" for item in missing}
    return run_here(missing, flags, store, progress)


def finish(item: Missing, model: Model, store: Store) -> str | None:
    """Compute and store one cell; return in one line why it failed, whatever it was, or None.

    Raises:
        UserError: The result cannot be stored: then the next could not be either.
    """
    try:
        result = compute(item.cell, model)
    except Exception as error:
        return one_line(error)
    if file_hashes(item.cell.settings) != item.provenance.get("files", {}):
        return (
            f"{', '.join(files_of(item.cell.settings))}: a file was replaced while the command was running; start again"
        )
    store.write(item.cell, item.provenance, result, environment(str(model.device)))
    return None


@lru_cache(maxsize=1)
def loaded(flags: ModelFlags, weights: str | None) -> Model:
    """Load the model, once a process.

    Raises:
        UserError: It cannot be loaded, or its hash is not ``weights``: the file was replaced meanwhile.
    """
    model = flags.load()
    require(model.weights_hash == weights, f"the weights {flags.weights!r} were replaced while the command was running")
    return model


def model_flags(flags: ModelFlags, index: int | None = None) -> ModelFlags:
    """Return the flags of the model alone; of several processes on a machine with GPUs, number ``index`` gets its own.

    Args:
        flags: Flags of a command.
        index: Number of this process on its machine; None is the only one.
    """
    values = {field.name: getattr(flags, field.name) for field in dataclasses.fields(ModelFlags)}
    alone = ModelFlags(**values)
    cards = torch.cuda.device_count()
    if index is None or flags.device != "auto" or cards < 2:
        return alone
    return dataclasses.replace(alone, device=f"cuda:{index % cards}")


def bar_of(total: int, label: str | None) -> Any:
    """Return a progress bar over cells; silent without a label."""
    return tqdm(total=total, desc=label, disable=label is None, unit="cell")


def title(cell: Cell) -> str:
    """Return how a cell is called in a line."""
    return f"{cell.method} on {cell.task}"


def one_line(error: BaseException) -> str:
    """Return type and message of an error in one line; of a ``UserError`` the message says all."""
    text = " ".join(str(error).split())
    text = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."

"""Cells under ``torchrun``: the first process plans, all work, and the others end when the first does."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from steerdiff.scripts.runtime import ModelFlags
from steerdiff.train.distributed import World, join_world

from .store import Store
from .work import Missing, model_flags, run_elsewhere

__all__ = ["join_ranks", "run_ranks"]

_PATIENCE = timedelta(days=30)  # a rank waits for the slowest; torchrun itself notices one that died


def join_ranks(flags: ModelFlags, store: Store) -> World:
    """Join the processes of ``torchrun``, by gloo whatever the device; alone without it. Only the first returns."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=_PATIENCE)
        if dist.get_rank() == 0:
            atexit.register(_dismiss)
    world = join_world(torch.device("cpu"))
    if not world.leads:
        _serve(world, flags, store)
    return world


def run_ranks(missing: Sequence[Missing], flags: ModelFlags, store: Store, progress: str | None) -> dict[str, str]:
    """Compute and store cells in all processes, each every so many-th of them; called by the first alone.

    Returns:
        Why cells failed, in one line, by the cell's key.
    """
    world = World(dist.get_rank(), dist.get_world_size())
    try:
        dist.broadcast_object_list([list(missing)])
        parts: list[Any] = [None] * world.size
        dist.gather_object(_share(missing, world, flags, store, progress), parts)
    except BaseException:
        atexit.unregister(_dismiss)  # the others are at work and would not hear it; torchrun ends them
        raise
    return {key: error for part in parts for key, error in part.items()}


def _serve(world: World, flags: ModelFlags, store: Store) -> NoReturn:
    """Work for the first process until it dismisses this one."""
    while True:
        order: list[Any] = [None]
        dist.broadcast_object_list(order)
        if order[0] is None:
            world.leave()
            raise SystemExit(0)
        dist.gather_object(_share(order[0], world, flags, store, None))


def _share(
    missing: Sequence[Missing], world: World, flags: ModelFlags, store: Store, progress: str | None
) -> dict[str, str]:
    own = model_flags(flags, int(os.environ.get("LOCAL_RANK", "0")))
    return run_elsewhere(missing[world.rank :: world.size], own, store, progress)


def _dismiss() -> None:
    """Send the other processes home at the end of the first, and end the group: its threads must not outlive Python."""
    with contextlib.suppress(RuntimeError):  # they are gone already: after Ctrl-C, or having heard half of this
        dist.broadcast_object_list([None])
    dist.destroy_process_group()

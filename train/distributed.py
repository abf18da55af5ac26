"""Data parallel training under ``torchrun``: every process works on its rows of the same global batch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from steerdiff.errors import require

__all__ = ["World", "join_world"]


@dataclass(frozen=True)
class World:
    """Which of the processes this one is."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def rows(self, step: int, batch_size: int) -> range:
        """Return this process's sample numbers of optimiser step ``step``.

        Raises:
            UserError: The batch cannot be shared evenly.
        """
        require(
            batch_size % self.size == 0,
            f"batch_size {batch_size} cannot be shared by {self.size} processes; choose a multiple",
        )
        share = batch_size // self.size
        first = step * batch_size + self.rank * share
        return range(first, first + share)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its mean over the processes (one collective call for all of them)."""
        if self.size == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat)
        flat /= self.size
        pieces = torch.split(flat, [g.numel() for g in grads])
        torch._foreach_copy_(grads, [piece.view(g.shape) for piece, g in zip(pieces, grads, strict=True)])

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of ``values`` over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """End the process group, if there is one."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join_world(device: torch.device) -> World:
    """Join the processes that ``torchrun`` started (nccl for CUDA, gloo else); alone without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(dist.get_rank(), dist.get_world_size())

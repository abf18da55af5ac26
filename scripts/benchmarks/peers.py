"""Attention as others compute it, written from its description, for our own UNet: as controls of a call."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from steerdiff.models.control import Control, Site
from steerdiff.models.kernels.reference import rows_of, with_rows

__all__ = ["StoreAllMaps", "WrittenOut", "written_out_maps"]


def written_out_maps(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Return whole maps [B, heads, N, L] as guided-diffusion forms them.

    Queries and keys both carry half of the scale, for half precision's sake; the softmax is in float32.
    """
    half = q.shape[-1] ** -0.25
    scores = (q * half) @ (k * half).transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    maps: Tensor = scores.float().softmax(dim=-1).to(q.dtype)
    return maps


@dataclass(frozen=True, kw_only=True)
class WrittenOut(Control):
    """Every attention by whole maps, as guided-diffusion's ``QKVAttention``."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, site: Site) -> Tensor:
        """Return [B, heads, N, d]."""
        return written_out_maps(q, k, mask) @ v


@dataclass(frozen=True, kw_only=True)
class StoreAllMaps(Control):
    """Prompt-to-Prompt as its official controller does it: every map is formed, stored and edited.

    Maps of grids of at most 32 x 32 cells are kept for each site of a step and added to those of the steps before; the
    edits are made to the maps of the prompts' branch, which comes first here. Source: Hertz et al. 2022, the official
    code's ``AttentionStore`` and ``AttentionControlEdit``.
    """

    prompts: int  #: rows of the prompts' branch; the rest is the empty prompt's
    stored: dict[Site, Tensor] = field(default_factory=dict)  #: sums over steps [prompts, heads, N, L]
    step: dict[Site, Tensor] = field(default_factory=dict)  #: maps of this step
    max_cells: int = 32**2  #: larger grids are not stored

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, site: Site) -> Tensor:
        """Return [B, heads, N, d]."""
        maps = written_out_maps(q, k, mask)
        if q.shape[2] <= self.max_cells:
            self.step[site] = maps[: self.prompts].clone()
        edit = None if self.edit is None else self.edit.at(site, q.shape[2])
        if edit is not None:
            source, target = rows_of(maps, edit.source), rows_of(maps, edit.target)
            maps = with_rows(maps, edit.target, source if site.kind == "self" else edit.edited(source, target))
        return maps @ v

    def between_steps(self) -> None:
        """Add this step's maps to the store and forget them."""
        for site, maps in self.step.items():
            self.stored[site] = maps if site not in self.stored else self.stored[site].add_(maps)
        self.step.clear()

    def local_blend(self, words: Tensor, cells: int) -> Tensor:
        """Return the stored maps of ``words`` [prompts, K, L]: means over heads and sites of ``cells``, [.., K, N]."""
        kept = [maps.mean(1) for site, maps in self.stored.items() if site.kind == "cross" and maps.shape[2] == cells]
        return words.to(kept[0]) @ torch.stack(kept).mean(0).transpose(-1, -2)

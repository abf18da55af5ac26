"""Local blend: an edit by attention changes a state only where the words of the edit are looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import require
from steerdiff.models.control import Taps
from steerdiff.samplers import Move, Noise, Step

__all__ = ["BLEND_STARTS", "BlendVariant", "LocalBlend"]

BlendVariant = Literal["p2p", "ldm", "null-text"]
#: Share of the moves that each published notebook makes before it blends.
BLEND_STARTS: dict[str, float] = {"p2p": 0.0, "ldm": 0.0, "null-text": 0.2}


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalBlend:
    """``x_target <- x_source + m (x_target - x_source)``, m where source or target look at the words of the edit.

    The maps of the words, summed over the calls so far, are averaged over layers and heads, widened by a 3 x 3 maximum,
    enlarged to the state, divided by their largest value and cut at ``threshold``; m is the union of the two rows'. A
    second set of words, if there is one, is taken out of m again, without the maximum.

    Source: ``LocalBlend`` of the official notebooks of Hertz et al. 2022 and Mokady et al. 2022, whose variants are
    "p2p" (Stable Diffusion), "ldm" (latent diffusion: its maximum is computed and not used, so maps are not widened)
    and "null-text" (the second set of words; it begins after a fifth of the moves, see ``BLEND_STARTS``).
    """

    taps: Taps  #: keeps one or two word maps for each row, on one grid: of the words, and of those that are taken out
    source: tuple[int, ...]  #: rows of the state that are kept
    target: tuple[int, ...]  #: rows that are blended, one for each source row
    threshold: float = 0.3  #: of the words' maps; below 0 all of the edit stays, from 1 on none
    subtract_threshold: float = 0.3  #: of the maps that are taken out
    variant: BlendVariant = "p2p"  #: whose notebook, see above
    start: int = 0  #: moves before the first that is blended
    resets_history: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the variant and the rows."""
        known = get_args(BlendVariant)
        require(self.variant in known, f"variant is {self.variant!r}; known are {', '.join(known)}")
        require(
            len(self.source) == len(self.target) > 0,
            f"local blend pairs {len(self.source)} source rows with {len(self.target)} target rows; give as many",
        )
        wants = self.taps.weights is not None and self.taps.weights.shape[1] in (1, 2) and self.taps.cells is not None
        require(wants, "local blend reads one or two word maps on one grid; give taps with weights and cells")
        require(self.start >= 0, f"start is {self.start}; give the number of moves before the first blend, 0 for none")

    def __call__(self, step: Step, move: Move, noise: Noise) -> Tensor:
        """Return the state [B, C, H, W] with its target rows blended."""
        if move.index < self.start:
            return step.x
        kept, edited = step.x[list(self.source)], step.x[list(self.target)]
        blended = torch.where(self.mask(step.x.shape[2], step.x.shape[3]), edited, kept)
        return step.x.index_copy(0, torch.tensor(self.target, device=step.x.device), blended)

    def mask(self, height: int, width: int) -> Tensor:
        """Return where each target row keeps its edit, [E, 1, height, width] of booleans, by the maps so far."""
        maps = self.taps.averaged()  # of means and sums the shares of the largest are the same
        words = functional.max_pool2d(maps[:, :1], 3, 1, 1) if self.variant != "ldm" else maps[:, :1]
        mask = self._union(words, self.threshold, height, width)
        if maps.shape[1] == 1:
            return mask
        return mask & ~self._union(maps[:, 1:], self.subtract_threshold, height, width)

    def _union(self, maps: Tensor, threshold: float, height: int, width: int) -> Tensor:
        large = functional.interpolate(maps, size=(height, width))
        peak = large.amax((2, 3), keepdim=True).clamp(min=torch.finfo(large.dtype).tiny)
        inside = large / peak > threshold
        return inside[list(self.source)] | inside[list(self.target)]

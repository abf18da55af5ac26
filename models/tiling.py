"""Run a network over a large image in overlapping tiles and blend what it gives, so that no seam shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from steerdiff.errors import require

__all__ = ["Tiling"]


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Squares over a plane, counted in cells: the grid both of a latent and, ``factor`` pixels to a cell, of its image.

    From one tile to the next the weight moves linearly over the middle half of their overlap; the outer quarters, where
    a tile feels its own border, are seen by the other tile only. The weights of a cell sum to one.
    """

    tile: int  #: cells of a tile per axis
    overlap: int  #: cells that neighbours share; at most half a tile

    def __post_init__(self) -> None:
        """Check that no more than two tiles of an axis share a cell."""
        require(
            1 <= self.overlap <= self.tile // 2,
            f"tiles of {self.tile} cells cannot overlap by {self.overlap}; "
            "the overlap is at least one cell and at most half a tile",
        )

    @classmethod
    def of_pixels(cls, tile: int, overlap: int, factor: int) -> Tiling:
        """Return the tiling whose tiles are ``tile`` pixels wide, with ``factor`` pixels to a cell.

        Raises:
            UserError: A number is no multiple of ``factor``, or the overlap is none or more than half a tile.
        """
        for name, value in (("tile", tile), ("overlap", overlap)):
            require(
                value > 0 and value % factor == 0,
                f"{name} is {value} pixels; it must be a positive multiple of {factor}, the pixels of a latent cell",
            )
        require(
            2 * overlap <= tile,
            f"a tile of {tile} pixels is too small for an overlap of {overlap}; "
            f"take a tile of at least {2 * overlap} pixels, or a smaller overlap",
        )
        return cls(tile=tile // factor, overlap=overlap // factor)

    def run(self, network: Callable[[Tensor], Tensor], x: Tensor, *, into: int, out: int, channels: int) -> Tensor:
        """Return ``network`` of each tile of ``x``, blended; only one tile's activations are held at a time.

        Where one tile covers ``x`` this is ``network(x)``.

        Args:
            network: Maps [B, C, into * h, into * w] to [B, channels, out * h, out * w].
            x: [B, C, into * H, into * W] for a grid of H x W cells.
            into: Pixels of ``x`` to a cell, per axis.
            out: Pixels of the result to a cell, per axis.
            channels: Channels of the result.

        Returns:
            [B, channels, out * H, out * W].
        """
        rows, columns = (side // into for side in x.shape[2:])
        if max(rows, columns) <= self.tile:
            return network(x)
        blended = x.new_zeros(len(x), channels, rows * out, columns * out)
        for top, vertical in self.weights(rows, out):
            for left, horizontal in self.weights(columns, out):
                part = x[:, :, top * into : (top + self.tile) * into, left * into : (left + self.tile) * into]
                weight = (vertical[:, None] * horizontal).to(blended)
                height, width = weight.shape
                place = blended[:, :, top * out : top * out + height, left * out : left * out + width]
                place += weight * network(part)
        return blended

    def weights(self, cells: int, out: int) -> list[tuple[int, Tensor]]:
        """Return the tiles of an axis.

        Args:
            cells: Cells of the axis.
            out: Pixels of the result to a cell.

        Returns:
            For each tile its first cell, and the weights of what it gives, [out * tile] or shorter on a shorter axis.
        """
        last = max(cells - self.tile, 0)
        starts = [*range(0, last, self.tile - self.overlap), last]
        margin = self.overlap // 4 * out
        ramp = self.overlap * out - 2 * margin
        places = torch.arange(cells * out, dtype=torch.float64) + 0.5
        # How far the weight has moved on from a tile to the next, at each place of the axis.
        moved = [((places - (start + self.tile) * out + margin + ramp) / ramp).clamp(0, 1) for start in starts[:-1]]
        entered, gone = [torch.ones_like(places), *moved], [*moved, torch.zeros_like(places)]
        whole = [a - b for a, b in zip(entered, gone, strict=True)]
        return [
            (start, part[start * out : (start + self.tile) * out]) for start, part in zip(starts, whole, strict=True)
        ]

"""Those of RePaint's masks that are a rule: drawn where no files are given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["DRAWN"]


def _everywhere(height: int, width: int) -> Tensor:
    return torch.ones(1, 1, height, width)


def _nn2(height: int, width: int) -> Tensor:
    """Of every second row every second pixel is known."""
    mask = _everywhere(height, width)
    mask[..., ::2, ::2] = 0
    return mask


def _ev2li(height: int, width: int) -> Tensor:
    """Every second line is known, the first one too."""
    mask = _everywhere(height, width)
    mask[..., ::2, :] = 0
    return mask


def _genhalf(height: int, width: int) -> Tensor:
    """The left half is known."""
    mask = _everywhere(height, width)
    mask[..., : width // 2] = 0
    return mask


def _ex64(height: int, width: int) -> Tensor:
    """The middle is known: 64 x 64 of 256 x 256 pixels, a quarter of each side."""
    mask = _everywhere(height, width)
    rows, columns = height // 4, width // 4
    top, left = (height - rows) // 2, (width - columns) // 2
    mask[..., top : top + rows, left : left + columns] = 0
    return mask


#: By the name of the official configuration: (height, width) to [1, 1, H, W], 1 where the image is to be filled.
DRAWN: dict[str, Callable[[int, int], Tensor]] = {
    "nn2": _nn2,
    "ev2li": _ev2li,
    "genhalf": _genhalf,
    "ex64": _ex64,
}

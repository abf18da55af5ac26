"""What may go into a model: images and masks are checked before anything is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steerdiff.errors import require

__all__ = ["check_image", "check_mask"]


def check_image(image: Any, channels: int, size: tuple[int, int], what: str = "image") -> Tensor:
    """Return ``image`` [B, channels, height, width] if it is one in [-1, 1].

    Raises:
        UserError: Wrong shape, size, type or range, or a value that is not finite.
    """
    height, width = size
    want = f"[B, {channels}, {height}, {width}]"
    shape = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
    load = "Load it with steerdiff.io.load_image"
    fits = isinstance(image, Tensor) and image.dim() == 4 and list(image.shape[1:]) == [channels, height, width]
    require(fits, f"{what} is {shape}; expected {want}. {load}")
    require(image.shape[0] > 0, f"{what} is {shape}, an empty batch; give at least one image")
    require(image.is_floating_point(), f"{what} has type {image.dtype}; expected floats in [-1, 1]. {load}")
    bad = int((~image.isfinite()).sum())
    require(bad == 0, f"{what} has {bad} values that are NaN or infinite; expected numbers in [-1, 1]")
    low, high = float(image.min()), float(image.max())
    in_range = low >= -1 - 1e-4 and high <= 1 + 1e-4
    require(in_range, f"{what} has values from {low:.4g} to {high:.4g}; expected [-1, 1]. {load}")
    result: Tensor = image
    return result


def check_mask(mask: Any, size: tuple[int, int]) -> Tensor:
    """Return ``mask`` [B, 1, height, width] as float32 if it is one of zeros and ones.

    Raises:
        UserError: Wrong shape or size, or values other than 0 and 1.
    """
    height, width = size
    want = f"[B, 1, {height}, {width}]"
    shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
    fits = isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[0] > 0
    fits = fits and list(mask.shape[1:]) == [1, height, width]
    require(fits, f"mask is {shape}; expected {want}. Load it with steerdiff.io.load_mask")
    odd = int(((mask != 0) & (mask != 1)).sum())
    require(odd == 0, f"mask has {odd} values that are neither 0 nor 1; expected 1 where the image may change, else 0")
    result: Tensor = mask.to(torch.float32)
    return result

"""What may go into a model: images, masks and labels are checked before anything is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steerdiff.errors import require

if TYPE_CHECKING:
    from .noisy_classifier import Classes

__all__ = ["check_image", "check_labels", "check_mask"]


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


def check_labels(y: Classes | None, num_classes: int | None, name: str, device: torch.device) -> Tensor | None:
    """Return class labels as int64 [B] on ``device``, or None for a model without labels.

    Raises:
        UserError: Labels that are missing, superfluous, outside [0, num_classes) or given by name.
    """
    if y is None:
        require(num_classes is None, f"{name} needs class labels; give y (--label) in [0, {num_classes})")
        return None
    require(num_classes is not None, f"{name} has no class labels; leave y out")
    named = isinstance(y, str) or (not isinstance(y, int | Tensor) and any(isinstance(one, str) for one in y))
    require(not named, f"{name} knows its classes by number; give y in [0, {num_classes})")
    labels = torch.as_tensor(y, device=device).reshape(-1).long()
    inside = bool(((labels >= 0) & (labels < (num_classes or 0))).all())
    require(inside, f"y is {labels.tolist()}; labels must be in [0, {num_classes})")
    return labels

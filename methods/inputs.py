"""What the masked methods make of an image and a mask."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from steerdiff.errors import require
from steerdiff.guidance import Model
from steerdiff.samplers.constraints import KnownRegion

__all__ = ["fitted_mask", "known_part"]


def fitted_mask(model: Model, mask: Tensor, images: int) -> Tensor:
    """Return a mask at the size of the model's state, for all of so many images or one for each.

    Raises:
        UserError: A mask that does not fit the model or the number of images.
    """
    fitted = model.fit_mask(mask)
    rows = fitted.shape[0]
    require(rows in (1, images), f"{rows} masks were given for {images} images; give one, or one for each image")
    return fitted


def known_part(model: Model, x0: Tensor, mask: Tensor, **options: Any) -> KnownRegion:
    """Return the constraint that holds encoded images ``x0`` [B, C, H, W] where ``mask`` is 0.

    Args:
        model: Whose size the mask must have.
        x0: What ``model.encode`` gave.
        mask: [B, 1, H, W] or [1, 1, H, W], 1 where the image may change.
        options: Fields of `KnownRegion`.

    Raises:
        UserError: A mask that does not fit the model or the number of images.
    """
    return KnownRegion(x0, keep=1 - fitted_mask(model, mask, x0.shape[0]).to(x0.dtype), **options)

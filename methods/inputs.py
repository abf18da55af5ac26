"""What methods make of what they are given: masks, and folders of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from steerdiff.errors import require
from steerdiff.guidance import Model
from steerdiff.samplers.constraints import KnownRegion
from steerdiff.train.data import ImageFolder

__all__ = ["fitted_mask", "folder_images", "known_part"]


def fitted_mask(model: Model, mask: Tensor, images: int) -> Tensor:
    """Return a mask at the size of the model's state, for all of so many images or one for each.

    Raises:
        UserError: A mask that does not fit the model or the number of images.
    """
    fitted = model.fit_mask(mask)
    rows = fitted.shape[0]
    require(rows in (1, images), f"{rows} masks were given for {images} images; give one, or one for each image")
    return fitted


def folder_images(
    model: Model, folder: Path, *, captioned: bool, n: int | None = None
) -> tuple[Tensor, list[str] | None]:
    """Return pictures of a folder, cut and resized to the model's size, and what they show.

    Args:
        model: Whose size and device they get.
        folder: Of the pictures, in the order of the first pass of `ImageFolder`; none is mirrored.
        captioned: Also read the text beside each.
        n: Pictures at most; None is all.

    Returns:
        Images [N, 3, H, W] in [-1, 1], and their N captions; None unless ``captioned``.

    Raises:
        UserError: No folder, no pictures, a text that is missing, or a model whose images are not square.
    """
    height, width = model.size
    require(height == width, f"{model.name} draws {height} x {width}; pictures of a folder are cut square")
    found = ImageFolder(folder, image_size=height, labels="caption" if captioned else "none", flip=False)
    images, captions = found.batch(range(len(found) if n is None else min(n, len(found))))
    return images.to(model.device), captions if isinstance(captions, list) else None


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

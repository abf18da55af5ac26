"""Pictures of single subjects that training never shows: the other 759 objects, and the noto style."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from steerdiff.errors import require

from .scene_text import COLOURS
from .scenes import CANVAS, GRID, SINGLE_SIZE, Draws, to_images
from .sprites import lay, load_sprite

__all__ = ["subject_images"]

_STREAM = 2  # beside those of the splits
_SIZES = (32, 36, SINGLE_SIZE)


def subject_images(name: str, style: str, n: int, seed: int = 0, *, image_size: int = CANVAS) -> Tensor:
    """Return pictures of one subject at different places and sizes, each on another background as far as there are.

    Args:
        name: A caption name, or any name of ``assets/emoji/index.json`` ("hatching chick").
        style: "twemoji", "flat", "3d" or "noto".
        n: Number of pictures, at least 1.
        seed: Decides places, sizes and the order of the backgrounds.
        image_size: Side of the images in pixels, 64 or 32.

    Returns:
        Images [n, 3, image_size, image_size], float32 in [-1, 1].

    Raises:
        UserError: The subject or style is unknown, or a number out of range.
    """
    require(n >= 1, f"n is {n}; ask for at least one picture")
    pictures = np.empty((n, 3, CANVAS, CANVAS), np.uint8)
    left: list[str] = []
    for i, picture in enumerate(pictures):
        draw = Draws(seed, i, _STREAM)
        left = left or list(COLOURS)
        left.remove(colour := draw.choose(left))
        size = draw.choose(_SIZES)
        places = range(size // 2 // GRID * GRID + GRID, CANVAS - size // 2 - GRID + 1, GRID)
        x, y = draw.choose(places), draw.choose(places)
        picture[:] = np.array(COLOURS[colour], np.uint8)[:, None, None]
        lay(picture, load_sprite(name, style, size), x, y)
    return to_images(pictures, image_size)

"""The emoji art as sprites: premultiplied colour and alpha, resized once and kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from steerdiff.errors import require

from .scene_text import OBJECTS, SPRITES, STYLES, known

__all__ = ["ART_STYLES", "Sprite", "art_names", "lay", "load_sprite", "preload"]

#: Every style there is art of; ``noto`` is never in a training scene.
ART_STYLES: tuple[str, ...] = (*STYLES, "noto")
_INK = 94  # longest side of the ink inside a cell, in pixels; the ink is centred

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Sprite:
    """One emoji in one style at one size."""

    colour: FloatArray  #: [3, size, size], premultiplied by alpha, 0..255
    transparency: FloatArray  #: [1, size, size], 1 - alpha, 0..1


def load_sprite(name: str, style: str, size: int) -> Sprite:
    """Return the sprite of an object, drawn so that the longest side of its ink is ``size`` pixels.

    Args:
        name: A caption name ("chick") or a name of ``assets/emoji/index.json`` ("hatching chick").
        style: One of ``ART_STYLES``.
        size: Side of the square sprite in pixels, 4 to 94; the ink is centred in it.

    Raises:
        UserError: The name or style is unknown, or the size out of range.
    """
    known("style", style, ART_STYLES)
    require(4 <= size <= _INK, f"a sprite of {size} pixels; sizes from 4 to {_INK} are possible")
    index = SPRITES.get(name)
    if index is None:
        names = art_names()
        index = names.index(known("object", name, names))
    return _sprite(index, style, size)


@cache
def art_names() -> tuple[str, ...]:
    """Return the name of each of the 807 objects as ``assets/emoji/index.json`` has it, in the order of the sheets."""
    return tuple(entry["name"] for entry in _index()["objects"])


def lay(picture: npt.NDArray[np.uint8], sprite: Sprite, x: int, y: int) -> None:
    """Draw ``sprite`` over ``picture`` [3, H, W] in place, its centre at (x, y), rounded to whole values."""
    size = sprite.colour.shape[-1]
    top, left = y - size // 2, x - size // 2
    region = picture[:, top : top + size, left : left + size]
    region[:] = region * sprite.transparency + (sprite.colour + np.float32(0.5))


@lru_cache(maxsize=8)
def preload(*sizes: int) -> None:
    """Make the sprites of all objects and styles of the domain, so that no later scene waits for a file."""
    for style in STYLES:
        for name in OBJECTS:
            for size in sizes:
                load_sprite(name, style, size)


@cache
def _index() -> dict[str, Any]:
    index: dict[str, Any] = json.loads(files("steerdiff.assets").joinpath("emoji", "index.json").read_text("utf-8"))
    return index


@lru_cache(maxsize=1)  # 30 MB each: loaders go style by style
def _sheet(style: str) -> npt.NDArray[np.uint8]:
    with files("steerdiff.assets").joinpath("emoji", _index()["styles"][style]["file"]).open("rb") as file:
        return np.asarray(Image.open(file).convert("RGBA"))


@cache
def _sprite(index: int, style: str, size: int) -> Sprite:
    meta = _index()
    cell, margin = meta["cell"], (meta["cell"] - _INK) // 2
    top, left = index // meta["columns"] * cell + margin, index % meta["columns"] * cell + margin
    rgba = _sheet(style)[top : top + _INK, left : left + _INK].astype(np.float32)
    alpha = rgba[:, :, 3:] / 255
    planes = np.moveaxis(np.concatenate([rgba[:, :, :3] * alpha, alpha], axis=2), 2, 0)
    small = np.stack([_resize(plane, size) for plane in planes])
    opacity = np.clip(small[3:], 0, 1)
    colour: FloatArray = np.clip(small[:3], 0, 255 * opacity).astype(np.float32)
    return Sprite(colour, (1 - opacity).astype(np.float32))


def _resize(plane: FloatArray, size: int) -> FloatArray:
    """Lanczos over the area of each target pixel (Pillow widens its filter when it shrinks)."""
    return np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.LANCZOS))

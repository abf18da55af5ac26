"""Emoji scenes: the embedded text-to-image domain, composed at random, so that every edit has a true answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from steerdiff.errors import UserError, require

from .scene_text import (
    COLOURS,
    OBJECTS,
    RELATIONS,
    RESERVED_WORDS,
    STYLES,
    WORDS,
    Description,
    Relation,
    Split,
    is_held_out,
    known,
    parse_caption,
)
from .sprites import load_sprite, preload

__all__ = [
    "COLOURS",
    "IMAGE_SIZES",
    "OBJECTS",
    "RELATIONS",
    "RESERVED_WORDS",
    "STYLES",
    "WORDS",
    "Description",
    "EmojiScenes",
    "Example",
    "Item",
    "Scene",
    "is_held_out",
    "parse_caption",
    "render",
    "to_images",
]

T = TypeVar("T")

CANVAS = 64  #: side of a scene in pixels; smaller images are its box averages
IMAGE_SIZES = (64, 32)
SINGLE_SIZE = 40  #: longest side of the object of a single scene, in pixels
PAIR_SIZE = 28  #: the same in a scene of two
GRID = 4  #: centres lie on this grid, in pixels: equal sprites then give equal 4 x 4 patches
_OFFSETS = (-8, -4, 0, 4, 8)
_NEAR, _MIDDLE, _FAR = 16, 32, 48
#: Stream of each split: part of the seed, never renumbered.
_STREAMS: dict[Split, int] = {"train": 0, "held_out": 1}
#: Objects that each colour may carry, by split.
_ALLOWED: dict[Split, dict[str, tuple[str, ...]]] = {
    "train": {c: tuple(o for o in OBJECTS if not is_held_out(o, c)) for c in COLOURS},
    "held_out": {c: tuple(o for o in OBJECTS if is_held_out(o, c)) for c in COLOURS},
}


@dataclass(frozen=True, kw_only=True)
class Item:
    """One object of a scene."""

    object: str  #: a name of ``OBJECTS``
    style: str  #: a name of ``STYLES``
    x: int  #: centre from the left, in pixels of the 64-pixel scene
    y: int  #: centre from the top
    size: int  #: longest side of the ink, in pixels

    def __post_init__(self) -> None:
        known("object", self.object, OBJECTS)
        known("style", self.style, STYLES)
        half = self.size // 2
        inside = all(half <= centre <= CANVAS - half for centre in (self.x, self.y))
        require(
            inside and self.size >= 4 and self.size % 2 == 0,
            f"an object of {self.size} pixels at ({self.x}, {self.y}); it needs an even size of at least 4 and must "
            f"lie inside the {CANVAS} x {CANVAS} scene",
        )


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One or two objects on a plain background."""

    items: tuple[Item, ...]  #: in the caption's order
    colour: str  #: a name of ``COLOURS``
    relation: Relation | None = None  #: the first item is ``relation`` the second; None for a single object

    def __post_init__(self) -> None:
        _ = self.description  # validates the words
        if self.relation is not None:
            first, second = self.items
            true = {"left of": first.x < second.x, "right of": first.x > second.x}
            true |= {"above": first.y < second.y, "below": first.y > second.y}
            require(true[self.relation], f"the first object is not {self.relation} the second; swap them")

    @property
    def description(self) -> Description:
        """What the caption says about the scene."""
        things = tuple((item.style, item.object) for item in self.items)
        return Description(things=things, colour=self.colour, relation=self.relation)

    @property
    def caption(self) -> str:
        """The exact caption."""
        return self.description.caption

    def to_dict(self) -> dict[str, Any]:
        """Return the scene as JSON-able values."""
        return {**asdict(self), "items": [asdict(item) for item in self.items]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scene:
        """Return the scene that ``to_dict`` described.

        Raises:
            UserError: A key is missing or unknown, or a value is not allowed.
        """
        try:
            return cls(**{**values, "items": tuple(Item(**item) for item in values["items"])})
        except (TypeError, KeyError) as error:
            raise UserError(
                f"the description of a scene does not fit ({error}); give what Scene.to_dict gave"
            ) from None


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A scene with its picture and its caption."""

    image: Tensor  #: [3, H, W], float32 in [-1, 1]
    caption: str
    scene: Scene


def render(scenes: Sequence[Scene]) -> npt.NDArray[np.uint8]:
    """Draw scenes; later items lie over earlier ones.

    Returns:
        Pictures [B, 3, 64, 64], 0..255, RGB.
    """
    pictures = np.empty((len(scenes), 3, CANVAS, CANVAS), np.uint8)
    for picture, scene in zip(pictures, scenes, strict=True):
        picture[:] = np.array(COLOURS[scene.colour], np.uint8)[:, None, None]
        for item in scene.items:
            sprite = load_sprite(item.object, item.style, item.size)
            top, left = item.y - item.size // 2, item.x - item.size // 2
            region = picture[:, top : top + item.size, left : left + item.size]
            region[:] = region * sprite.transparency + (sprite.colour + np.float32(0.5))
    return pictures


def to_images(pictures: npt.NDArray[np.uint8], image_size: int = CANVAS) -> Tensor:
    """Return pictures [B, 3, 64, 64] of 0..255 as images [B, 3, image_size, image_size], float32 in [-1, 1].

    Smaller sizes are averages over boxes of pixels.

    Raises:
        UserError: ``image_size`` is not one of ``IMAGE_SIZES``.
    """
    require(image_size in IMAGE_SIZES, f"scenes of {image_size} pixels; the sizes are {IMAGE_SIZES}")
    images = torch.from_numpy(pictures).to(torch.float32).div_(127.5).sub_(1)
    return images if image_size == CANVAS else torch.nn.functional.avg_pool2d(images, CANVAS // image_size)


@dataclass(frozen=True)
class EmojiScenes:
    """An endless set of scenes: number i of a seed is the same in every process and on every worker.

    Of the scenes of split "train", none shows an object on a colour that ``is_held_out`` names; those of "held_out"
    show nothing else. Objects, colours and styles are uniform, and independent but for that.
    """

    seed: int = 0  #: at least 0
    split: Split = "train"
    pairs: float = 0.3  #: share of scenes with two objects
    image_size: int = CANVAS  #: side of the images in pixels, 64 or 32

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"seed is {self.seed}; it must be at least 0")
        known("split", self.split, get_args(Split))
        require(0 <= self.pairs <= 1, f"pairs is {self.pairs}; it is a share between 0 and 1")
        require(self.image_size in IMAGE_SIZES, f"scenes of {self.image_size} pixels; the sizes are {IMAGE_SIZES}")

    def scene(self, i: int) -> Scene:
        """Return scene number ``i``.

        Raises:
            UserError: ``i`` is negative.
        """
        draw = Draws(self.seed, i, _STREAMS[self.split])
        pair = draw.fraction() < self.pairs
        colour = draw.choose(tuple(COLOURS))
        allowed = _ALLOWED[self.split][colour]
        first = draw.choose(allowed)
        styles = draw.choose(STYLES), draw.choose(STYLES)
        across, along = draw.choose(_OFFSETS), draw.choose(_OFFSETS)
        if not pair:
            single = Item(object=first, style=styles[0], x=_MIDDLE + across, y=_MIDDLE + along, size=SINGLE_SIZE)
            return Scene(items=(single,), colour=colour)
        second = draw.choose(tuple(name for name in allowed if name != first))
        relation = draw.choose(RELATIONS)
        return arrange((first, second), styles, colour, relation, across)

    def scenes(self, indices: Sequence[int]) -> list[Scene]:
        """Return the scenes of these numbers."""
        return [self.scene(i) for i in indices]

    def __getitem__(self, i: int) -> Example:
        """Return scene number ``i`` with its picture and caption."""
        scene = self.scene(i)
        return Example(image=self.render(scene), caption=scene.caption, scene=scene)

    def render(self, scene: Scene) -> Tensor:
        """Draw any scene at this set's size: [3, image_size, image_size], float32 in [-1, 1]."""
        return to_images(render([scene]), self.image_size)[0]

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
        """Return the images [B, 3, image_size, image_size] in [-1, 1] and the captions of these scenes."""
        preload(SINGLE_SIZE, PAIR_SIZE)
        scenes = self.scenes(indices)
        return to_images(render(scenes), self.image_size), [scene.caption for scene in scenes]


def arrange(names: tuple[str, str], styles: tuple[str, str], colour: str, relation: Relation, shift: int) -> Scene:
    """Return the scene of two objects, the first ``relation`` the second, moved by ``shift`` across the axis."""
    first, second = (_NEAR, _FAR) if relation in ("left of", "above") else (_FAR, _NEAR)
    beside = relation in ("left of", "right of")
    places = [(centre, _MIDDLE + shift) if beside else (_MIDDLE + shift, centre) for centre in (first, second)]
    items = tuple(
        Item(object=name, style=style, x=x, y=y, size=PAIR_SIZE)
        for name, style, (x, y) in zip(names, styles, places, strict=True)
    )
    return Scene(items=items, colour=colour, relation=relation)


class Draws:
    """Random choices that depend on nothing but the numbers given.

    They come from the raw words of PCG64 seeded by ``SeedSequence``, both of which numpy promises to keep; its
    distributions may change from one version to the next.
    """

    def __init__(self, *entropy: int) -> None:
        require(min(entropy) >= 0, f"scene {entropy} has a negative number; seeds and numbers start at 0")
        self._generator = np.random.PCG64(np.random.SeedSequence(entropy))

    def fraction(self) -> float:
        """Return a number in [0, 1)."""
        return (int(self._generator.random_raw()) >> 11) * 2.0**-53

    def choose(self, options: Sequence[T]) -> T:
        """Return one of ``options``, each as likely (to 1 in 2^60)."""
        return options[int(self._generator.random_raw()) % len(options)]

"""Emoji scenes: the embedded text-to-image domain, composed at random, so that every edit has a true answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar, get_args

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
from .sprites import lay, load_sprite, preload

__all__ = [
    "COLOURS",
    "EDITS",
    "IMAGE_SIZES",
    "OBJECTS",
    "OFFSETS",
    "RELATIONS",
    "RESERVED_WORDS",
    "STYLES",
    "WORDS",
    "Description",
    "Edit",
    "EditPair",
    "EmojiScenes",
    "Example",
    "Item",
    "Scene",
    "compose",
    "is_held_out",
    "parse_caption",
    "render",
    "to_images",
]

T = TypeVar("T")
Edit = Literal["object", "style", "colour", "relation"]
EDITS: tuple[Edit, ...] = get_args(Edit)

CANVAS = 64  #: side of a scene in pixels; smaller images are its box averages
IMAGE_SIZES = (64, 32)
SINGLE_SIZE = 40  #: longest side of the object of a single scene, in pixels
PAIR_SIZE = 28  #: the same in a scene of two
GRID = 4  #: centres lie on this grid, in pixels: equal sprites then give equal 4 x 4 patches
OFFSETS = (-8, -4, 0, 4, 8)  #: of objects from their place, in pixels
_NEAR, _MIDDLE, _FAR = 16, 32, 48
#: Numbers of the random streams: part of the seed, never renumbered.
_STREAMS: dict[Split, int] = {"train": 0, "held_out": 1}
_EDIT_STREAMS: dict[Edit, int] = {"object": 1, "style": 2, "colour": 3, "relation": 4}
_OPPOSITE: dict[Relation | None, Relation] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
_SAME_SHAPE = {"flat": "3d", "3d": "flat"}  # the two Fluent styles share their outlines
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
            lay(picture, load_sprite(item.object, item.style, item.size), item.x, item.y)
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


@dataclass(frozen=True, kw_only=True, eq=False)
class EditPair:
    """A scene before and after an edit, everything else being equal: the true answer to an editing method."""

    kind: Edit  #: what the edit changes
    source: Example  #: before
    target: Example  #: after
    mask: Tensor  #: [1, H, W], float32: 1 at each pixel that differs, 0 where source and target are equal


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
        return self._draw(Draws(self.seed, i, _STREAMS[self.split]), self.pairs)

    def _draw(self, draw: Draws, pairs: float) -> Scene:
        pair = draw.fraction() < pairs
        colour = draw.choose(tuple(COLOURS))
        allowed = _ALLOWED[self.split][colour]
        first = draw.choose(allowed)
        styles = draw.choose(STYLES), draw.choose(STYLES)
        offsets = draw.choose(OFFSETS), draw.choose(OFFSETS)
        if not pair:
            return compose(Description(things=((styles[0], first),), colour=colour), *offsets)
        second = draw.choose(tuple(name for name in allowed if name != first))
        things = (styles[0], first), (styles[1], second)
        return compose(Description(things=things, colour=colour, relation=draw.choose(RELATIONS)), *offsets)

    def scenes(self, indices: Sequence[int]) -> list[Scene]:
        """Return the scenes of these numbers."""
        return [self.scene(i) for i in indices]

    def __getitem__(self, i: int) -> Example:
        """Return scene number ``i`` with its picture and caption."""
        scene = self.scene(i)
        return Example(image=self.render(scene), caption=scene.caption, scene=scene)

    def render(self, scene: Scene) -> Tensor:
        """Draw any scene at this set's size: [3, image_size, image_size], float32 in [-1, 1]."""
        return self.render_all([scene])[0]

    def render_all(self, scenes: Sequence[Scene]) -> Tensor:
        """Draw any scenes at this set's size: [B, 3, image_size, image_size], float32 in [-1, 1]."""
        preload(SINGLE_SIZE, PAIR_SIZE)
        return to_images(render(scenes), self.image_size)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
        """Return the images [B, 3, image_size, image_size] in [-1, 1] and the captions of these scenes."""
        scenes = self.scenes(indices)
        return self.render_all(scenes), [scene.caption for scene in scenes]

    def edit_pair(self, i: int, kind: Edit) -> EditPair:
        """Return edit number ``i`` of a kind; the numbering is its own, not that of the scenes.

        The kinds are: "object", one object becomes another at its place; "style", one object changes between flat and
        3d, which share their outlines; "colour", the background changes; "relation", the two objects swap places.
        Both scenes belong to the split, with one exception: in colour edits of "held_out" the source is a seen
        combination, for each object has just one colour that is held out.

        Raises:
            UserError: ``i`` is negative or ``kind`` unknown.
        """
        known("edit", kind, EDITS)
        draw = Draws(self.seed, i, _STREAMS[self.split], _EDIT_STREAMS[kind])
        source = self._draw(draw, 1.0 if kind == "relation" else self.pairs)
        changed = draw.choose(range(len(source.items)))
        if kind == "object":
            present = [item.object for item in source.items]
            allowed = [name for name in _ALLOWED[self.split][source.colour] if name not in present]
            target = _with_item(source, changed, object=draw.choose(allowed))
        elif kind == "style":
            source = _with_item(source, changed, style=draw.choose(tuple(_SAME_SHAPE)))
            target = _with_item(source, changed, style=_SAME_SHAPE[source.items[changed].style])
        elif kind == "colour":
            seen = _ALLOWED["train"]
            colours = [c for c in COLOURS if c != source.colour and all(o.object in seen[c] for o in source.items)]
            target = replace(source, colour=draw.choose(colours))
            source, target = (target, source) if self.split == "held_out" else (source, target)
        else:
            target = _swapped(source)
        return self._pair(kind, source, target)

    def _pair(self, kind: Edit, source: Scene, target: Scene) -> EditPair:
        before, after = self.render_all([source, target])
        return EditPair(
            kind=kind,
            source=Example(image=before, caption=source.caption, scene=source),
            target=Example(image=after, caption=target.caption, scene=target),
            mask=(before != after).any(0, keepdim=True).to(torch.float32),
        )


def _with_item(scene: Scene, number: int, **changes: str) -> Scene:
    items = list(scene.items)
    items[number] = Item(**{**asdict(items[number]), **changes})
    return replace(scene, items=tuple(items))


def _swapped(scene: Scene) -> Scene:
    first, second = scene.items
    items = (replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y))
    return Scene(items=items, colour=scene.colour, relation=_OPPOSITE[scene.relation])


def compose(description: Description, across: int, along: int = 0) -> Scene:
    """Return the scene that a caption describes.

    Args:
        description: What the caption says.
        across: Offset in pixels, of ``OFFSETS``: of a single object to the right, of a pair across its axis.
        along: Offset of a single object downwards; a pair stays where it is along its axis.
    """
    if description.relation is None:
        places, size = [(_MIDDLE + across, _MIDDLE + along)], SINGLE_SIZE
    else:
        beside = description.relation in ("left of", "right of")
        centres = (_NEAR, _FAR) if description.relation in ("left of", "above") else (_FAR, _NEAR)
        places = [(centre, _MIDDLE + across) if beside else (_MIDDLE + across, centre) for centre in centres]
        size = PAIR_SIZE
    items = tuple(
        Item(object=name, style=style, x=x, y=y, size=size)
        for (style, name), (x, y) in zip(description.things, places, strict=True)
    )
    return Scene(items=items, colour=description.colour, relation=description.relation)


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

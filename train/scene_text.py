"""The language of the emoji scenes: names, captions, their grammar, and the combinations that training never sees."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from steerdiff.errors import UserError, require

__all__ = [
    "COLOURS",
    "OBJECTS",
    "RELATIONS",
    "RESERVED_WORDS",
    "SPRITES",
    "STYLES",
    "WORDS",
    "Description",
    "Relation",
    "Split",
    "is_held_out",
    "known",
    "parse_caption",
]

Relation = Literal["left of", "right of", "above", "below"]
Split = Literal["train", "held_out"]

#: Caption name of each object and the index of its sprite in ``assets/emoji/index.json``. Chosen by eye: each differs
#: from the others in silhouette or colour in all three styles, fills its cell, and is what its one word says.
SPRITES: dict[str, int] = {
    "cat": 12,
    "pig": 31,
    "panda": 59,
    "bear": 56,
    "elephant": 42,
    "penguin": 73,
    "owl": 78,
    "frog": 87,
    "turtle": 89,
    "whale": 96,
    "crab": 108,
    "octopus": 104,
    "butterfly": 114,
    "chick": 70,
    "snail": 113,
    "tree": 144,
    "cactus": 146,
    "sunflower": 137,
    "rose": 134,
    "mushroom": 156,
    "apple": 165,
    "banana": 162,
    "grapes": 157,
    "watermelon": 159,
    "carrot": 179,
    "lemon": 161,
    "avocado": 176,
    "burger": 206,
    "pizza": 208,
    "donut": 247,
    "house": 310,
    "car": 373,
    "tractor": 379,
    "boat": 403,
    "rocket": 421,
    "diamond": 601,
    "moon": 431,
    "star": 440,
    "rainbow": 457,
    "cloud": 444,
    "umbrella": 459,
    "heart": 541,
    "gift": 487,
    "crown": 591,
    "hat": 593,
    "guitar": 614,
    "bomb": 741,
    "book": 659,
}
OBJECTS: tuple[str, ...] = tuple(SPRITES)
STYLES: tuple[str, ...] = ("twemoji", "flat", "3d")
#: Background colours, RGB in 0..255: at least 60 apart from each other, and as far from the objects as that allows.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 90, 90),
    "orange": (235, 150, 95),
    "yellow": (255, 240, 170),
    "green": (145, 208, 148),
    "blue": (130, 188, 242),
    "purple": (175, 145, 215),
    "pink": (245, 150, 200),
    "gray": (120, 125, 130),
}
RELATIONS: tuple[Relation, ...] = get_args(Relation)
#: Words without a meaning, never in a training caption: names for what the tuning methods teach.
RESERVED_WORDS: tuple[str, ...] = ("sks", "beikkpic", "olbrix", "fenquo", "zumtar", "kriwel", "yadlet", "vobbin")
_GRAMMAR = ("a", "an", "on", "background", "left", "right", "of", "above", "below")
#: Every word that a caption can hold, and the reserved ones.
WORDS: tuple[str, ...] = tuple(dict.fromkeys((*_GRAMMAR, *STYLES, *OBJECTS, *COLOURS, *RESERVED_WORDS)))

_THING = r"an? (?P<style{0}>\S+) (?P<object{0}>\S+)"
_CAPTION = re.compile(
    f"{_THING.format(0)}(?: (?P<relation>{'|'.join(RELATIONS)}) {_THING.format(1)})? on an? (?P<colour>\\S+) background"
)


def known(what: str, name: str, allowed: tuple[str, ...]) -> str:
    """Return ``name`` if ``allowed`` holds it.

    Args:
        what: What the name is of, for the message ("object", "style", ...).
        name: The name given.
        allowed: The names to choose from.

    Raises:
        UserError: ``name`` is none of them; the message names the nearest ones.
    """
    if name in allowed:
        return name
    near = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
    listed = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(allowed)}."
    raise UserError(f"{name!r} is not a known {what}; {listed}")


def is_held_out(name: str, colour: str) -> bool:
    """Whether training never shows object ``name`` on background ``colour``.

    A fixed table: each object has exactly one such colour, each colour exactly six such objects (1 of 8 combinations).

    Raises:
        UserError: The object or the colour is unknown.
    """
    i = OBJECTS.index(known("object", name, OBJECTS))
    c = tuple(COLOURS).index(known("colour", colour, tuple(COLOURS)))
    return (i + 3 * c) % 8 == 0


def article(word: str) -> str:
    """Return "an" before a vowel, else "a"."""
    return "an" if word[0] in "aeiou" else "a"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a caption says: one or two things, how the first lies to the second, and the colour of the background."""

    things: tuple[tuple[str, str], ...]  #: (style, object) of each, in the caption's order
    colour: str  #: name of the background colour
    relation: Relation | None = None  #: the first thing is ``relation`` the second; None for one thing

    def __post_init__(self) -> None:
        require(len(self.things) in (1, 2), f"a scene has {len(self.things)} objects; it can have one or two")
        for style, name in self.things:
            known("style", style, STYLES)
            known("object", name, OBJECTS)
        known("colour", self.colour, tuple(COLOURS))
        require(
            (self.relation is None) == (len(self.things) == 1),
            f"{len(self.things)} objects with relation {self.relation!r}; exactly the scenes of two objects have one",
        )
        if self.relation is not None:
            known("relation", self.relation, RELATIONS)

    @property
    def caption(self) -> str:
        """The caption, for example "a flat cat left of a 3d apple on a blue background"."""
        things = [f"{article(style)} {style} {name}" for style, name in self.things]
        return f"{f' {self.relation} '.join(things)} on {article(self.colour)} {self.colour} background"

    @property
    def held_out(self) -> bool:
        """Whether every combination of an object and the colour is one that training never shows."""
        return all(is_held_out(name, self.colour) for _, name in self.things)

    @property
    def seen(self) -> bool:
        """Whether no combination of an object and the colour is held out."""
        return not any(is_held_out(name, self.colour) for _, name in self.things)


def parse_caption(caption: str) -> Description:
    """Return what ``caption`` says; the inverse of ``Description.caption``.

    Raises:
        UserError: The caption does not follow the grammar, or names an unknown style, object or colour.
    """
    match = _CAPTION.fullmatch(caption.strip())
    if match is None:
        raise UserError(
            f"{caption!r} is not a caption of a scene; write 'a STYLE OBJECT on a COLOUR background' or "
            f"'a STYLE OBJECT RELATION a STYLE OBJECT on a COLOUR background', RELATION one of {', '.join(RELATIONS)}"
        )
    found = match.groupdict()
    things = [(found["style0"], found["object0"])]
    if found["relation"] is not None:
        things.append((found["style1"], found["object1"]))
    return Description(
        things=tuple(things), colour=found["colour"], relation=cast("Relation | None", found["relation"])
    )

"""Templates of the emoji domain: whole captions with {} for one word, so that a word's direction is that of its scenes.

The templates of a word are the captions in which such a word stands, with everything else varied: a CLIP of this domain
has read such captions, and the mean of many directions holds what they share.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from steerdiff.errors import require
from steerdiff.guidance.directional import GENERAL_TEMPLATES

from .scene_text import COLOURS, OBJECTS, STYLES, WORDS, article
from .scenes import Draws

__all__ = ["DOMAIN_TEMPLATES", "Kind", "kind_of", "reads_scenes", "source_captions", "templates_for"]

Kind = Literal["style", "object", "colour"]

_NAMES: dict[Kind, tuple[str, ...]] = {"style": STYLES, "object": OBJECTS, "colour": tuple(COLOURS)}
_STREAM = 9  # of the random choices, beside those of scenes, edits, subjects and the benchmark


def _caption(style: str, name: str, colour: str) -> str:
    return f"{_with_article(style)} {name} on {_with_article(colour)} background"


def _with_article(word: str) -> str:
    return "a {}" if word == "{}" else f"{article(word)} {word}"


def _varied(i: int) -> tuple[str, str, str]:
    """Style, object and colour number ``i``: 48 of them hold every object once, every style and colour equally."""
    return STYLES[i % len(STYLES)], OBJECTS[i % len(OBJECTS)], tuple(COLOURS)[i // len(STYLES) % len(COLOURS)]


#: Templates by the kind of word that takes the place of {}: each object once; or each style on each colour.
DOMAIN_TEMPLATES: dict[Kind, tuple[str, ...]] = {
    "style": tuple(_caption("{}", *_varied(i)[1:]) for i in range(len(OBJECTS))),
    "object": tuple(_caption(style, "{}", colour) for style in STYLES for colour in COLOURS),
    "colour": tuple(_caption(*_varied(i)[:2], "{}") for i in range(len(OBJECTS))),
}


def kind_of(word: str) -> Kind | None:
    """Return whether a word names a style, an object or a background colour; None: nothing that scenes have."""
    return next((kind for kind, names in _NAMES.items() if word in names), None)


def reads_scenes(text: Any) -> bool:
    """Say whether a text encoder knows all words of the domain's captions."""
    return set(WORDS) <= set(getattr(getattr(text, "config", None), "words", ()))


def templates_for(source: str, target: str, known: Collection[str] | None = None) -> tuple[str, ...]:
    """Return the templates for the direction between two texts.

    Two words of one kind get those of `DOMAIN_TEMPLATES`; texts made of the domain's words otherwise ("a red cat")
    stand for themselves; all others get `GENERAL_TEMPLATES`.

    Args:
        source: What images show.
        target: What they shall show.
        known: Words that the CLIP can read, where they are few: templates with others are left out.
    """
    kind = kind_of(source)
    if kind is not None and kind == kind_of(target):
        found = DOMAIN_TEMPLATES[kind]
    elif all(word in WORDS for word in f"{source} {target}".split()):
        found = ("{}",)
    else:
        found = GENERAL_TEMPLATES
    readable = [template for template in found if known is None or _words(template) <= set(known)]
    return tuple(readable) or ("{}",)


def _words(template: str) -> set[str]:
    return set(template.replace("{}", " ").split())


def source_captions(word: str, n: int, seed: int = 0) -> list[str]:
    """Return captions of scenes of one object that have ``word``, all else drawn at random.

    Args:
        word: A style, an object or a colour; another text is returned as it is, ``n`` times.
        n: Number of captions, at least 1.
        seed: Decides them; caption i depends on nothing else but ``i``.
    """
    require(n >= 1, f"n is {n}; ask for at least one caption")
    kind = kind_of(word)
    if kind is None:
        return [word] * n
    captions = []
    for i in range(n):
        draw = Draws(seed, i, _STREAM)
        names = {other: word if other == kind else draw.choose(names) for other, names in _NAMES.items()}
        captions.append(_caption(names["style"], names["object"], names["colour"]))
    return captions

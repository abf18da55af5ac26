"""Cases of a subject that training never shows: the subject elsewhere, and its class as the model knew it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from steerdiff.train.scene_text import (
    COLOURS,
    OBJECTS,
    RESERVED_WORDS,
    Description,
    Split,
    article,
    is_held_out,
)
from steerdiff.train.scenes import CANVAS, OFFSETS, SINGLE_SIZE, Draws, EmojiScenes, compose, to_images
from steerdiff.train.sprites import lay, load_sprite

from .cases import CASES_SEED, Case

__all__ = ["draw_class_beside", "draw_subject"]

#: Random stream of the benchmark, beside those of ``tasks`` and ``attributes``: never renumbered.
_SUBJECT = 7
_RESERVED = RESERVED_WORDS[0]
_SUBJECT_STYLE, _CLASS_STYLE = "noto", "3d"


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is drawn at random: an object, the background of its picture and another one, and where it stands."""

    name: str
    before: str
    after: str
    across: int
    along: int


def _drawn(number: int, split: Split, seed: int) -> _Subject:
    draw = Draws(CASES_SEED + seed, number, split == "held_out", _SUBJECT)
    name = draw.choose(OBJECTS)
    seen = [colour for colour in COLOURS if not is_held_out(name, colour)]
    before = draw.choose(seen)
    others = [colour for colour in COLOURS if colour not in seen] if split == "held_out" else seen
    after = draw.choose([colour for colour in others if colour != before])
    return _Subject(name=name, before=before, after=after, across=draw.choose(OFFSETS), along=draw.choose(OFFSETS))


def draw_subject(number: int, split: Split, seed: int) -> Case:
    """Draw a subject of stream 7: an object in the art of noto, which training never shows, on two backgrounds.

    The caption names it by a reserved word in the place of the style, before the word for its class, as in "a sks cat
    on a blue background". The background asked for is held out for that object in split "held_out", else it is not.
    """
    subject = _drawn(number, split, seed)
    colours = subject.before, subject.after
    pictures = np.empty((2, 3, CANVAS, CANVAS), np.uint8)
    for picture, colour in zip(pictures, colours, strict=True):
        picture[:] = np.array(COLOURS[colour], np.uint8)[:, None, None]
        place = CANVAS // 2 + subject.across, CANVAS // 2 + subject.along
        lay(picture, load_sprite(subject.name, _SUBJECT_STYLE, SINGLE_SIZE), *place)
    image, truth = to_images(pictures)
    texts = [f"a {_RESERVED} {subject.name} on {article(colour)} {colour} background" for colour in colours]
    return Case(
        task="subject",
        number=number,
        split=split,
        image=image,
        mask=None,
        truth=truth,
        changed=(image != truth).any(0, keepdim=True).to(torch.float32),
        source_text=texts[0],
        target_text=texts[1],
        source=None,
        target=None,
    )


def draw_class_beside(number: int, split: Split, seed: int) -> Case:
    """Draw the subject of `draw_subject`, but ask for its class in 3d, which that art is least taken for.

    The background is that of the subject's picture, where a model that was tuned to it has most to confuse: "a 3d cat
    on a red background" beside "a sks cat on a red background". Training has seen it with that object, so no case is
    held out. The answer stands in the subject's place, of which the caption says nothing.
    """
    subject, shown = _drawn(number, split, seed), draw_subject(number, split, seed)
    described = Description(things=((_CLASS_STYLE, subject.name),), colour=subject.before)
    target = compose(described, subject.across, subject.along)
    truth = EmojiScenes().render(target)
    return replace(
        shown,
        task="class beside subject",
        split="train",
        truth=truth,
        changed=(shown.image != truth).any(0, keepdim=True).to(torch.float32),
        target_text=target.caption,
        target=target,
    )

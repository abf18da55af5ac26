"""Cases of one object: a class to draw, and edits that always change the same attribute from one word to another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import product

import torch

from steerdiff.train.scene_text import COLOURS, OBJECTS, STYLES, Description, Split
from steerdiff.train.scenes import CANVAS, OFFSETS, Draws, EmojiScenes, Scene, compose

from .cases import CASES_SEED, Case

__all__ = ["blue_to_red", "cat_to_panda", "draw_class", "flat_to_3d"]

#: Random streams of the benchmark, after those of ``tasks``: never renumbered.
_CLASS, _STYLE, _COLOUR, _OBJECT = 8, 9, 10, 11

#: Pairs of descriptions, before and after an edit.
_Pairs = tuple[tuple[Description, Description], ...]
_Draw = Callable[[int, Split, int], Case]


def draw_class(number: int, split: Split, seed: int) -> Case:
    """Draw a scene of one object, by stream 8: a class is asked for, so that all of the rest is left to the method.

    All cases are of seen combinations: training has seen every class, and no class is a combination.
    """
    _ = split
    draw = Draws(CASES_SEED + seed, number, _CLASS)
    name, style = draw.choose(OBJECTS), draw.choose(STYLES)
    colour = draw.choose([colour for colour in COLOURS if _one(style, name, colour).seen])
    target = compose(_one(style, name, colour), draw.choose(OFFSETS), draw.choose(OFFSETS))
    truth = EmojiScenes().render(target)
    return Case(
        task="class",
        number=number,
        split="train",
        image=torch.zeros_like(truth),
        mask=None,
        truth=truth,
        changed=torch.ones(1, CANVAS, CANVAS),
        source_text="",
        target_text=target.caption,
        source=None,
        target=target,
    )


def _one(style: str, name: str, colour: str) -> Description:
    return Description(things=((style, name),), colour=colour)


def _kept(pairs: Iterator[tuple[Description, Description]], split: Split, source_seen: bool = False) -> _Pairs:
    """Return the pairs of a split: both sides are of it, or with ``source_seen`` the source is always a seen one."""
    kept = []
    for before, after in pairs:
        held_out = split == "held_out"
        if after.held_out == held_out and before.held_out == (held_out and not source_seen):
            kept.append((before, after))
    return tuple(kept)


@cache
def _style_pairs(split: Split) -> _Pairs:
    every = product(OBJECTS, COLOURS)
    return _kept(((_one("flat", name, colour), _one("3d", name, colour)) for name, colour in every), split)


@cache
def _colour_pairs(split: Split) -> _Pairs:
    every = product(OBJECTS, STYLES)
    pairs = ((_one(style, name, "blue"), _one(style, name, "red")) for name, style in every)
    return _kept(pairs, split, source_seen=True)


@cache
def _object_pairs(split: Split) -> _Pairs:
    every = product(STYLES, COLOURS)
    pairs = ((_one(style, "cat", colour), _one(style, "panda", colour)) for style, colour in every)
    return _kept(pairs, split, source_seen=True)


@cache
def _order(n: int, seed: int, stream: int, held_out: bool) -> tuple[int, ...]:
    """Return the numbers below ``n`` shuffled (Fisher and Yates), so that no two cases are alike."""
    draw, order = Draws(CASES_SEED + seed, held_out, stream), list(range(n))
    for last in range(n - 1, 0, -1):
        other = draw.choose(range(last + 1))
        order[last], order[other] = order[other], order[last]
    return tuple(order)


def _attribute(task: str, stream: int, pairs: Callable[[Split], _Pairs]) -> _Draw:
    """Return what draws edits of one object: each pair of descriptions at each place once, in a random order."""

    def draw(number: int, split: Split, seed: int) -> Case:
        every = list(product(pairs(split), OFFSETS, OFFSETS))
        order = _order(len(every), seed, stream, split == "held_out")
        (before, after), across, along = every[order[number // 2 % len(every)]]
        return _case(task, number, split, compose(before, across, along), compose(after, across, along))

    return draw


def _case(task: str, number: int, split: Split, source: Scene, target: Scene) -> Case:
    image, truth = EmojiScenes().render_all([source, target])
    return Case(
        task=task,
        number=number,
        split=split,
        image=image,
        mask=None,
        truth=truth,
        changed=(image != truth).any(0, keepdim=True).to(torch.float32),
        source_text=source.caption,
        target_text=target.caption,
        source=source,
        target=target,
    )


#: One object, flat, becomes 3d in the same outline. Held out: object and colour, before as after.
flat_to_3d = _attribute("flat to 3d", _STYLE, _style_pairs)
#: The background of one object turns from blue to red. Held out: the object on red, one of six; on blue all are seen.
blue_to_red = _attribute("blue to red", _COLOUR, _colour_pairs)
#: A cat becomes a panda at the same place. Held out: a panda on yellow, the one such colour; a cat on it is seen.
cat_to_panda = _attribute("cat to panda", _OBJECT, _object_pairs)

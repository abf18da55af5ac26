"""The tasks of the benchmark: what is asked of an edit, and cases whose true answer is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.train.recogniser import Recogniser, Sighting, load_recogniser, reading_order
from steerdiff.train.scene_text import Split, known
from steerdiff.train.scenes import CANVAS, Draws, Edit, EmojiScenes, Item, Scene

from .attributes import blue_to_red, cat_to_panda, draw_class, flat_to_3d
from .cases import CASES_SEED, Case
from .inputs import box_around, box_hole, low_resolution, stroke_hole, strokes
from .subjects import draw_class_beside, draw_subject

__all__ = ["TASKS", "Case", "Task", "draw_cases", "shipped_recogniser"]

#: Random streams of the benchmark, beside those of the scenes and their edits (0 to 4), of ``attributes`` (8 to 11)
#: and of ``subjects`` (7): never renumbered.
_ADDED, _HOLE = 5, 6
_NEXT = 1_000_000  # added to a number for the next candidate, where the recogniser misreads the true answer
_TRIES = 20
_NO_TRUTH = ("inside", "outside", "feature_inside", "feature_outside", "iou")
_NO_ERRORS = (*_NO_TRUTH, "guide")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A kind of edit."""

    title: str  #: one or two words for tables
    note: str  #: one line: what is given, what is asked
    draw: Callable[[int, Split, int], Case]  #: number of a candidate, split, seed
    right: Callable[[Case, Sighting], bool]  #: whether what the recogniser sees has the attribute that was asked for
    without: tuple[str, ...] = ()  #: names of scores that say nothing here; they are NaN


def _scenes(split: Split, seed: int, pairs: float = 0.0) -> EmojiScenes:
    return EmojiScenes(seed=CASES_SEED + seed, split=split, pairs=pairs)


def _edit(task: str, kind: Edit, boxed: bool = False) -> Callable[[int, Split, int], Case]:
    """Return what draws edit pairs of one kind; ``boxed`` gives the method a box around what changes."""

    def draw(number: int, split: Split, seed: int) -> Case:
        pair = _scenes(split, seed).edit_pair(number, kind)
        return Case(
            task=task,
            number=number,
            split=split,
            image=pair.source.image,
            mask=box_around(pair.mask) if boxed else None,
            truth=pair.target.image,
            changed=pair.mask,
            source_text=pair.source.caption,
            target_text=pair.target.caption,
            source=pair.source.scene,
            target=pair.target.scene,
        )

    return draw


def _presence(task: str, adds: bool) -> Callable[[int, Split, int], Case]:
    """Return what draws a pair of objects, of which one, that random stream 5 names, is added or removed."""

    def draw(number: int, split: Split, seed: int) -> Case:
        scenes = _scenes(split, seed, pairs=1.0)
        both = scenes.scene(number)
        kept = Draws(scenes.seed, number, split == "held_out", _ADDED).choose(both.items)
        one = Scene(items=(kept,), colour=both.colour)
        source, target = (one, both) if adds else (both, one)
        image, truth = scenes.render_all([source, target])
        changed = (image != truth).any(0, keepdim=True).to(torch.float32)
        return Case(
            task=task,
            number=number,
            split=split,
            image=image,
            mask=box_around(changed),
            truth=truth,
            changed=changed,
            source_text=source.caption,
            target_text=target.caption,
            source=source,
            target=target,
        )

    return draw


def _restoration(task: str, degrade: Callable[[Tensor], Tensor] | None) -> Callable[[int, Split, int], Case]:
    """Return what draws a scene and spoils the whole picture; all of these tasks share their scenes."""

    def draw(number: int, split: Split, seed: int) -> Case:
        truth = _scenes(split, seed)[number]
        return Case(
            task=task,
            number=number,
            split=split,
            image=truth.image if degrade is None else degrade(truth.image),
            mask=None,
            truth=truth.image,
            changed=torch.ones(1, CANVAS, CANVAS),
            source_text=truth.caption,
            target_text=truth.caption,
            source=truth.scene,
            target=truth.scene,
        )

    return draw


def _hole(number: int, split: Split, seed: int) -> Case:
    """Draw the scene of a restoration with a hole in it: boxes and strokes in turn, for both splits, by stream 6."""
    whole = _restoration("hole", None)(number, split, seed)
    item = _items(whole.target)[0]
    ink = (whole.truth != whole.truth[:, :1, :1]).any(0, keepdim=True).to(torch.float32)
    draw = Draws(CASES_SEED + seed, number, split == "held_out", _HOLE)
    cut = box_hole if number // 2 % 2 == 0 else stroke_hole
    mask = cut(ink, (item.x, item.y), draw)
    return replace(whole, image=whole.truth * (1 - mask), mask=mask, changed=mask)


def _draw(number: int, split: Split, seed: int) -> Case:
    """Draw the scene of a caption, of one object and of two in turn, for both splits."""
    truth = _scenes(split, seed, pairs=float(number // 2 % 2))[number]
    return Case(
        task="draw",
        number=number,
        split=split,
        image=torch.zeros_like(truth.image),
        mask=None,
        truth=truth.image,
        changed=torch.ones(1, CANVAS, CANVAS),
        source_text="",
        target_text=truth.caption,
        source=None,
        target=truth.scene,
    )


def _items(scene: Scene | None) -> tuple[Item, ...]:
    return () if scene is None else scene.items


def _names(scene: Scene | None) -> set[str]:
    return {item.object for item in _items(scene)}


def _as_captioned(case: Case, sight: Sighting) -> bool:
    return case.target is not None and sight == reading_order(case.target.description)


def _same_object(case: Case, sight: Sighting) -> bool:
    return [name for _, name in sight.things] == [item.object for item in _items(case.target)]


def _same_style(case: Case, sight: Sighting) -> bool:
    return sight.things[0][0] == _items(case.target)[0].style


def _same_colour(case: Case, sight: Sighting) -> bool:
    return case.target_text.endswith(f" {sight.colour} background")


def _added(case: Case, sight: Sighting) -> bool:
    if case.target is None or len(sight.things) != 2:
        return False
    wanted = reading_order(case.target.description).things
    new = _names(case.target) - _names(case.source)
    return all(seen == name for (_, seen), (_, name) in zip(sight.things, wanted, strict=True) if name in new)


def _removed(case: Case, sight: Sighting) -> bool:
    seen = {name for _, name in sight.things}
    return _names(case.target) <= seen and not (_names(case.source) - _names(case.target)) & seen


def _moved(case: Case, sight: Sighting) -> bool:
    if case.target is None:
        return False
    wanted = reading_order(case.target.description)
    names = [[name for _, name in one.things] for one in (sight, wanted)]
    return names[0] == names[1] and sight.layout == wanted.layout


TASKS: dict[str, Task] = {
    "object": Task(
        title="object",
        note="another object at the same place, inside a box; right: that object alone is seen",
        draw=_edit("object", "object", boxed=True),
        right=_same_object,
    ),
    "style": Task(
        title="style",
        note="flat becomes 3d or the reverse, in the same outline; right: that style is seen",
        draw=_edit("style", "style"),
        right=_same_style,
    ),
    "colour": Task(
        title="background",
        note="another colour of the background; right: that colour is seen",
        draw=_edit("colour", "colour"),
        right=_same_colour,
    ),
    "add": Task(
        title="add",
        note="a second object, inside a box; right: it is seen at its place beside another",
        draw=_presence("add", adds=True),
        right=_added,
    ),
    "remove": Task(
        title="remove",
        note="one of two objects goes, inside a box; right: it is not seen and the other is",
        draw=_presence("remove", adds=False),
        right=_removed,
        without=("layout",),
    ),
    "move": Task(
        title="move",
        note="two objects change places; right: both are seen, each at the other's place",
        draw=_edit("move", "relation"),
        right=_moved,
    ),
    "hole": Task(
        title="fill a hole",
        note="a box or a brush stroke hides much of the object; right: all that the caption says is seen",
        draw=_hole,
        right=_as_captioned,
    ),
    "low resolution": Task(
        title="low resolution",
        note="8 x 8 pixels, enlarged again; right: all that the caption says is seen",
        draw=_restoration("low resolution", low_resolution),
        right=_as_captioned,
    ),
    "strokes": Task(
        title="strokes",
        note="coarse strokes of six colours; right: all that the caption says is seen",
        draw=_restoration("strokes", strokes),
        right=_as_captioned,
    ),
    "subject": Task(
        title="subject",
        note="one picture of a new subject, asked for on another background; right: that background is seen",
        draw=draw_subject,
        right=_same_colour,
        without=("layout",),
    ),
    "class beside subject": Task(
        title="class beside subject",
        note="one picture of a new subject, but its class is asked for in 3d on that background; right: all that the "
        "caption says is seen",
        draw=draw_class_beside,
        right=_as_captioned,
        without=_NO_TRUTH,
    ),
    "reconstruct": Task(
        title="reconstruct",
        note="the image itself is asked for again; right: all that the caption says is seen",
        draw=_restoration("reconstruct", None),
        right=_as_captioned,
    ),
    "draw": Task(
        title="draw",
        note="a caption alone, of one object or of two; right: all that it says is seen",
        draw=_draw,
        right=_as_captioned,
        without=_NO_ERRORS,
    ),
    "class": Task(
        title="draw a class",
        note="the name of an object alone, none held out; right: that object alone is seen, in whatever style and on "
        "whatever background",
        draw=draw_class,
        right=_same_object,
        without=_NO_ERRORS,
    ),
    "flat to 3d": Task(
        title="flat to 3d",
        note="one flat object becomes 3d in the same outline; right: the style 3d is seen",
        draw=flat_to_3d,
        right=_same_style,
    ),
    "blue to red": Task(
        title="blue to red",
        note="the background of one object turns from blue to red, held out: six objects on red; right: red is seen",
        draw=blue_to_red,
        right=_same_colour,
    ),
    "cat to panda": Task(
        title="cat to panda",
        note="one cat becomes a panda, held out: a panda on yellow; right: a panda alone is seen",
        draw=cat_to_panda,
        right=_same_object,
    ),
}


@cache
def shipped_recogniser() -> Recogniser:
    """Return the shipped recogniser, loaded once a process."""
    return load_recogniser()


@lru_cache(maxsize=512)
def _readable(task: str, number: int, seed: int) -> Case:
    split: Split = "held_out" if number % 2 else "train"
    for attempt in range(_TRIES):
        case = replace(TASKS[task].draw(number + attempt * _NEXT, split, seed), number=number)
        if TASKS[task].right(case, shipped_recogniser().read(case.truth[None])[0]):
            break
    return case


def draw_cases(task: str, n: int, seed: int = 0) -> list[Case]:
    """Return the first ``n`` cases of a task; case k is the same whatever ``n`` is.

    Even numbers have seen combinations of object and background, odd ones held-out ones (in "colour" and "subject" the
    target's: an object has one held-out colour only, so that the source is seen). The truth of each case is right in
    the eyes of the shipped recogniser: where it is not, which is rare, candidate k + 1000000 is taken instead of k,
    then k + 2000000 and so on. In "class" all cases have seen combinations. The source of "blue to red" and "cat to
    panda" is a seen one as in "colour"; their cases of one split are all different.

    Args:
        task: Name in ``TASKS``.
        n: How many.
        seed: Another one draws other cases; at least 0.

    Raises:
        UserError: The task is unknown, or a number out of range.
    """
    known("task", task, tuple(TASKS))
    require(n >= 1, f"n is {n}; ask for at least one case")
    require(seed >= 0, f"seed is {seed}; it must be at least 0")
    return [_readable(task, number, seed) for number in range(n)]

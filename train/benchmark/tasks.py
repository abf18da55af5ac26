"""The tasks of the benchmark: what is asked of an edit, and cases whose true answer is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from steerdiff.train.recogniser import Sighting
from steerdiff.train.scene_text import Split
from steerdiff.train.scenes import EmojiScenes, Scene

__all__ = ["TASKS", "Case", "Task", "draw_cases"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One edit that is asked for, with its true answer."""

    task: str  #: name in ``TASKS``
    number: int  #: from 0
    split: Split  #: of the target's combinations of object and colour
    image: Tensor  #: what a method is given, float32 [3, 64, 64] in [-1, 1]
    mask: Tensor | None  #: where it may change, as a user would draw it, float32 [1, 64, 64]; None: the task has none
    truth: Tensor  #: the true answer, float32 [3, 64, 64] in [-1, 1]
    changed: Tensor  #: float32 [1, 64, 64], 1 where the true answer differs from the image; all 1 where all is restored
    source_text: str  #: what the image shows
    target_text: str  #: what the answer shows
    target: Scene  #: the scene of the true answer


@dataclass(frozen=True, kw_only=True)
class Task:
    """A kind of edit."""

    title: str  #: one or two words for tables
    note: str  #: one line: what is given, what is asked
    draw: Callable[[int, Split, int], Case]  #: number, split, seed
    right: Callable[[Case, Sighting], bool]  #: whether what the recogniser sees has the attribute that was asked for


def _object(number: int, split: Split, seed: int) -> Case:
    pair = EmojiScenes(seed=3_000_000 + seed, split=split, pairs=0.0).edit_pair(number, "object")
    return Case(
        task="object",
        number=number,
        split=split,
        image=pair.source.image,
        mask=pair.mask,
        truth=pair.target.image,
        changed=pair.mask,
        source_text=pair.source.caption,
        target_text=pair.target.caption,
        target=pair.target.scene,
    )


TASKS: dict[str, Task] = {
    "object": Task(
        title="object",
        note="another object at the same place, inside a box",
        draw=_object,
        right=lambda case, sight: sight.things[0][1] == case.target.items[0].object,
    )
}


def draw_cases(task: str, n: int, seed: int = 0) -> list[Case]:
    """Return the first ``n`` cases of a task: even numbers of seen combinations, odd ones of held-out ones."""
    return [TASKS[task].draw(number, "held_out" if number % 2 else "train", seed) for number in range(n)]

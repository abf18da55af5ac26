"""A case of the benchmark: what a method is given, what is asked of it, and the true answer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from steerdiff.train.scene_text import Split
from steerdiff.train.scenes import Scene

__all__ = ["CASES_SEED", "Case"]

#: Added to the seed of the cases: no training run, evaluation or demo has it.
CASES_SEED = 3_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One edit that is asked for, with its true answer."""

    task: str  #: name in ``TASKS``
    number: int  #: from 0
    split: Split  #: of the target's combinations of object and colour
    image: Tensor  #: what a method is given, float32 [3, 64, 64] in [-1, 1]; grey where there is no image
    mask: Tensor | None  #: where it may change, as a user would draw it, float32 [1, 64, 64]; None: the task has none
    truth: Tensor  #: the true answer, float32 [3, 64, 64] in [-1, 1]
    changed: Tensor  #: float32 [1, 64, 64], 1 where the true answer differs from the image; all 1 where all is restored
    source_text: str  #: what the image shows, or showed before it was degraded; "" where there is no image
    target_text: str  #: what the answer shows
    source: Scene | None  #: the scene of the image, before it was degraded; None where there is none
    target: Scene | None  #: the scene of the true answer; None for "subject", whose art no scene has

    @property
    def has_image(self) -> bool:
        """Whether there is an image to start from; without one only the caption or the class is given."""
        return self.source_text != ""

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the objects that the true answer shows, in the caption's order; none for "subject"."""
        return () if self.target is None else tuple(item.object for item in self.target.items)

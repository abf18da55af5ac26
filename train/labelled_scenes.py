"""Emoji scenes of one object with the number of the object as label: what a noisy classifier learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import require

from .randomness import SampleRandom
from .scenes import CANVAS, OBJECTS, EmojiScenes

__all__ = ["LabelledScenes"]


@dataclass(frozen=True)
class LabelledScenes:
    """An endless set of single objects; the label is the place of the object in ``OBJECTS``.

    A classifier guides towards objects on any background, so that it must not learn which go together in training: a
    share of the scenes shows held-out combinations, as many as if nothing were held out.
    """

    classes: ClassVar[tuple[str, ...]] = tuple(OBJECTS)

    seed: int = 0  #: at least 0
    image_size: int = CANVAS  #: side of the images in pixels, 64 or 32
    held_out: float = 0.125  #: share of scenes from held-out combinations
    shift: int = 0  #: images are moved by up to this many pixels each way, their edges repeated

    def __post_init__(self) -> None:
        require(0 <= self.held_out <= 1, f"held_out is {self.held_out}; it is a share between 0 and 1")
        require(0 <= self.shift <= 8, f"shift is {self.shift}; it must be between 0 and 8 pixels")
        _ = EmojiScenes(self.seed, "train", 0.0, self.image_size)  # checks seed and size

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images [B, 3, H, W] in [-1, 1] and labels, int64 [B]."""
        random = SampleRandom(self.seed, indices)
        unseen = (random.uniform("held out") < self.held_out).tolist()
        seen_set = EmojiScenes(self.seed, "train", 0.0, self.image_size)
        unseen_set = EmojiScenes(self.seed, "held_out", 0.0, self.image_size)
        scenes = [(unseen_set if u else seen_set).scene(i) for i, u in zip(indices, unseen, strict=True)]
        labels = torch.tensor([self.classes.index(scene.items[0].object) for scene in scenes])
        return self._moved(seen_set.render_all(scenes), random), labels

    def _moved(self, images: Tensor, random: SampleRandom) -> Tensor:
        if self.shift == 0:
            return images
        side, count = images.shape[-1], 2 * self.shift + 1
        padded = functional.pad(images, (self.shift,) * 4, mode="replicate")
        moves = [(random.uniform(f"shift {axis}") * count).long().tolist() for axis in "yx"]
        return torch.stack([p[:, y : y + side, x : x + side] for p, y, x in zip(padded, *moves, strict=True)])

"""Scenes for networks that look at images: all combinations, seldom ones as often as others, seen imperfectly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import require

from .randomness import mix
from .scenes import CANVAS, EmojiScenes, Scene

__all__ = ["Blemishes", "BothSplits", "augment", "check_blemishes"]


class Blemishes(Protocol):
    """How much images are changed, so that a network also reads those that a diffusion model draws."""

    @property
    def jitter(self) -> int:
        """Images are moved by up to this many pixels each way."""

    @property
    def blur(self) -> float:
        """Up to this share of a 3 x 3 binomial blur is mixed in."""

    @property
    def noise(self) -> float:
        """Highest standard deviation of Gaussian noise, in image units."""

    @property
    def tint(self) -> float:
        """Highest change of each channel's gain and offset."""


def check_blemishes(config: Blemishes) -> None:
    """Raise UserError for amounts that are not allowed."""
    require(0 <= config.jitter <= 8, f"jitter is {config.jitter}; it must be between 0 and 8 pixels")
    for name in ("blur", "noise", "tint"):
        require(getattr(config, name) >= 0, f"{name} is {getattr(config, name)}; it must be at least 0")


def augment(images: Tensor, config: Blemishes, generator: torch.Generator) -> Tensor:
    """Return images [B, 3, H, W] moved, blurred, tinted and made noisy at random, each by its own amount."""
    n, _, height, width = images.shape

    def amount(highest: float) -> Tensor:
        return torch.rand(n, 1, 1, 1, generator=generator) * highest

    margin = config.jitter
    padded = functional.pad(images, (margin,) * 4, mode="replicate")
    moves = torch.randint(0, 2 * margin + 1, (n, 2), generator=generator).tolist()
    images = torch.stack([p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, moves, strict=True)])
    taps = torch.tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(taps, taps).expand(3, 1, 3, 3)
    blurred = functional.conv2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    images = images.lerp(blurred, amount(config.blur))
    gain, offset = (torch.rand(2, n, 3, 1, 1, generator=generator) * 2 - 1) * config.tint
    images = images * (1 + gain) + offset
    return images + torch.randn(images.shape, generator=generator) * amount(config.noise)


@dataclass(frozen=True, kw_only=True)
class BothSplits:
    """Emoji scenes of both splits: number i of a seed is the same in every process."""

    seed: int = 0  #: at least 0
    pairs: float = 0.3  #: share of scenes with two objects
    held_out: float = 0.125  #: share of scenes from held-out combinations; 1/8: as if nothing were held out

    image_size: int = CANVAS  #: side of the images in pixels, 64 or 32

    def __post_init__(self) -> None:
        require(0 <= self.held_out <= 1, f"held_out is {self.held_out}; it is a share between 0 and 1")
        _ = EmojiScenes(self.seed, "train", self.pairs, self.image_size)  # checks the rest

    def scenes(self, indices: Sequence[int]) -> list[Scene]:
        """Return the scenes of these numbers."""
        chance = (mix(self.seed, "split", indices) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        seen, unseen = EmojiScenes(self.seed, "train", self.pairs), EmojiScenes(self.seed, "held_out", self.pairs)
        return [(unseen if c < self.held_out else seen).scene(i) for i, c in zip(indices, chance, strict=True)]

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
        """Return the images [B, 3, image_size, image_size] in [-1, 1] and the captions of these scenes."""
        scenes = self.scenes(indices)
        return EmojiScenes(self.seed, image_size=self.image_size).render_all(scenes), [
            scene.caption for scene in scenes
        ]

"""A noisy CLIP as guidance uses it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from steerdiff.models.checkpoint import hash_of
from steerdiff.models.clip_towers import ClipFeatures
from steerdiff.samplers import NoiseSchedule

__all__ = ["Encoder", "NoisyEncoder"]

#: ``encoder(x [B, C, H, W], t [B]) -> ClipFeatures``
Encoder = Callable[[Tensor, Tensor], ClipFeatures]


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisyEncoder:
    """A noisy CLIP with what is known of it; called as ``encoder(x, t) -> ClipFeatures``."""

    network: nn.Module  #: ``network(x, t)``, a `steerdiff.models.noisy_clip.NoisyCLIP` in eval mode
    image_size: int  #: height and width of its images in pixels
    schedule: NoiseSchedule | None = None  #: the noise that it learned, where the file says
    clip_hash: str | None = None  #: SHA-256 of the clean CLIP that it was tuned to agree with
    name: str = "custom"  #: where the weights come from, for the record
    files: tuple[Path, ...] = ()  #: files of the weights, for the record

    @functools.cached_property
    def weights_hash(self) -> str | None:
        """SHA-256 of the weights' file, for the record."""
        return hash_of(self.files)

    def __call__(self, x: Tensor, t: Tensor) -> ClipFeatures:
        """Features in float32 of noisy images [B, 3, H, W] at times ``t`` [B]; gradients flow to ``x``."""
        weight = next(self.network.parameters())
        maps, vector = self.network(x.to(weight.dtype), t)
        return ClipFeatures(tuple(one.to(torch.float32) for one in maps), vector.to(torch.float32))

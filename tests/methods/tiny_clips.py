"""CLIPs small enough for tests, in the place of the shipped ones: any name gives one, the same each time."""

from __future__ import annotations

import functools
import zlib
from typing import Any

import torch

from steerdiff.guidance.noisy_encoder import NoisyEncoder
from steerdiff.models.clip import Clip, build_clip
from steerdiff.models.clip_words import own_vocabulary
from steerdiff.models.noisy_clip import NoisyClipConfig, from_clip
from steerdiff.models.published.spec import ClipConfig

__all__ = ["load_tiny", "tiny_clip", "tiny_noisy"]

WORDS = ("a", "red", "cat", "dog")


@functools.cache
def tiny_clip(name: str = "clip", size: int = 8) -> Clip:
    """A vision transformer for images of ``size`` pixels that reads up to four of four words, with random weights."""
    config = ClipConfig(
        embed_dim=12,
        vision_cfg={"image_size": size, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4},
        text_cfg={"context_length": 6, "vocab_size": own_vocabulary(WORDS), "width": 16, "heads": 2, "layers": 1},
        quick_gelu=False,
    )
    torch.manual_seed(zlib.crc32(name.encode()))
    return Clip(network=build_clip(config), config=config, words=WORDS, name=name)


@functools.cache
def tiny_noisy(name: str = "noisy-clip", size: int = 8) -> NoisyEncoder:
    """A noisy CLIP whose time does something."""
    clip = tiny_clip(name, size)
    torch.manual_seed(zlib.crc32(name.encode()))
    network = from_clip(clip.network, NoisyClipConfig(init="published", frequencies=8, hidden=16)).requires_grad_(False)
    return NoisyEncoder(network=network, image_size=size, name=name)


def load_tiny(source: Any, *args: Any, **options: Any) -> Any:
    """Stand in for ``load_cached``: what has "noisy" in its name is a noisy CLIP, anything else a clean one."""
    return (tiny_noisy if "noisy" in str(source) else tiny_clip)(str(source))

"""Models small enough to be run thousands of times: tiny random networks with text, and formulas that are exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steerdiff.guidance import Model
from steerdiff.models.config import UNetConfig
from steerdiff.models.text import TextConfig, WordEncoder
from steerdiff.models.unet import UNet
from steerdiff.samplers import NoiseSchedule

WORDS = ("a", "red", "cat", "dog")
UNET = UNetConfig(
    model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_at=(1,), context_dim=16, unshuffle=2
)
TEXT = TextConfig(words=WORDS, width=16, depth=1, heads=2, length=6)


def tiny_text_model(size: int = 8, **fields: Any) -> Model:
    """A v-prediction UNet with random weights, its zero-initialised layers too, and a word encoder."""
    torch.manual_seed(7)
    unet, text = UNet(UNET), WordEncoder(TEXT)
    with torch.no_grad():
        for parameter in unet.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    unet.eval().requires_grad_(False), text.eval().requires_grad_(False)
    defaults = {"schedule": NoiseSchedule.cosine(100), "parameterization": "v", "image_size": size, "name": "tiny"}
    return Model(**{"network": unet, "text": text, **defaults, **fields})


class Recording:
    """A network that notes how often and with how many rows it is called."""

    def __init__(self, network: Callable[..., Tensor]) -> None:
        self.network, self.rows = network, list[int]()

    def __call__(self, x: Tensor, t: Tensor, **arguments: Any) -> Tensor:
        self.rows.append(x.shape[0])
        return self.network(x, t, **arguments)


def formula_model(
    network: Callable[..., Tensor], size: int, schedule: NoiseSchedule | None = None, **fields: Any
) -> Model:
    """A model around a formula ``network(x, t) -> eps``."""
    schedule = NoiseSchedule.linear(1000) if schedule is None else schedule
    return Model(network=network, schedule=schedule, image_size=size, **fields)


def gaussian_eps(schedule: NoiseSchedule, mean: float = 0.0, std: float = 0.5) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact eps of independent pixels from N(mean, std^2)."""

    def eps(x: Tensor, t: Tensor) -> Tensor:
        ab = schedule.alpha_bar(float(t[0]))
        return math.sqrt(1 - ab) * (x - math.sqrt(ab) * mean) / (ab * std**2 + 1 - ab)

    return eps


def paired_eps(schedule: NoiseSchedule, correlation: float, std: float = 0.5) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact eps of pixel pairs (columns 2k and 2k + 1) from a centred Gaussian with the given correlation."""

    def eps(x: Tensor, t: Tensor) -> Tensor:
        ab = schedule.alpha_bar(float(t[0]))
        left, right = x[..., 0::2], x[..., 1::2]
        both = (left + right) / (ab * std**2 * (1 + correlation) + 1 - ab)
        apart = (left - right) / (ab * std**2 * (1 - correlation) + 1 - ab)
        pairs = torch.stack([both + apart, both - apart], dim=-1) / 2
        return math.sqrt(1 - ab) * pairs.flatten(-2)

    return eps


def half_mask(size: int) -> Tensor:
    """A mask [1, 1, size, size] whose left half may change."""
    mask = torch.zeros(1, 1, size, size)
    mask[..., : size // 2] = 1
    return mask


def pictures(count: int, size: int, seed: int = 0) -> Tensor:
    """Random images [count, 3, size, size] in [-1, 1]."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1

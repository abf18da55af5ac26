"""The way down and the middle, which UNet and noisy classifier share, and the layers that both are built from."""

from __future__ import annotations

from typing import Literal

from torch import nn

from .attention import AttentionBlock, SpatialTransformer
from .config import UNetConfig
from .control import Site
from .layers import Block, Downsample, ResBlock, Upsample

__all__ = ["attention", "middle", "resampling", "time_layers", "way_down"]


def time_layers(config: UNetConfig) -> nn.Sequential:
    """Return the two linear layers between the sinusoidal features and the time embedding."""
    width = config.time_channels
    return nn.Sequential(nn.Linear(config.model_channels, width), nn.SiLU(), nn.Linear(width, width))


def way_down(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """Return ``input_blocks`` and the channels of each block's output, which the way up concatenates."""
    channels = int(config.channel_mult[0] * config.model_channels)
    blocks = nn.ModuleList([Block(nn.Conv2d(config.in_channels * config.unshuffle**2, channels, 3, padding=1))])
    widths = [channels]
    for level, mult in enumerate(config.channel_mult):
        for _ in range(config.num_res_blocks):
            out_channels = int(mult * config.model_channels)
            layers: list[nn.Module] = [ResBlock(config, channels, out_channels)]
            channels = out_channels
            if 2**level in config.attention_at:
                layers.append(attention(config, channels, f"input_blocks.{len(blocks)}.1", "down", 2**level))
            blocks.append(Block(*layers))
            widths.append(channels)
        if level + 1 < len(config.channel_mult):
            blocks.append(Block(resampling(config, channels, down=True)))
            widths.append(channels)
    return blocks, widths


def middle(config: UNetConfig, channels: int) -> Block:
    """Return ``middle_block``: attention between two residual blocks, at the lowest resolution."""
    return Block(
        ResBlock(config, channels, channels),
        attention(config, channels, "middle_block.1", "mid", 2 ** (len(config.channel_mult) - 1)),
        ResBlock(config, channels, channels),
    )


def resampling(config: UNetConfig, channels: int, *, down: bool) -> nn.Module:
    """Return the layer that halves (``down``) or doubles the resolution."""
    learned = config.conv_resample and not config.resblock_updown
    layer: nn.Module = Downsample(channels, learned, config.pads_after) if down else Upsample(channels, learned)
    return ResBlock(config, channels, channels, resample=layer) if config.resblock_updown else layer


def attention(
    config: UNetConfig, channels: int, name: str, place: Literal["down", "mid", "up"], factor: int
) -> AttentionBlock | SpatialTransformer:
    """Return what ``config`` has where a level carries attention: plain self-attention, or a transformer with text."""
    site = Site(name, "self", place, factor)
    return (AttentionBlock if config.context_dim is None else SpatialTransformer)(config, channels, site)

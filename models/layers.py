"""Building blocks of the UNet. Module names are those of the published checkpoints, so that these load by name."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .attention import AttentionBlock, SpatialTransformer
from .config import UNetConfig
from .control import Control
from .norm import GroupNorm, Layers, norm_act, zeroed

__all__ = ["Block", "Downsample", "ResBlock", "Upsample", "time_embedding", "upsampled"]


def time_embedding(t: Tensor, channels: int, order: Literal["cos_sin", "sin_cos"] = "cos_sin") -> Tensor:
    """Return sinusoidal features [B, channels].

    Args:
        t: Training times [B], in [0, T); fractions are allowed.
        channels: Width of the result.
        order: "cos_sin" is guided-diffusion's ``timestep_embedding``, whose frequencies fall towards 1/10000 and
            do not reach it; "sin_cos" is DDPM's, whose last frequency is 1/10000.

    Source: Vaswani et al. 2017, section 3.5; the official code of Ho et al. 2020 and of Dhariwal & Nichol 2021.
    """
    half = channels // 2
    last = half if order == "cos_sin" else half - 1
    frequencies = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10000) / last))
    angles = t.float()[:, None] * frequencies
    parts = (angles.cos(), angles.sin()) if order == "cos_sin" else (angles.sin(), angles.cos())
    return functional.pad(torch.cat(parts, dim=1), (0, channels % 2))


def upsampled(low_res: Tensor, size: tuple[int, int]) -> Tensor:
    """Return ``low_res`` [B, C, h, w] at ``size`` (height, width), bilinear: what ADM's upsamplers see beside x.

    Source: guided-diffusion's ``SuperResModel``; corners are not aligned.
    """
    return functional.interpolate(low_res, size, mode="bilinear")


class Upsample(nn.Module):
    """Double the resolution by nearest neighbour, then a 3x3 convolution if ``learned``."""

    def __init__(self, channels: int, learned: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, 2H, 2W]."""
        x = functional.interpolate(x, scale_factor=2, mode="nearest")
        return x if self.conv is None else self.conv(x)


class Downsample(nn.Module):
    """Halve the resolution by a strided 3x3 convolution if ``learned``, else by averaging 2x2 cells.

    With ``pads_after`` the convolution sees one row of zeros below and one column to the right, as DDPM's does,
    instead of zeros all around.
    """

    def __init__(self, channels: int, learned: bool, pads_after: bool = False) -> None:
        super().__init__()
        padding = 0 if pads_after else 1
        self.op: nn.Module = nn.Conv2d(channels, channels, 3, 2, padding) if learned else nn.AvgPool2d(2)
        self.pads_after = pads_after and learned

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, H/2, W/2]."""
        y: Tensor = self.op(functional.pad(x, (0, 1, 0, 1)) if self.pads_after else x)
        return y


class ResBlock(nn.Module):
    """ADM's residual block: norm, SiLU, [resample], conv; time; norm, SiLU, dropout, conv; plus the skip.

    Source: Dhariwal & Nichol 2021, section 3.1 and appendix A; guided-diffusion's ``ResBlock``.
    """

    def __init__(self, config: UNetConfig, channels: int, out_channels: int, resample: nn.Module | None = None) -> None:
        super().__init__()
        self.film = config.scale_shift_norm
        self.resample = resample
        self.in_layers = Layers(
            GroupNorm(channels, config.norm_eps), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        width = 2 * out_channels if self.film else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(config.time_channels, width))
        self.out_layers = Layers(
            GroupNorm(out_channels, config.norm_eps),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return [B, out_channels, H', W'] from ``x`` [B, channels, H, W] and the time embedding [B, time_channels]."""
        if self.resample is None:
            h = self.in_layers(x)
        else:
            norm, act, conv = self.in_layers
            h = conv(self.resample(norm_act(x, norm, act)))
            x = self.resample(x)
        time = self.emb_layers(emb)[:, :, None, None].to(h.dtype)
        norm, act, *rest = self.out_layers
        if self.film:
            scale, shift = time.chunk(2, dim=1)
            h = norm_act(h, norm, act, film=(scale, shift))  # act(norm(h) * (1 + scale) + shift)
        else:
            h = norm_act(h + time, norm, act)
        for layer in rest:
            h = layer(h)
        out: Tensor = self.skip_connection(x) + h
        return out


class Block(nn.Sequential):
    """Layers run one after another, each handed what it takes: time, text or control."""

    def forward(  # type: ignore[override]
        self, x: Tensor, emb: Tensor, context: Tensor | None, mask: Tensor | None, control: Control | None
    ) -> Tensor:
        """Run all layers on ``x`` [B, C, H, W]."""
        if control is not None and control.checkpoints and torch.is_grad_enabled():
            inside: Tensor = checkpoint(self._run, x, emb, context, mask, control, use_reentrant=False)
            return inside
        return self._run(x, emb, context, mask, control)

    def _run(
        self, x: Tensor, emb: Tensor, context: Tensor | None, mask: Tensor | None, control: Control | None
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context, mask, control)
            elif isinstance(layer, AttentionBlock):
                x = layer(x, control)
            else:
                x = layer(x)
        return x

"""The one UNet: ADM, latent diffusion, Stable Diffusion and the embedded model are configurations of it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from steerdiff.errors import require

from .attention import AttentionBlock, CrossAttention, SpatialTransformer
from .config import UNetConfig
from .control import Control, Site
from .layers import Block, Downsample, ResBlock, Upsample, time_embedding
from .norm import GroupNorm, zeroed

__all__ = ["UNet"]


class UNet(nn.Module):
    """UNet with time embedding, optional class labels and optional cross-attention to text.

    Its state dict has the layout of guided-diffusion and CompVis: ``time_embed``, ``label_emb``, ``input_blocks``,
    ``middle_block``, ``output_blocks``, ``out``.

    Source: Dhariwal & Nichol 2021, section 3; Rombach et al. 2022, section 3.3.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.time_channels
        self.time_embed = nn.Sequential(nn.Linear(config.model_channels, width), nn.SiLU(), nn.Linear(width, width))
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, width)
        self.sites: list[Site] = []
        self.input_blocks = nn.ModuleList()
        self.output_blocks = nn.ModuleList()
        widths = self._build_down()
        channels, factor = widths[-1], 2 ** (len(config.channel_mult) - 1)
        self.middle_block = Block(
            ResBlock(config, channels, channels),
            self._attention(channels, "middle_block.1", "mid", factor),
            ResBlock(config, channels, channels),
        )
        channels = self._build_up(widths)
        out = nn.Conv2d(channels, config.out_channels * config.unshuffle**2, 3, padding=1)
        self.out = nn.Sequential(GroupNorm(channels), nn.SiLU(), zeroed(out))

    def _build_down(self) -> list[int]:
        """Fill ``input_blocks``; return the channels of each block's output, which the way up concatenates."""
        config = self.config
        channels = int(config.channel_mult[0] * config.model_channels)
        stem = nn.Conv2d(config.in_channels * config.unshuffle**2, channels, 3, padding=1)
        self.input_blocks.append(Block(stem))
        widths = [channels]
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                out_channels = int(mult * config.model_channels)
                layers: list[nn.Module] = [ResBlock(config, channels, out_channels)]
                channels = out_channels
                if 2**level in config.attention_at:
                    name = f"input_blocks.{len(self.input_blocks)}.1"
                    layers.append(self._attention(channels, name, "down", 2**level))
                self.input_blocks.append(Block(*layers))
                widths.append(channels)
            if level + 1 < len(config.channel_mult):
                self.input_blocks.append(Block(self._resample(channels, down=True)))
                widths.append(channels)
        return widths

    def _build_up(self, widths: list[int]) -> int:
        """Fill ``output_blocks``; return the channels of the last one."""
        config = self.config
        widths = list(widths)
        channels = widths[-1]
        for level in reversed(range(len(config.channel_mult))):
            for index in range(config.num_res_blocks + 1):
                out_channels = int(config.channel_mult[level] * config.model_channels)
                layers: list[nn.Module] = [ResBlock(config, channels + widths.pop(), out_channels)]
                channels = out_channels
                if 2**level in config.attention_at:
                    name = f"output_blocks.{len(self.output_blocks)}.1"
                    layers.append(self._attention(channels, name, "up", 2**level))
                if level > 0 and index == config.num_res_blocks:
                    layers.append(self._resample(channels, down=False))
                self.output_blocks.append(Block(*layers))
        return channels

    def _resample(self, channels: int, *, down: bool) -> nn.Module:
        config, layer = self.config, Downsample if down else Upsample
        if config.resblock_updown:
            return ResBlock(config, channels, channels, resample=layer(channels, learned=False))
        return layer(channels, learned=config.conv_resample)

    def _attention(self, channels: int, name: str, place: Literal["down", "mid", "up"], factor: int) -> nn.Module:
        site = Site(name, "self", place, factor)
        if self.config.context_dim is None:
            block: nn.Module = AttentionBlock(self.config, channels, site)
        else:
            block = SpatialTransformer(self.config, channels, site)
        self.sites += [part.site for part in block.modules() if isinstance(part, (AttentionBlock, CrossAttention))]
        return block

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the torso runs in."""
        return next(self.parameters()).dtype

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
        control: Control | None = None,
        *,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the output of the network, [B, out_channels, H, W], in the dtype of ``x``.

        Args:
            x: Noisy images [B, in_channels, H, W]; H and W divisible by ``config.divisor``.
            t: Training times [B], in [0, T); fractions are allowed.
            context: Text states [B, L, context_dim]; needed exactly when the network has text.
            y: Class labels [B], integers in [0, num_classes); needed exactly when the network has classes.
            control: What to read or change inside; None costs nothing.
            context_mask: [B, L], True where a text state may be seen; None for all.

        Raises:
            UserError: A condition is missing or superfluous, a shape does not fit, or ``control`` concerns nothing.
        """
        self._check(x, context, y)
        height, width = (size // self.config.unshuffle for size in x.shape[-2:])
        if control is not None:
            control.check((site, height * width // site.factor**2) for site in self.sites)
        emb = self.time_embed(time_embedding(t, self.config.model_channels).to(self.dtype))
        if y is not None:
            emb = emb + self.label_emb(y)
        context = None if context is None else context.to(self.dtype)
        h = x.to(self.dtype)
        if self.config.unshuffle > 1:
            h = functional.pixel_unshuffle(h, self.config.unshuffle)
        skips = []
        for block in self.input_blocks:
            h = block(h, emb, context, context_mask, control)
            skips.append(h)
        h = self._bottleneck(h, emb, context, context_mask, control)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context, context_mask, control)
        h = self.out(h)
        if self.config.unshuffle > 1:
            h = functional.pixel_shuffle(h, self.config.unshuffle)
        return h.to(x.dtype)

    def _bottleneck(
        self, h: Tensor, emb: Tensor, context: Tensor | None, mask: Tensor | None, control: Control | None
    ) -> Tensor:
        h = self.middle_block(h, emb, context, mask, control)
        if control is None:
            return h
        if control.taps is not None and control.taps.h:
            control.taps.bottleneck = h
        return h if control.h_shift is None else h + control.h_shift.to(h)

    def _check(self, x: Tensor, context: Tensor | None, y: Tensor | None) -> None:
        config = self.config
        require(
            x.ndim == 4 and x.shape[1] == config.in_channels,
            f"x is {list(x.shape)}; this network takes [B, {config.in_channels}, H, W]",
        )
        require(
            all(size % config.divisor == 0 for size in x.shape[-2:]),
            f"x is {x.shape[-2]} x {x.shape[-1]} pixels; both must be divisible by {config.divisor}",
        )
        wants_text, wants_label = config.context_dim is not None, config.num_classes is not None
        require(
            (context is not None) == wants_text,
            "this network needs text states: pass context"
            if wants_text
            else "this network takes no text: drop context",
        )
        require(
            (y is not None) == wants_label,
            "this network needs class labels: pass y" if wants_label else "this network takes no labels: drop y",
        )

"""The one UNet: ADM, latent diffusion, Stable Diffusion and the embedded model are configurations of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from steerdiff.errors import require

from .attention import AttentionBlock, CrossAttention
from .config import UNetConfig
from .control import Control
from .layers import Block, ResBlock, time_embedding
from .norm import GroupNorm, Layers, zeroed
from .trunk import attention, middle, resampling, time_layers, way_down

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
        self.time_embed = time_layers(config)
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, config.time_channels)
        self.input_blocks, widths = way_down(config)
        center = middle(config, widths[-1])
        self.output_blocks, channels = _way_up(config, widths)
        self.middle_block = center  # after the way up: saved optimisers know weights by this order
        out = nn.Conv2d(channels, config.out_channels * config.unshuffle**2, 3, padding=1)
        self.out = Layers(GroupNorm(channels, config.norm_eps), nn.SiLU(), zeroed(out))
        layers = (layer for part in (self.input_blocks, center, self.output_blocks) for layer in part.modules())
        self.sites = [layer.site for layer in layers if isinstance(layer, (AttentionBlock, CrossAttention))]

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
        concat: Tensor | None = None,
    ) -> Tensor:
        """Return the output of the network, [B, out_channels, H, W], in the dtype of ``x``.

        Where ``control`` keeps the plain output beside the shifted one it has twice the channels.

        Args:
            x: Noisy images [B, C, H, W]; H and W divisible by ``config.divisor``, C and the channels of ``concat``
                together ``config.in_channels``.
            t: Training times [B], in [0, T); fractions are allowed.
            context: Text states [B, L, context_dim]; needed exactly when the network has text.
            y: Class labels [B], integers in [0, num_classes); needed exactly when the network has classes.
            control: What to read or change inside; None costs nothing.
            context_mask: [B, L], True where a text state may be seen; None for all.
            concat: [B, C', H, W], what the network sees beside ``x``: an upsampler's low-resolution image, inpainting's
                mask and masked latent, depth. None where ``x`` has all channels.

        Raises:
            UserError: A condition is missing or superfluous, a shape does not fit, or ``control`` concerns nothing.
        """
        self._check(x, context, y, concat)
        height, width = (size // self.config.unshuffle for size in x.shape[-2:])
        if control is not None:
            sites = ((site, height * width // site.factor**2) for site in self.sites)
            control.begin(sites, len(x), None if context is None else context.shape[1])
        emb = self.time_embed(time_embedding(t, self.config.model_channels, self.config.time_features).to(self.dtype))
        if y is not None:
            emb = emb + self.label_emb(y)
        rest = (emb, None if context is None else context.to(self.dtype), context_mask, control)
        h = (x if concat is None else torch.cat([x, concat.to(x.dtype)], dim=1)).to(self.dtype)
        if self.config.unshuffle > 1:
            h = functional.pixel_unshuffle(h, self.config.unshuffle)
        skips = []
        for block in self.input_blocks:
            h = block(h, *rest)
            skips.append(h)
        h = self.middle_block(h, *rest)
        if control is None:
            return self._up(h, skips, *rest).to(x.dtype)
        if control.taps is not None and control.taps.h:
            control.taps.bottleneck = h
        shifted = control.shifted(h, emb, t)
        if not control.keeps_plain:
            return self._up(shifted, skips, *rest).to(x.dtype)
        plain = self._up(h, list(skips), *rest)  # one after the other: it has the bits of a plain call
        return torch.cat([plain, self._up(shifted, skips, *rest)], dim=1).to(x.dtype)

    def _up(
        self,
        h: Tensor,
        skips: list[Tensor],
        emb: Tensor,
        context: Tensor | None,
        mask: Tensor | None,
        control: Control | None,
    ) -> Tensor:
        """Return the output [B, out_channels, H, W] for a bottleneck ``h``; uses up what the way down left."""
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context, mask, control)
        h = self.out(h)
        return functional.pixel_shuffle(h, self.config.unshuffle) if self.config.unshuffle > 1 else h

    def _check(self, x: Tensor, context: Tensor | None, y: Tensor | None, concat: Tensor | None) -> None:
        config = self.config
        if concat is not None:
            require(
                x.ndim == concat.ndim == 4 and x.shape[2:] == concat.shape[2:] and len(x) == len(concat),
                f"concat is {list(concat.shape)} beside x of {list(x.shape)}; both must have the same batch and size",
            )
        channels = (x.shape[1] if x.ndim == 4 else 0) + (0 if concat is None else concat.shape[1])
        require(
            channels == config.in_channels,
            f"x is {list(x.shape)}; this network takes [B, {config.in_channels}, H, W]"
            if concat is None
            else f"x and concat have {x.shape[1]} and {concat.shape[1]} channels; "
            f"this network takes {config.in_channels} together",
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


def _way_up(config: UNetConfig, widths: list[int]) -> tuple[nn.ModuleList, int]:
    """Return ``output_blocks`` and the channels of the last one; ``widths`` are those of the way down."""
    widths, blocks = list(widths), nn.ModuleList()
    channels = widths[-1]
    for level in reversed(range(len(config.channel_mult))):
        for index in range(config.num_res_blocks + 1):
            out_channels = int(config.channel_mult[level] * config.model_channels)
            layers: list[nn.Module] = [ResBlock(config, channels + widths.pop(), out_channels)]
            channels = out_channels
            if 2**level in config.attention_at:
                layers.append(attention(config, channels, f"output_blocks.{len(blocks)}.1", "up", 2**level))
            if level > 0 and index == config.num_res_blocks:
                layers.append(resampling(config, channels, down=False))
            blocks.append(Block(*layers))
    return blocks, channels

"""Encoder, decoder and codebook of the latent models. Module names are those of CompVis' checkpoints."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from .config import AutoencoderConfig
from .layers import Upsample
from .norm import GroupNorm, norm_act

__all__ = ["Codebook", "Decoder", "Encoder"]

EPS = 1e-6  # of all group norms of the published autoencoders
ROWS = 1024  # latent cells whose distances to all codebook vectors are held at a time


class Encoder(nn.Module):
    """Residual blocks at falling resolution, then the middle with attention.

    Source: Rombach et al. 2022, appendix G; CompVis' ``Encoder``.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels = config.channels
        self.conv_in = nn.Conv2d(config.in_channels, channels, 3, padding=1)
        self.down = nn.ModuleList()
        for level, mult in enumerate(config.channel_mult):
            blocks = [ResBlock(channels, mult * config.channels)]
            channels = mult * config.channels
            blocks += [ResBlock(channels, channels) for _ in range(config.num_res_blocks - 1)]
            resample = Downsample(channels) if level + 1 < len(config.channel_mult) else None
            self.down.append(Level(blocks, 2**level in config.attention_at, downsample=resample))
        self.mid = Middle(channels)
        self.norm_out = GroupNorm(channels, EPS)
        out_channels = 2 * config.z_channels if config.kind == "kl" else config.z_channels
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return [B, C, H / factor, W / factor] with C twice z_channels for KL."""
        h = self.conv_in(image)
        for level in self.down:
            h = level(h)
        out: Tensor = self.conv_out(norm_act(self.mid(h), self.norm_out))
        return out


class Decoder(nn.Module):
    """The middle with attention, then residual blocks at rising resolution; ``up.0`` is the full resolution.

    Source: Rombach et al. 2022, appendix G; CompVis' ``Decoder``.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels = config.channel_mult[-1] * config.channels
        self.conv_in = nn.Conv2d(config.z_channels, channels, 3, padding=1)
        self.mid = Middle(channels)
        levels = []
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            blocks = [ResBlock(channels, mult * config.channels)]
            channels = mult * config.channels
            blocks += [ResBlock(channels, channels) for _ in range(config.num_res_blocks)]
            resample = Upsample(channels, learned=True) if level > 0 else None
            levels.append(Level(blocks, 2**level in config.attention_at, upsample=resample))
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = GroupNorm(channels, EPS)
        self.conv_out = nn.Conv2d(channels, config.in_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Return images [B, in_channels, factor * h, factor * w] from ``z`` [B, z_channels, h, w]."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        image: Tensor = self.conv_out(norm_act(h, self.norm_out))
        return image


class Codebook(nn.Module):
    """The vectors that latents of a VQ autoencoder are rounded to.

    Source: van den Oord et al. 2017, eq. 1 to 3.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)

    def forward(self, z: Tensor) -> Tensor:
        """Return the nearest vector for each cell of ``z`` [B, dim, h, w]; the gradient passes straight through."""
        vectors, height = self.embedding.weight, z.shape[2]
        cells = rearrange(z.detach(), "b d h w -> (b h w) d")
        squares = vectors.float().square().sum(dim=1)
        indices = [
            torch.addmm(squares, rows.float(), vectors.float().T, alpha=-2).argmin(dim=1)
            for rows in torch.split(cells, ROWS)
        ]
        nearest = rearrange(vectors[torch.cat(indices)], "(b h w) d -> b d h w", b=len(z), h=height).contiguous()
        return z + (nearest - z).detach() if z.requires_grad else nearest


class ResBlock(nn.Module):
    """Norm, SiLU, conv, twice, plus the skip."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(channels, EPS)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(out_channels, EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = None if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, out_channels, H, W]."""
        h: Tensor = self.conv1(norm_act(x, self.norm1))
        h = self.conv2(norm_act(h, self.norm2))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nn.Module):
    """Self-attention of one head over the cells of the grid, its maps 1x1 convolutions; no attention map is stored."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, EPS)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, H, W]."""
        normed = self.norm(x)
        q, k, v = (rearrange(part(normed), "b c h w -> b 1 (h w) c") for part in (self.q, self.k, self.v))
        out = functional.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.proj_out(rearrange(out, "b 1 (h w) c -> b c h w", h=x.shape[2]))
        return x + mixed


class Middle(nn.Module):
    """Attention between two residual blocks, at the lowest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, H, W]."""
        h: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return h


class Downsample(nn.Module):
    """Halve the resolution by a strided convolution that sees zeros below and to the right only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, H/2, W/2]."""
        h: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return h


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention where the level has it, and the step to the next."""

    def __init__(
        self,
        blocks: list[ResBlock],
        attends: bool,
        downsample: Downsample | None = None,
        upsample: Upsample | None = None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(Attention(block.conv2.out_channels) for block in blocks if attends)
        self.downsample, self.upsample = downsample, upsample

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, H', W']."""
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x

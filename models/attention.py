"""The attention op and the two blocks that carry it: ADM's plain self-attention and Stable Diffusion's transformer."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from .config import UNetConfig
from .control import Control, Site
from .norm import GroupNorm, zeroed

__all__ = ["AttentionBlock", "CrossAttention", "SpatialTransformer", "attend"]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, site: Site, control: Control | None) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v, [B, heads, N, d]; the one attention of the library.

    Without ``control`` this is ``scaled_dot_product_attention`` and no map is ever stored.

    Args:
        q: Queries [B, heads, N, d].
        k: Keys [B, heads, L, d].
        v: Values [B, heads, L, d].
        mask: [B, 1, 1, L], True where a key may be seen, or None for all.
        site: Which attention of the network this is.
        control: What to read or change here.
    """
    if control is not None:
        controlled = control.attend(q, k, v, mask, site)
        if controlled is not None:
            return controlled
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class AttentionBlock(nn.Module):
    """Self-attention over the cells of the grid with a residual connection.

    Source: guided-diffusion's ``AttentionBlock``; its "legacy" order splits heads before q, k, v, the "new" after.
    """

    def __init__(self, config: UNetConfig, channels: int, site: Site) -> None:
        super().__init__()
        self.heads = config.heads(channels, up=site.place == "up")
        self.order = config.attention_order
        self.site = site
        self.norm = GroupNorm(channels, config.norm_eps)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, control: Control | None = None) -> Tensor:
        """Return [B, C, H, W]."""
        height = x.shape[2]
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        qkv = functional.linear(tokens, self.qkv.weight[:, :, 0], self.qkv.bias)
        pattern = "b n (m qkv d) -> qkv b m n d" if self.order == "legacy" else "b n (qkv m d) -> qkv b m n d"
        q, k, v = rearrange(qkv, pattern, qkv=3, m=self.heads)
        out = rearrange(attend(q, k, v, None, self.site, control), "b m n d -> b n (m d)")
        out = functional.linear(out, self.proj_out.weight[:, :, 0], self.proj_out.bias)
        return x + rearrange(out, "b (h w) c -> b c h w", h=height)


class CrossAttention(nn.Module):
    """Attention from cells to text states, or to the cells themselves when no context is given.

    With ``positioned`` the queries get a linear term in their cell's coordinates, 0 at first. Without it a network
    learns which word belongs on which side only as fast as zero padding tells its features where they are.
    """

    def __init__(self, channels: int, context_dim: int, heads: int, site: Site, positioned: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.site = site
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Identity())
        self.to_q_position = zeroed(nn.Linear(2, channels, bias=False)) if positioned else None

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        control: Control | None = None,
        coordinates: Tensor | None = None,
    ) -> Tensor:
        """Return the mixed values of what each cell looks at.

        Args:
            x: Cells [B, N, C].
            context: Text states [B, L, D]; None for the cells themselves.
            mask: [B, L], True where a text state may be seen; None for all.
            control: What to read or change here.
            coordinates: x and y of each cell [N, 2] in [-1, 1]; used by positioned queries only.

        Returns:
            [B, N, C].
        """
        source = x if context is None else context
        q = self.to_q(x)
        if self.to_q_position is not None:
            q = q + self.to_q_position(coordinates)
        q, k, v = (
            rearrange(part, "b n (m d) -> b m n d", m=self.heads) for part in (q, self.to_k(source), self.to_v(source))
        )
        seen = None if mask is None else mask[:, None, None, :]
        out: Tensor = self.to_out(rearrange(attend(q, k, v, seen, self.site, control), "b m n d -> b n (m d)"))
        return out


class GatedFeedForward(nn.Module):
    """GEGLU feed-forward (Shazeer 2020), named as Stable Diffusion's checkpoints name it."""

    def __init__(self, channels: int, mult: int) -> None:
        super().__init__()
        first = nn.Module()
        first.proj = nn.Linear(channels, 2 * mult * channels)
        self.net = nn.ModuleList([first, nn.Identity(), nn.Linear(mult * channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, N, C]."""
        value, gate = self.net[0].proj(x).chunk(2, dim=-1)  # type: ignore[operator]
        out: Tensor = self.net[2](value * functional.gelu(gate))
        return out


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward, each after a layer norm and with a residual."""

    def __init__(self, config: UNetConfig, channels: int, site: Site) -> None:
        super().__init__()
        heads, context_dim = config.heads(channels), config.context_dim or channels
        has_self = config.self_attention_at is None or site.factor in config.self_attention_at
        if has_self:
            self.norm1 = nn.LayerNorm(channels)
            self.attn1 = CrossAttention(channels, channels, heads, _named(site, "attn1", "self"))
        self.has_self = has_self
        cross = _named(site, "attn2", "cross")
        self.attn2 = CrossAttention(channels, context_dim, heads, cross, config.positioned_queries)
        self.ff = GatedFeedForward(channels, config.feed_forward_mult)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None,
        mask: Tensor | None,
        control: Control | None,
        coordinates: Tensor | None,
    ) -> Tensor:
        """Return [B, N, C]; arguments as for `CrossAttention`."""
        if self.has_self:
            x = x + self.attn1(self.norm1(x), control=control)
        x = x + self.attn2(self.norm2(x), context, mask, control, coordinates)
        x = x + self.ff(self.norm3(x))
        return x


class SpatialTransformer(nn.Module):
    """Transformer blocks over the cells of the grid, with a residual connection around them.

    Source: Rombach et al. 2022, appendix E.2.1; CompVis' ``SpatialTransformer``, whose norm has eps 1e-6.
    """

    def __init__(self, config: UNetConfig, channels: int, site: Site) -> None:
        super().__init__()
        self.linear, self.positioned = config.linear_projections, config.positioned_queries
        self.norm = GroupNorm(channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if self.linear else nn.Conv2d(channels, channels, 1)
        blocks = (
            TransformerBlock(config, channels, _named(site, f"transformer_blocks.{index}", site.kind))
            for index in range(config.transformer_depth)
        )
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = zeroed(nn.Linear(channels, channels) if self.linear else nn.Conv2d(channels, channels, 1))

    def forward(
        self, x: Tensor, context: Tensor | None, mask: Tensor | None = None, control: Control | None = None
    ) -> Tensor:
        """Return [B, C, H, W]."""
        height, width = x.shape[2:]
        tokens = self._project(self.proj_in, rearrange(self.norm(x), "b c h w -> b (h w) c"))
        coordinates = _coordinates(height, width, x.device).to(x.dtype) if self.positioned else None
        for block in self.transformer_blocks:
            tokens = block(tokens, context, mask, control, coordinates)
        return x + rearrange(self._project(self.proj_out, tokens), "b (h w) c -> b c h w", h=height)

    def _project(self, module: nn.Linear | nn.Conv2d, tokens: Tensor) -> Tensor:
        """Apply a linear map, stored either as such or as a 1x1 convolution, to [B, N, C]."""
        weight = module.weight if self.linear else module.weight[:, :, 0, 0]
        return functional.linear(tokens, weight, module.bias)


def _coordinates(height: int, width: int, device: torch.device) -> Tensor:
    """Return x and y of the cells' centres, row by row, [height * width, 2] in (-1, 1)."""
    rows, columns = ((2 * torch.arange(n, device=device) + 1) / n - 1 for n in (height, width))
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).reshape(-1, 2)


def _named(site: Site, suffix: str, kind: str) -> Site:
    return Site(f"{site.name}.{suffix}", "self" if kind == "self" else "cross", site.place, site.factor)

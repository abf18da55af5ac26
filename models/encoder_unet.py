"""ADM's noisy classifier: the way down of a UNet, its middle, and a pool that gives a logit for each class."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from steerdiff.errors import require

from .config import EncoderUNetConfig
from .layers import time_embedding
from .norm import GroupNorm, Layers, zeroed
from .trunk import middle, time_layers, way_down

__all__ = ["AttentionPool", "EncoderUNet"]

HIDDEN = 2048  # width between the two layers of the spatial pools


class AttentionPool(nn.Module):
    """One attention of the mean over all cells and the cells themselves; the mean's answer becomes the logits.

    Source: CLIP's ``AttentionPool2d`` (Radford et al. 2021) as guided-diffusion has it: heads split after q, k, v.
    """

    def __init__(self, cells: int, channels: int, heads: int, out_channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(channels, cells + 1))
        nn.init.normal_(self.positional_embedding, std=channels**-0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, out_channels] from ``x`` [B, channels, H, W]."""
        tokens = rearrange(x, "b c h w -> b (h w) c")
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.positional_embedding.T
        qkv = functional.linear(tokens, self.qkv_proj.weight[:, :, 0], self.qkv_proj.bias)
        q, k, v = rearrange(qkv, "b n (qkv m d) -> qkv b m n d", qkv=3, m=self.heads)
        pooled = functional.scaled_dot_product_attention(q[:, :, :1], k, v)  # only the mean's answer is asked for
        return functional.linear(pooled.flatten(1), self.c_proj.weight[:, :, 0], self.c_proj.bias)


class EncoderUNet(nn.Module):
    """Classifier of noisy images; its gradient guides a diffusion model.

    Its state dict has the layout of guided-diffusion: ``time_embed``, ``input_blocks``, ``middle_block``, ``out``.

    Source: Dhariwal & Nichol 2021, section 4; guided-diffusion's ``EncoderUNetModel`` with its four pools.
    """

    def __init__(self, config: EncoderUNetConfig) -> None:
        super().__init__()
        self.config = config
        trunk = config.trunk
        self.time_embed = time_layers(trunk)
        self.input_blocks, widths = way_down(trunk)
        self.middle_block = middle(trunk, widths[-1])
        self.reads_all = config.pool in ("spatial", "spatial_v2")
        self.out = _pool(config, [*widths, widths[-1]])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network runs in."""
        return next(self.parameters()).dtype

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return logits [B, classes] in the dtype of ``x``.

        Args:
            x: Noisy images [B, in_channels, H, W]; with the attention pool H and W are ``config.image_size``.
            t: Training times [B], in [0, T); fractions are allowed.

        Raises:
            UserError: The shape of ``x`` does not fit.
        """
        self._check(x)
        trunk = self.config.trunk
        emb = self.time_embed(time_embedding(t, trunk.model_channels, trunk.time_features).to(self.dtype))
        h = x.to(self.dtype)
        if trunk.unshuffle > 1:
            h = functional.pixel_unshuffle(h, trunk.unshuffle)
        means = []
        for block in (*self.input_blocks, self.middle_block):
            h = block(h, emb, None, None, None)
            if self.reads_all:
                means.append(h.mean(dim=(2, 3)))
        logits: Tensor = self.out(torch.cat(means, dim=1) if self.reads_all else h)
        return logits.to(x.dtype)

    def _check(self, x: Tensor) -> None:
        config = self.config
        require(
            x.ndim == 4 and x.shape[1] == config.trunk.in_channels,
            f"x is {list(x.shape)}; this classifier takes [B, {config.trunk.in_channels}, H, W]",
        )
        if config.pool == "attention":
            fits, wanted = all(side == config.image_size for side in x.shape[2:]), f"be {config.image_size}"
        else:
            divisor = config.trunk.divisor
            fits, wanted = all(side % divisor == 0 for side in x.shape[2:]), f"be divisible by {divisor}"
        require(fits, f"x is {x.shape[2]} x {x.shape[3]} pixels; both must {wanted} for this classifier")


def _pool(config: EncoderUNetConfig, widths: list[int]) -> nn.Sequential:
    """Return ``out``: what turns the last activation, or the means of all, into logits."""
    trunk, channels, classes = config.trunk, widths[-1], config.trunk.out_channels
    if config.pool == "spatial":
        return nn.Sequential(nn.Linear(sum(widths), HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))
    if config.pool == "spatial_v2":
        first, norm = nn.Linear(sum(widths), HIDDEN), GroupNorm(HIDDEN, trunk.norm_eps)
        return Layers(first, norm, nn.SiLU(), nn.Linear(HIDDEN, classes))
    head: list[nn.Module] = [GroupNorm(channels, trunk.norm_eps), nn.SiLU()]
    if config.pool == "adaptive":
        head += [nn.AdaptiveAvgPool2d(1), zeroed(nn.Conv2d(channels, classes, 1)), nn.Flatten()]
    else:
        cells = (config.image_size // trunk.divisor) ** 2
        head.append(AttentionPool(cells, channels, trunk.heads(channels), classes))
    return Layers(*head)

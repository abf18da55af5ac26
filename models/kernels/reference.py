"""The mathematics of the fused kernels in PyTorch: what runs on the CPU, and what the kernels are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["attention_maps", "edited", "led", "norm_silu", "norm_silu_backward", "rows_of", "with_rows", "word_sums"]

Rows = Sequence[int]


def rows_of(tensor: Tensor, rows: Rows) -> Tensor:
    """Return some rows; unlike indexing by a list this sends no index to the device."""
    return torch.stack([tensor[row] for row in rows])


def with_rows(tensor: Tensor, rows: Rows, new: Tensor) -> Tensor:
    """Return ``tensor`` with ``new`` in the place of some rows."""
    out = tensor.clone()  # keeps the order in memory, which fused attention chose
    for row, part in zip(rows, new.unbind(), strict=True):
        out[row] = part
    return out


def attention_maps(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Return the probabilities [B, heads, N, L] of queries and keys, in float32 or wider."""
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    maps: Tensor = scores.softmax(dim=-1)
    return maps


def edited(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    rows: tuple[Rows, Rows],
    values: tuple[Tensor, Tensor],
) -> Tensor:
    """Return attention whose target rows are ``P_target V + P_source taken - P_target removed``, without a map.

    Args:
        q: Queries [B, heads, N, d].
        k: Keys [B, heads, L, d].
        v: Values [B, heads, L, d].
        mask: [B or 1, 1, 1, L], True where a key may be seen, or None.
        rows: The source rows and the target rows, E of each.
        values: ``taken`` and ``removed``, each [E, heads, L, d].

    Returns:
        [B, heads, N, d].
    """
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    source, target = rows
    if not target:
        return out
    both = (*source, *target)
    seen = mask if mask is None or len(mask) == 1 else rows_of(mask, both)
    parts = functional.scaled_dot_product_attention(
        rows_of(q, both), rows_of(k, both), torch.cat(values), attn_mask=seen
    )
    taken, removed = parts.chunk(2)
    return with_rows(out, target, rows_of(out, target) + (taken - removed))


def led(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rows: tuple[Rows, Rows]) -> Tensor:
    """Return attention whose target rows look as their source rows do, at their own values; arguments as `edited`."""
    source, target = rows
    q, k = (with_rows(tensor, target, rows_of(tensor, source)) for tensor in (q, k))
    if mask is not None and len(mask) > 1:
        mask = with_rows(mask, target, rows_of(mask, source))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def word_sums(
    q: Tensor, k: Tensor, mask: Tensor | None, rows: tuple[Rows, Rows], words: tuple[Tensor, Tensor]
) -> Tensor:
    """Return sums over the tokens of the edited maps, averaged over the heads, for the first W rows.

    Args:
        q: Queries [B, heads, N, d].
        k: Keys [B, heads, L, d].
        mask: [B or 1, 1, 1, L], True where a key may be seen, or None.
        rows: The source rows and the target rows.
        words: What the source's and what a row's own map are summed with, each [W, K, L]; the first is read for
            target rows only.

    Returns:
        [W, K, N] in float32.
    """
    taken, left = words
    maps = attention_maps(q, k, mask).mean(dim=1).transpose(-1, -2)  # [B, L, N]
    sums = left.to(maps) @ maps[: len(left)]
    for source, target in zip(*rows, strict=True):
        if target < len(left):
            sums[target] += taken[target].to(maps) @ maps[source]
    return sums.float()


def norm_silu(
    x: Tensor,
    affine: tuple[Tensor, Tensor],
    film: tuple[Tensor, Tensor] | None,
    groups: int,
    eps: float,
    act: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``silu(group_norm(x) * (1 + scale) + shift)``, with the mean and 1 / deviation of each group.

    Args:
        x: [B, C, ...].
        affine: Weight and bias of the normalisation, each [C].
        film: ``scale`` and ``shift``, each of B * C numbers; None for none.
        groups: How many groups the channels form.
        eps: Added to the variance.
        act: Whether SiLU follows.

    Returns:
        [B, C, ...] in the dtype of ``x``, and two of [B, groups] in float32 or wider.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    grouped = wide.reshape(x.shape[0], groups, -1)
    mean = grouped.mean(-1)
    rstd = (grouped.var(-1, correction=0) + eps).rsqrt()
    h = functional.group_norm(wide, groups, affine[0].to(wide), affine[1].to(wide), eps)
    if film is not None:
        scale, shift = (_by_channel(part.to(wide), x) for part in film)
        h = torch.addcmul(shift, h, 1 + scale)
    return (functional.silu(h) if act else h).to(x.dtype), mean, rstd


def norm_silu_backward(
    grad: Tensor,
    x: Tensor,
    affine: tuple[Tensor, Tensor],
    film: tuple[Tensor, Tensor] | None,
    statistics: tuple[Tensor, Tensor],
    act: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of `norm_silu` in x, weight, bias, scale and shift; the last two None without ``film``.

    With ``a = rstd (x - mean)`` and ``f = a g + b`` before SiLU, where ``g = weight (1 + scale)``, the gradient in x is
    ``rstd (u - mean(u) - a mean(a u))`` over each group, with ``u = df g``.
    """
    mean, rstd = statistics
    batch, channels = x.shape[:2]
    groups = mean.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    shape = (batch, groups, channels // groups, -1)
    a = (x.to(dtype).reshape(shape) - mean[:, :, None, None]) * rstd[:, :, None, None]
    weight, bias = (part.to(dtype).reshape(1, groups, -1, 1) for part in affine)
    scale, shift = (None, None) if film is None else (part.to(dtype).reshape(shape) for part in film)
    factor = weight if scale is None else weight * (1 + scale)
    df = grad.to(dtype).reshape(shape)
    if act:
        f = torch.addcmul(bias if scale is None or shift is None else bias * (1 + scale) + shift, a, factor)
        sigmoid = f.sigmoid()
        df = df * sigmoid * (1 + f * (1 - sigmoid))
    u = df * factor
    means = (part.mean((2, 3), keepdim=True) for part in (u, a * u))
    dx = rstd[:, :, None, None] * (u - next(means) - a * next(means))
    by_channel = ((a * df).sum(-1).reshape(batch, channels), df.sum(-1).reshape(batch, channels))
    gain = 1 if scale is None else 1 + scale.reshape(batch, channels)
    dweight, dbias = ((part * gain).sum(0).to(own.dtype) for part, own in zip(by_channel, affine, strict=True))
    if film is None:
        return dx.reshape(x.shape).to(x.dtype), dweight, dbias, None, None
    flat_weight, flat_bias = (part.reshape(1, channels) for part in (weight, bias))
    dscale = by_channel[0] * flat_weight + by_channel[1] * flat_bias
    dscale, dshift = (
        part.reshape(own.shape).to(own.dtype) for part, own in zip((dscale, by_channel[1]), film, strict=True)
    )
    return dx.reshape(x.shape).to(x.dtype), dweight, dbias, dscale, dshift


def _by_channel(part: Tensor, x: Tensor) -> Tensor:
    return part.reshape(*x.shape[:2], *(1,) * (x.ndim - 2))

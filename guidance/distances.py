"""Distances that guidance pulls down, one number for each image, with gradients that are finite everywhere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm

__all__ = ["geodesic", "range_loss"]


def geodesic(u: Tensor, v: Tensor) -> Tensor:
    """Return half the squared angle between unit vectors, 0 for equal and ``pi^2 / 2`` for opposite ones.

    It is the ``2 asin(|u - v| / 2)^2`` of CLIP guidance, written with the arc tangent of ``|u - v|`` and ``|u + v|``:
    that form has no root of zero and no arc sine of one, so that its gradient is finite for equal vectors (zero) and
    for opposite ones. On the sphere both have the same gradient.

    Args:
        u: Unit vectors [..., D].
        v: Unit vectors [..., D] that broadcast with ``u``.

    Returns:
        [...], in float32 or wider.

    Source: the official code of Avrahami et al. 2022, whose paper writes the cosine distance.
    """
    u, v = (one.to(torch.promote_types(one.dtype, torch.float32)) for one in (u, v))
    return 2 * torch.atan2(vector_norm(u - v, dim=-1), vector_norm(u + v, dim=-1)).square()


def range_loss(x0: Tensor) -> Tensor:
    """Return how far images [B, C, H, W] leave [-1, 1]: the mean square of what is outside, [B].

    Source: Avrahami et al. 2022, official code (after Crowson's CLIP-guided diffusion).
    """
    return (x0 - x0.clamp(-1, 1)).square().flatten(1).mean(1)

"""Linear combinations of images, as every step is one: of few new tensors, which on a CPU cost more than arithmetic.

On a CPU ``addcmul`` rounds the product before it adds, in every place of a tensor alike, so that an image has the same
bits alone and in a batch; ``add`` with ``alpha`` does not. On other devices it fuses both, and ``alpha`` is as good.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["combined", "plus"]

with torch.inference_mode(False):  # else it could not be saved for gradients
    _ONE = torch.ones((), device="cpu")


def combined(*terms: tuple[float | Tensor, Tensor]) -> Tensor:
    """Return ``a x + b y + ...`` for terms ``(a, x), (b, y), ...``, summed in their order in one new tensor.

    The terms are left as they are. Gradients flow. Factors are numbers, or tensors that broadcast, [B, 1, 1, 1].
    """
    (factor, x), *others = terms
    total = factor * x
    for factor, x in others:
        fits = total.dtype == x.dtype and total.shape == x.shape
        total = plus(total, factor, x, out_of_place=not fits)
    return total


def plus(x: Tensor, factor: float | Tensor, y: Tensor, *, out_of_place: bool = True) -> Tensor:
    """Return ``x + factor y``, in a new tensor or, for tensors of one type and shape, in ``x``."""
    if isinstance(factor, Tensor):
        return x + factor * y if out_of_place else x.add_(factor * y)
    if y.device.type != "cpu":
        return torch.add(x, y, alpha=factor) if out_of_place else x.add_(y, alpha=factor)
    return torch.addcmul(x, y, _ONE, value=factor) if out_of_place else x.addcmul_(y, _ONE, value=factor)

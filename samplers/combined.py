"""Linear combinations of images, as every step is one: of few new tensors, which on a CPU cost more than arithmetic.

On a CPU ``addcmul`` rounds the product before it adds, in every place of a tensor alike, so that an image has the same
bits alone and in a batch; ``add`` with ``alpha`` does not. On other devices it fuses both, and ``alpha`` is as good.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Terms", "combined", "plus"]

Terms = tuple[tuple[float | Tensor, Tensor], ...]
"""``a x + b y + ...`` as ``((a, x), (b, y), ...)``; factors are numbers, or tensors that broadcast, [B, 1, 1, 1]."""

with torch.inference_mode(False):  # else it could not be saved for gradients
    _ONE = torch.ones((), device="cpu")


def combined(*terms: tuple[float | Tensor, Tensor]) -> Tensor:
    """Return ``a x + b y + ...`` for terms ``(a, x), (b, y), ...``, summed in their order in one new tensor.

    Factors of one and the same tensor are added first. The terms are left as they are. Gradients flow.
    """
    (factor, x), *others = _merged(terms)
    total = factor * x
    for factor, x in others:
        fits = total.dtype == x.dtype and total.shape == x.shape
        total = plus(total, factor, x, in_place=fits)
    return total


def plus(x: Tensor, factor: float | Tensor, y: Tensor, *, in_place: bool = False) -> Tensor:
    """Return ``x + factor y``: a new tensor, or ``x`` itself, where it has the type and shape of the sum."""
    if isinstance(factor, Tensor):
        return x.add_(factor * y) if in_place else x + factor * y
    if y.device.type != "cpu":
        return x.add_(y, alpha=factor) if in_place else torch.add(x, y, alpha=factor)
    return x.addcmul_(y, _ONE, value=factor) if in_place else torch.addcmul(x, y, _ONE, value=factor)


def _merged(terms: Terms) -> Terms:
    """The terms with one factor for each tensor, in the order of their first places."""
    merged: dict[int, tuple[float | Tensor, Tensor]] = {}
    for factor, x in terms:
        before = merged.get(id(x))
        merged[id(x)] = (factor if before is None else before[0] + factor, x)
    return tuple(merged.values())

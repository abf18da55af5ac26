"""Two primitives shared by every network: ADM's group normalisation and zero initialisation."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["GroupNorm", "zeroed"]

Layer = TypeVar("Layer", bound=nn.Module)


class GroupNorm(nn.GroupNorm):
    """Group normalisation over 32 groups, computed in float32 whatever the dtype of its input."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(32, channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [B, C, ...]."""
        if x.dtype == self.weight.dtype == torch.float32:
            return super().forward(x)
        weight, bias = self.weight.float(), self.bias.float()
        return functional.group_norm(x.float(), 32, weight, bias, self.eps).to(x.dtype)


def zeroed(module: Layer) -> Layer:
    """Set all parameters of ``module`` to zero, as ADM starts the last layer of each branch, and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module

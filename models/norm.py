"""Primitives shared by every network: ADM's group normalisation, the SiLU after it, and zero initialisation."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import kernels

__all__ = ["GroupNorm", "Layers", "norm_act", "zeroed"]

Layer = TypeVar("Layer", bound=nn.Module)
_SILU = nn.SiLU()


class GroupNorm(nn.GroupNorm):
    """Group normalisation over 32 groups, computed in float32, or wider if its input is."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(32, channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [B, C, ...]."""
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        if x.device.type == "cpu":  # whose operator computes in the type of the weights, without a wide copy of x
            return functional.group_norm(x, 32, weight, bias, self.eps)
        return functional.group_norm(x.to(wide), 32, weight, bias, self.eps).to(x.dtype)


def norm_act(
    x: Tensor, norm: nn.Module, act: nn.Module = _SILU, *, film: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Return ``act(norm(x) * (1 + scale) + shift)``, in the dtype of ``x``.

    Where the fused kernels are at hand, a group norm and SiLU are one operator (`kernels.norm_silu`). Else, and where
    one of the two modules has hooks, which see what that module alone does, they run one after the other.

    Args:
        x: [B, C, ...].
        norm: The normalisation.
        act: What follows it.
        film: ``scale`` and ``shift``, each [B, C, 1, 1] in the dtype of ``x``; None for none.

    Source: Dhariwal & Nichol 2021, section 3 ("adaptive group normalization").
    """
    if kernels.at_hand(x) and isinstance(norm, nn.GroupNorm) and isinstance(act, nn.SiLU) and not _hooked(norm, act):
        return kernels.norm_silu(x, norm.weight, norm.bias, film, groups=norm.num_groups, eps=norm.eps)
    h = norm(x)
    if film is not None:
        scale, shift = film
        h = torch.addcmul(shift, h, 1 + scale)
    out: Tensor = act(h)
    return out


class Layers(nn.Sequential):
    """Layers run one after another, as in ``nn.Sequential``; a group norm and the SiLU after it are one `norm_act`."""

    def forward(self, x: Tensor) -> Tensor:
        """Run all layers on ``x``, [B, C, ...]."""
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if isinstance(layer, nn.GroupNorm) and layers and isinstance(layers[0], nn.SiLU):
                x = norm_act(x, layer, layers.pop(0))
            else:
                x = layer(x)
        return x


def zeroed(module: Layer) -> Layer:
    """Set all parameters of ``module`` to zero, as ADM starts the last layer of each branch, and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def _hooked(*modules: nn.Module) -> bool:
    """Say whether someone looks at one of the modules or changes what it does."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in modules
    )

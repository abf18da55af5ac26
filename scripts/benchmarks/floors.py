"""The operators with fused kernels, beside PyTorch's own and beside the least that the device can take for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .contest import Contest, Ratio, Setting, Thunk, normal
from .edits import word_swap

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FLOORS", "floors"]

_PLAIN = Ratio(of="ours", to="PyTorch")
_COPY = Ratio(of="ours", to="a copy of as many bytes")
_PRODUCT = Ratio(of="ours", to="a product of as many numbers")

#: Ratios by case: memory bounds a normalisation and cross-attention, arithmetic self-attention.
FLOORS: dict[str, tuple[Ratio, ...]] = {
    "group norm, scale and shift, SiLU": (_PLAIN, _COPY),
    "group norm, scale and shift, SiLU, with gradients": (_PLAIN,),
    "edited cross-attention": (_PLAIN, _COPY),
    "injected self-attention": (_PLAIN, _PRODUCT),
}
_ROWS, _CHANNELS, _HEADS, _SIDE, _KEYS = 4, 320, 8, 64, 77  # Stable Diffusion 1.5 with an edit under guidance


def floors(setting: Setting) -> Iterator[Contest]:
    """Each operator at the size of Stable Diffusion's largest grid, a batch of 4; PyTorch does it without the edit."""
    if "sd-1.5" in setting.networks:
        for key, entries in (*_norms(setting), _cross(setting), _self(setting)):
            yield Contest(key=key, entries=entries, ratios=FLOORS[key], grad="gradients" in key)


def _norms(setting: Setting) -> Iterator[tuple[str, dict[str, Thunk]]]:
    import torch
    from torch.nn import functional

    from steerdiff.models.norm import GroupNorm, norm_act

    norm = GroupNorm(_CHANNELS).to(setting.device, setting.dtype)
    x = normal((_ROWS, _CHANNELS, _SIDE, _SIDE), setting)
    film = normal((_ROWS, _CHANNELS, 1, 1), setting), normal((_ROWS, _CHANNELS, 1, 1), setting)
    leaf = x.clone().requires_grad_()

    def plain(x: Tensor) -> Tensor:
        h = functional.group_norm(x, 32, norm.weight, norm.bias)
        return functional.silu(torch.addcmul(film[1], h, 1 + film[0]))

    def ours(x: Tensor) -> Tensor:
        return norm_act(x, norm, film=film)

    key = "group norm, scale and shift, SiLU"
    yield key, {"ours": lambda: ours(x), "PyTorch": lambda: plain(x), **_copy(2 * x.numel(), setting)}
    yield (
        f"{key}, with gradients",
        {
            "ours": lambda: torch.autograd.grad(ours(leaf), leaf, x),
            "PyTorch": lambda: torch.autograd.grad(plain(leaf), leaf, x),
        },
    )


def _cross(setting: Setting) -> tuple[str, dict[str, Thunk]]:
    from torch.nn import functional

    from steerdiff.models.attention import attend
    from steerdiff.models.control import Control, Site

    q, k, v = _heads(_SIDE**2, _KEYS, setting)
    site = Site("floor", "cross", "down", 1)
    control = Control(edit=word_swap(_KEYS, _SIDE**2, setting))
    entries: dict[str, Thunk] = {
        "ours": lambda: attend(q, k, v, None, site, control),
        "PyTorch": lambda: functional.scaled_dot_product_attention(q, k, v),
        **_copy(2 * q.numel() + 2 * k.numel(), setting),
    }
    return "edited cross-attention", entries


def _self(setting: Setting) -> tuple[str, dict[str, Thunk]]:
    from torch.nn import functional

    from steerdiff.models.attention import attend
    from steerdiff.models.control import Control, Site

    cells = (_SIDE // 2) ** 2  # the largest grid on which Prompt-to-Prompt injects
    q, k, v = _heads(cells, cells, setting)
    site = Site("floor", "self", "down", 2)
    control = Control(edit=word_swap(_KEYS, 16 * cells, setting))
    products = 2 * 2 * _ROWS * cells**2 * _CHANNELS  # multiplications and additions of scores and results
    entries: dict[str, Thunk] = {
        "ours": lambda: attend(q, k, v, None, site, control),
        "PyTorch": lambda: functional.scaled_dot_product_attention(q, k, v),
        **_product(products, setting),
    }
    return "injected self-attention", entries


def _heads(cells: int, keys: int, setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    d = _CHANNELS // _HEADS
    q = normal((_ROWS, _HEADS, cells, d), setting)
    return q, normal((_ROWS, _HEADS, keys, d), setting), normal((_ROWS, _HEADS, keys, d), setting)


def _copy(numbers: int, setting: Setting) -> dict[str, Thunk]:
    """Return the memory floor: a copy that reads and writes ``numbers`` in all."""
    source = normal((numbers // 2,), setting)
    there = source.clone()
    return {_COPY.to: lambda: there.copy_(source)}


def _product(operations: int, setting: Setting) -> dict[str, Thunk]:
    """Return the arithmetic floor: a square product of matrices with as many multiplications and additions."""
    side = round((operations / 2) ** (1 / 3) / 64) * 64
    a, b = normal((side, side), setting), normal((side, side), setting)
    return {_PRODUCT.to: lambda: a @ b}

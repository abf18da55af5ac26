"""PyTorch operators over the fused kernels, with shapes for tracing and gradients: compile, graphs and autocast work.

``steerdiff::edited_attention``, ``steerdiff::led_attention`` and ``steerdiff::norm_silu`` run the kernels on CUDA
tensors (``steerdiff_kernels::*`` of ``binding.cpp``) where `run_on_cuda` allows it, else ``reference``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from .choice import run_on_cuda
from .reference import Rows

__all__ = ["edited_attention", "led_attention", "norm_silu"]

MAX_ROWS, MAX_KEYS, MIN_HEAD, MAX_HEAD = 64, 128, 8, 160  # as in attention.h
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_ATTENTION = "Tensor q, Tensor k, Tensor v"
_ROWS = "int[] source, int[] target"

torch.library.define(
    "steerdiff::edited_attention",
    f"({_ATTENTION}, Tensor taken, Tensor removed, Tensor? mask, Tensor? words_taken, Tensor? words_left, {_ROWS})"
    " -> (Tensor, Tensor)",
)
torch.library.define("steerdiff::led_attention", f"({_ATTENTION}, Tensor? mask, {_ROWS}) -> Tensor")
torch.library.define(
    "steerdiff::norm_silu",
    "(Tensor x, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, int groups, float eps, bool act)"
    " -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "steerdiff::norm_silu_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, Tensor mean, Tensor rstd,"
    " bool act) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def edited_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    rows: tuple[Rows, Rows],
    values: tuple[Tensor, Tensor] | None,
    words: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `reference.edited` and, for ``words``, `reference.word_sums` [W, K, N], in one pass over the scores.

    Arguments as there; ``values`` is None for no target rows, and without ``words`` W and K are 0. The sums have no
    gradient.
    """
    none = v.new_empty(0, *v.shape[1:])
    q, k, v, taken, removed = _autocast(q, k, v, *(values or (none, none)))
    wide = (None, None) if words is None else tuple(part.float().contiguous() for part in words)
    source, target = (list(part) for part in rows)
    out, sums = torch.ops.steerdiff.edited_attention(q, k, v, taken, removed, mask, *wide, source, target)
    return out, sums.detach()


def led_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rows: tuple[Rows, Rows]) -> Tensor:
    """Return `reference.led`: no row of queries or keys is copied."""
    q, k, v = _autocast(q, k, v)
    out: Tensor = torch.ops.steerdiff.led_attention(q, k, v, mask, *(list(part) for part in rows))
    return out


def norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    film: tuple[Tensor, Tensor] | None = None,
    *,
    groups: int = 32,
    eps: float = 1e-5,
    act: bool = True,
) -> Tensor:
    """Return ``silu(group_norm(x) * (1 + scale) + shift)``, computed in float32, in the dtype of ``x``.

    Args:
        x: [B, C, ...].
        weight: Of the normalisation, [C].
        bias: Of the normalisation, [C].
        film: ``scale`` and ``shift``, each [B, C] or [B, C, 1, 1]; None for none.
        groups: How many groups the channels form.
        eps: Added to the variance.
        act: Whether SiLU follows.
    """
    scale, shift = film or (None, None)
    out: Tensor = torch.ops.steerdiff.norm_silu(x, weight, bias, scale, shift, groups, eps, act)[0]
    return out


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors in the dtype in which autocast runs attention."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor.to(dtype) for tensor in tensors)


def attention_limit(q: Tensor, k: Tensor, most_keys: int | None = None) -> str | None:
    """Return what of an attention is outside the kernels' range, and what to do; None if nothing is."""
    rows, head, keys = q.shape[0], q.shape[-1], k.shape[2]
    if q.dtype not in _DTYPES:
        return f"{_name(q.dtype)} is no type of theirs; use float32, bfloat16 or float16"
    if head % 8 or not MIN_HEAD <= head <= MAX_HEAD:
        return f"the head size is {head}, and they take multiples of 8 up to {MAX_HEAD}"
    if rows > MAX_ROWS:
        return f"the batch has {rows} rows, and they take {MAX_ROWS}; use smaller batches"
    if most_keys is not None and keys > most_keys:
        return f"there are {keys} keys, and edited attention takes {most_keys}"
    return None


def norm_limit(x: Tensor) -> str | None:
    """Return what of a normalisation is outside the kernels' range; None if nothing is."""
    return None if x.dtype in _DTYPES else f"{_name(x.dtype)} is no type of theirs; use float32, bfloat16 or float16"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _on_kernels(tensor: Tensor, limit: str | None) -> bool:
    return tensor.device.type == "cuda" and run_on_cuda(limit)


def _by_cells(tensor: Tensor) -> Tensor:
    """Return [B, heads, N, d] in the memory order of [B, N, heads, d], as the kernels write it."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


@torch.library.impl("steerdiff::edited_attention", "default")
def _edited(
    q: Tensor, k: Tensor, v: Tensor, taken: Tensor, removed: Tensor, mask: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    if _on_kernels(q, attention_limit(q, k, MAX_KEYS)):
        both: tuple[Tensor, Tensor] = torch.ops.steerdiff_kernels.edited_attention(q, k, v, taken, removed, mask, *rest)
        return both
    words_taken, words_left, source, target = rest
    out = _by_cells(reference.edited(q, k, v, mask, (source, target), (taken, removed)))
    if words_taken is None:
        return out, out.new_empty(0, 0, q.shape[2], dtype=torch.float32)
    return out, reference.word_sums(q, k, mask, (source, target), (words_taken, words_left))


def _edited_shapes(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    words = rest[3]
    wanted = (0, 0) if words is None else words.shape[:2]
    return torch.empty_like(_by_cells(q)), q.new_empty(*wanted, q.shape[2], dtype=torch.float32)


@torch.library.impl("steerdiff::led_attention", "default")
def _led(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, source: list[int], target: list[int]) -> Tensor:
    if _on_kernels(q, attention_limit(q, k)):
        out: Tensor = torch.ops.steerdiff_kernels.led_attention(q, k, v, mask, source, target)
        return out
    return _by_cells(reference.led(q, k, v, mask, (source, target)))


def _led_shapes(q: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(_by_cells(q))


@torch.library.impl("steerdiff::norm_silu", "default")
def _norm(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    if _on_kernels(x, norm_limit(x)):
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.steerdiff_kernels.norm_silu(
            x, weight, bias, scale, shift, *rest
        )
        return found
    out, mean, rstd = reference.norm_silu(x, (weight, bias), _film(scale, shift), *rest)
    return _like(out, x), mean, rstd


def _norm_shapes(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean, rstd = (x.new_empty(x.shape[0], rest[4], dtype=dtype) for _ in range(2))
    return _like(x), mean, rstd


@torch.library.impl("steerdiff::norm_silu_backward", "default")
def _norm_gradients(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    if _on_kernels(x, norm_limit(x)):
        found: tuple[Tensor, ...] = torch.ops.steerdiff_kernels.norm_silu_backward(grad, x, *rest)
        return found
    weight, bias, scale, shift, mean, rstd, act = rest
    dx, *others = reference.norm_silu_backward(grad, x, (weight, bias), _film(scale, shift), (mean, rstd), act)
    return _like(dx, x), *(x.new_empty(0) if part is None else part for part in others)


def _norm_gradient_shapes(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    weight, bias, scale, shift = rest[:4]
    film = (x.new_empty(0) if part is None else part.new_empty(part.shape) for part in (scale, shift))
    return _like(x), weight.new_empty(weight.shape), bias.new_empty(bias.shape), *film


def _film(scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor] | None:
    return None if scale is None or shift is None else (scale, shift)


def _like(tensor: Tensor, layout: Tensor | None = None) -> Tensor:
    """Return ``tensor`` in channels-last order if ``layout`` is and in plain order if not; a new one without it."""
    shape = tensor if layout is None else layout
    last = shape.ndim == 4 and not shape.is_contiguous() and shape.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty_like(tensor, memory_format=order) if layout is None else tensor.contiguous(memory_format=order)


def _recomputed(function: Any, inputs: tuple[Tensor | None, ...], grads: tuple[Tensor | None, ...]) -> list[Any]:
    """Return the gradients of ``function`` in its inputs by computing it again; twice differentiable if need be."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        own = [tensor if tensor is None else tensor.view_as(tensor) for tensor in inputs]  # each an input of its own
        wanted = [tensor for tensor in own if tensor is not None and tensor.requires_grad]
        out = function(*own)
        found = iter(torch.autograd.grad(out, wanted, grads[0], create_graph=create_graph, allow_unused=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in own]


def _save_edited(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    q, k, v, taken, removed, mask, _, _, source, target = inputs
    ctx.rows = (source, target)
    ctx.save_for_backward(q, k, v, taken, removed, mask)


def _edited_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    *inputs, mask = ctx.saved_tensors

    def again(q: Tensor, k: Tensor, v: Tensor, taken: Tensor, removed: Tensor) -> Tensor:
        return reference.edited(q, k, v, mask, ctx.rows, (taken, removed))

    return *_recomputed(again, tuple(inputs), (grad,)), None, None, None, None, None


def _save_led(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    q, k, v, mask, source, target = inputs
    ctx.rows = (source, target)
    ctx.save_for_backward(q, k, v, mask)


def _led_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *inputs, mask = ctx.saved_tensors

    def again(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return reference.led(q, k, v, mask, ctx.rows)

    return *_recomputed(again, tuple(inputs), (grad,)), None, None, None


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.groups, ctx.eps, ctx.act = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _norm_backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    x, weight, bias, scale, shift, mean, rstd = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient will be differentiated in its turn

        def again(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
            film = _film(scale, shift)
            return reference.norm_silu(x, (weight, bias), film, ctx.groups, ctx.eps, ctx.act)[0]

        return *_recomputed(again, (x, weight, bias, scale, shift), (grad,)), None, None, None
    found = torch.ops.steerdiff.norm_silu_backward(grad, x, weight, bias, scale, shift, mean, rstd, ctx.act)
    film = (None, None) if scale is None else found[3:]
    return *found[:3], *film, None, None, None


torch.library.register_autograd("steerdiff::edited_attention", _edited_backward, setup_context=_save_edited)
torch.library.register_autograd("steerdiff::led_attention", _led_backward, setup_context=_save_led)
torch.library.register_autograd("steerdiff::norm_silu", _norm_backward, setup_context=_save_norm)
torch.library.register_fake("steerdiff::edited_attention", _edited_shapes)
torch.library.register_fake("steerdiff::led_attention", _led_shapes)
torch.library.register_fake("steerdiff::norm_silu", _norm_shapes)
torch.library.register_fake("steerdiff::norm_silu_backward", _norm_gradient_shapes)

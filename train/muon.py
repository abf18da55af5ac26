"""Muon: momentum whose update of each matrix is made orthogonal.

Source: Jordan et al. 2024 (Newton-Schulz coefficients, Nesterov momentum); Liu et al. 2025, arXiv 2502.16982 (decoupled
weight decay and the update's scale ``0.2 sqrt(max(m, n))``, which gives it AdamW's root mean square).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from steerdiff.errors import require

__all__ = ["Muon", "orthogonalize"]

_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalize(matrices: Tensor, *, iterations: int = 5) -> Tensor:
    """Move the singular values of each matrix close to 1 (into about [0.7, 1.2]) and keep its singular vectors.

    Each Newton-Schulz step multiplies X by the polynomial ``a I + b A + c A^2`` of its Gram matrix ``A = X X^T``. The
    polynomials commute, so we iterate on A alone, [m, m] with m the shorter side, and multiply X once at the end: about
    2.5 times fewer operations for a 3x3 convolution of 256 channels. This needs float32: the Gram matrix squares the
    condition number, and in bfloat16 singular values of a nearly low-rank matrix end as high as 10.

    Args:
        matrices: [N, m, n].
        iterations: Newton-Schulz steps. A singular value of less than about 1e-3 of the norm stays below 0.7.

    Returns:
        [N, m, n] in float32, or in float64 if given so.
    """
    x = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    gram = x @ x.mT
    product: Tensor | None = None
    for iteration in range(iterations):
        step = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        step.diagonal(dim1=-2, dim2=-1).add_(_A)
        product = step if product is None else step @ product
        if iteration + 1 < iterations:
            gram = step @ gram @ step
    x = x if product is None else product @ x
    out: Tensor = x.mT if tall else x
    return out


class Muon(torch.optim.Optimizer):
    """Muon for weights of two or more dimensions; a convolution's is read as [out, in * height * width].

    Args:
        params: Weights or groups of them. Biases, norms, embeddings and the first and last layer belong to AdamW.
        lr: Learning rate, of the same size as one for AdamW.
        momentum: Decay of the averaged gradient (Nesterov).
        weight_decay: Decoupled: weights shrink by ``lr * weight_decay`` a step.
        iterations: Newton-Schulz steps.

    Raises:
        UserError: A parameter has fewer than two dimensions.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        iterations: int = 5,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "iterations": iterations}
        super().__init__(params, defaults)
        shapes = [list(p.shape) for group in self.param_groups for p in group["params"] if p.ndim < 2]
        require(not shapes, f"Muon was given parameters of shapes {shapes[:3]}; give those below 2 dimensions to AdamW")

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step from the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(group, params)
        return loss

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        buffers = []
        for p in params:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffers.append(state["momentum_buffer"])
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, buffers, group["momentum"])
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, p in enumerate(params):
            by_shape[(p.shape[0], p[0].numel())].append(i)
        for (rows, columns), members in by_shape.items():
            stack = torch.stack([updates[i].reshape(rows, columns) for i in members])
            stack = orthogonalize(stack, iterations=group["iterations"])
            size = 0.2 * math.sqrt(max(rows, columns))
            for i, update in zip(members, stack, strict=True):
                params[i].add_(update.reshape(params[i].shape).to(params[i].dtype), alpha=-group["lr"] * size)

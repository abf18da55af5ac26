"""Muon: momentum whose update of each matrix is made orthogonal.

Source: Jordan et al. 2024 (Newton-Schulz iteration, Nesterov momentum); Liu et al. 2025, arXiv 2502.16982 (decoupled
weight decay and the update's scale ``0.2 sqrt(max(m, n))``, which gives it AdamW's root mean square); Amsel et al.
2025, arXiv 2505.16932 (a polynomial of its own for each step of the iteration).
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

_STEPS = (
    (8.3837, -24.7659, 18.3571),
    (4.0434, -3.0114, 0.5695),
    (3.5056, -2.6267, 0.5257),
    (2.4901, -1.8343, 0.4368),
)
"""a, b, c of the odd polynomials ``a s + b s^3 + c s^5`` of the steps. Each is the nearest to 1 on what the last left.

They take [0.003, 1] into [0.8, 1.21] in four steps, where Jordan's constant one needs five for [0.68, 1.2].
"""

_WORTH_A_GRAM = 1.5  # longer over shorter side from which iterating on the Gram matrix takes fewer operations


def orthogonalize(matrices: Tensor) -> Tensor:
    """Move the singular values of each matrix close to 1 and keep its singular vectors.

    A step multiplies X by the polynomial ``P = a I + b A + c A^2`` of its Gram matrix ``A = X X^T``, which makes the
    singular values ``a s + b s^3 + c s^5``. All these matrices commute, so for a long X we iterate on A alone, which is
    [m, m] with m the shorter side, and multiply X once at the end: 3.5 times fewer operations for a 3x3 convolution.
    This needs float32: the Gram matrix squares the condition number, and in bfloat16 singular values of a nearly
    low-rank matrix end as high as 10.

    Args:
        matrices: [N, m, n]. Singular values of 0.003 of the 2-norm of all entries, or more, end in [0.8, 1.21].

    Returns:
        [N, m, n] in float32, or in float64 if given so.
    """
    x = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    if x.shape[-1] > _WORTH_A_GRAM * x.shape[-2]:
        x = _gram_product(x @ x.mT) @ x
    else:
        for step in _STEPS:
            x = _polynomial(x @ x.mT, *step) @ x
    out: Tensor = x.mT if tall else x
    return out


def _polynomial(gram: Tensor, a: float, b: float, c: float) -> Tensor:
    """Return ``a I + b A + c A^2`` of A = ``gram`` [N, m, m]."""
    step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    step.diagonal(dim1=-2, dim2=-1).add_(a)
    return step


def _gram_product(gram: Tensor) -> Tensor:
    """Return the product of all steps' polynomials for a first Gram matrix [N, m, m]."""
    product = step = _polynomial(gram, *_STEPS[0])
    for coefficients in _STEPS[1:]:
        gram = step @ gram @ step
        step = _polynomial(gram, *coefficients)
        product = step @ product
    return product


class Muon(torch.optim.Optimizer):
    """Muon for weights of two or more dimensions; a convolution's is read as [out, in * height * width].

    Args:
        params: Weights or groups of them. Biases, norms, embeddings and the first and last layer belong to AdamW.
        lr: Learning rate, of the same size as one for AdamW.
        momentum: Decay of the averaged gradient (Nesterov).
        weight_decay: Decoupled: weights shrink by ``lr * weight_decay`` a step.

    Raises:
        UserError: A parameter has fewer than two dimensions.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
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
            stack = orthogonalize(stack)
            size = 0.2 * math.sqrt(max(rows, columns))
            for i, update in zip(members, stack, strict=True):
                params[i].add_(update.reshape(params[i].shape).to(params[i].dtype), alpha=-group["lr"] * size)

"""Low-rank adapters: a network whose chosen matrices get a change of two thin factors, which alone are tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from steerdiff.errors import require

from .delta import Delta

__all__ = ["ATTENTION", "LowRank", "with_factors"]

#: Parts of the names of the matrices of attention: queries, keys, values and output.
ATTENTION = ("attn", "qkv", "to_")


class LowRank(nn.Module):
    """A network with the weights ``W + scale * left @ right``; W is shared with the network that was given and stays.

    Of a convolution, the rows of W are its output channels. ``left`` [rows, rank] begins at 0, so that the network
    begins as it was; ``right`` [rank, columns] begins uniform, as a linear layer of that many inputs does. No module is
    replaced: the sums are passed to the network's call. Factors are float32 whatever W is.

    Source: Hu et al. 2022 (LoRA), section 4.1, with alpha / r = ``scale``.
    """

    def __init__(
        self,
        network: nn.Module,
        rank: int,
        *,
        among: Sequence[str] = ATTENTION,
        scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Give a network adapters.

        Args:
            network: Any network; it gets no gradients.
            rank: Columns of ``left``.
            among: A matrix is adapted if its name holds one of these texts.
            scale: Factor on the product.
            generator: Of the first ``right``, on the CPU; None has seed 0.

        Raises:
            UserError: A rank below 1, or no matrix of such a name.
        """
        super().__init__()
        require(rank >= 1, f"the rank of adapters is {rank}; it must be at least 1")
        self.network, self.scale = network.requires_grad_(False), scale
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        shapes = {
            name: weight.flatten(1).shape
            for name, weight in network.named_parameters()
            if weight.ndim >= 2 and any(part in name for part in among)
        }
        require(bool(shapes), f"no matrix of the network has {' or '.join(among) or 'a part'} in its name")
        self.names = tuple(shapes)
        device = next(network.parameters()).device
        self.left = nn.ParameterList(torch.zeros(rows, rank, device=device) for rows, _ in shapes.values())
        self.right = nn.ParameterList(_uniform(rank, columns, generator).to(device) for _, columns in shapes.values())

    @property
    def config(self) -> Any:
        """Settings of the network."""
        return self.network.config

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the factors of each change by the name of its weight; the left one has the scale."""
        pairs = zip(self.names, self.left, self.right, strict=True)
        return {name: (self.scale * left, right) for name, left, right in pairs}

    def weights(self) -> dict[str, Tensor]:
        """Return the changed weights by name, with gradients for the factors."""
        own = dict(self.network.named_parameters())
        return {
            name: own[name] + (left @ right).reshape(own[name].shape).to(own[name].dtype)
            for name, (left, right) in self.factors().items()
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network with the changed weights."""
        return functional_call(self.network, self.weights(), args, kwargs)


def with_factors(delta: Delta, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Delta:
    """Return the delta with changes ``left @ right`` of weights that it does not change, stored by these factors.

    Nothing is lost but by rounding to float16; factors of 0 are left out.
    """
    tensors, forms, scales = dict(delta.tensors), dict(delta.forms), dict(delta.scales)
    lost, total = 0.0, 0.0
    for name, pair in factors.items():
        require(name not in forms, f"the delta changes {name} already; give factors of other weights")
        exact = [factor.detach().double().cpu() for factor in pair]
        sizes = [float(factor.abs().max()) for factor in exact]
        if not all(sizes):
            continue
        stored = [(factor / size).half() for factor, size in zip(exact, sizes, strict=True)]
        tensors |= {f"{name}.left": stored[0], f"{name}.right": stored[1]}
        forms[name], scales[name] = "low-rank", sizes[0] * sizes[1]
        change = exact[0] @ exact[1]
        lost += float((change - scales[name] * (stored[0].double() @ stored[1].double())).square().sum())
        total += float(change.square().sum())
    error = math.hypot(delta.error, math.sqrt(lost / total) if total else 0.0)
    ranks = [left.shape[1] for left, _ in factors.values()]
    rank = max([*ranks, delta.rank or 0]) or None
    return replace(delta, tensors=tensors, forms=forms, scales=scales, error=error, rank=rank)


def _uniform(rank: int, columns: int, generator: torch.Generator) -> Tensor:
    """Return a matrix within one over the root of its columns, as PyTorch begins a linear layer."""
    bound = 1 / math.sqrt(columns)
    return torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)

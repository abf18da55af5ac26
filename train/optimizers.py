"""Which optimiser moves which weight, and the learning rate of each step."""

from __future__ import annotations

import math
import re
from typing import Literal

import torch
from torch import nn
from torch.nn import Parameter

from .muon import Muon

__all__ = ["make_optimizers", "rate_factor"]

_NOT_FOR_MUON = re.compile(r"(^|\.)(input_blocks\.0\.0|conv_in|out\.2|conv_out|time_embed\.\d|emb_layers\.\d)\.weight$")
"""First and last layer of a UNet, whose rows or columns are pixels, and the layers that carry time, which are wide but
simple: to make them orthogonal would cost as much as all others together."""


def _for_muon(model: nn.Module) -> set[str]:
    """Return the keys of the weights that act as matrices inside the network."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention)
    names = set()
    for prefix, module in model.named_modules():
        if isinstance(module, layers):
            for name, parameter in module.named_parameters(prefix, recurse=False):
                if parameter.ndim >= 2 and not _NOT_FOR_MUON.search(name):
                    names.add(name)
    return names


def make_optimizers(
    model: nn.Module,
    *,
    kind: Literal["adamw", "muon"],
    learning_rate: float,
    muon_learning_rate: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> list[torch.optim.Optimizer]:
    """Return AdamW over all trainable weights, or Muon over the inner matrices and AdamW over the rest.

    Weight decay acts on weights of two or more dimensions only. Each group remembers its ``base_lr``.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    to_muon = _for_muon(model) & set(named) if kind == "muon" else set()
    rest = [p for name, p in named.items() if name not in to_muon]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if any(group["params"] for group in groups):
        filled = [group for group in groups if group["params"]]
        optimizers.append(torch.optim.AdamW(filled, lr=learning_rate, betas=betas, fused=True))
    if to_muon:
        matrices: list[Parameter] = [p for name, p in named.items() if name in to_muon]
        optimizers.append(Muon(matrices, lr=muon_learning_rate or learning_rate, weight_decay=weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


def rate_factor(
    step: int, *, steps: int, warmup_steps: int, decay: Literal["none", "linear", "cosine"], decay_steps: int
) -> float:
    """Return the factor in [0, 1] on the learning rate of optimiser step ``step`` (from 0)."""
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if decay == "none" or not decay_steps:
        return warm
    left = min(1.0, max(0.0, (steps - step) / decay_steps))
    return warm * (left if decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))

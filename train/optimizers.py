"""Which optimiser moves which weight, and the learning rate of each step."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import torch
from torch import nn

from steerdiff.errors import require

from .muon import Muon

__all__ = ["load_optimizers", "make_optimizers", "rate_factor"]

_NOT_FOR_MUON = re.compile(
    r"(^|\.)(input_blocks\.0\.0|conv_in|out\.2|conv_out|time_embed\.\d|emb_layers\.\d|to_q_position)\.weight$"
)
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
    kind: Literal["adamw", "muon", "sgd"],
    learning_rate: float,
    muon_learning_rate: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> list[torch.optim.Optimizer]:
    """Return AdamW or plain gradient descent over all trainable weights, or Muon over the inner matrices.

    Muon leaves the weights that are no inner matrices to AdamW.

    Weight decay acts on weights of two or more dimensions only. Each group remembers its ``base_lr`` and the ``keys``
    of its weights.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    to_muon = _for_muon(model) & set(named) if kind == "muon" else set()

    def group(members: list[str], lr: float, decay: float) -> list[dict[str, Any]]:
        params = [named[name] for name in members]
        return [{"params": params, "keys": members, "lr": lr, "base_lr": lr, "weight_decay": decay}] if members else []

    rest = [name for name in named if name not in to_muon]
    groups = group([name for name in rest if named[name].ndim >= 2], learning_rate, weight_decay)
    groups += group([name for name in rest if named[name].ndim < 2], learning_rate, 0.0)
    matrices = group([name for name in named if name in to_muon], muon_learning_rate or learning_rate, weight_decay)
    optimizers: list[torch.optim.Optimizer] = []
    if groups and kind == "sgd":
        optimizers.append(torch.optim.SGD(groups))
    elif groups:
        optimizers.append(torch.optim.AdamW(groups, betas=betas, fused=True))
    if matrices:
        optimizers.append(Muon(matrices))
    return optimizers


def _fits(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> bool:
    """Whether a saved state is of the same weights in the same order (checkpoints of old do not name them)."""
    ours, theirs = optimizer.param_groups, state["param_groups"]
    same_sizes = [len(group["params"]) for group in ours] == [len(group["params"]) for group in theirs]
    return same_sizes and all(b.get("keys", a["keys"]) == a["keys"] for a, b in zip(ours, theirs, strict=True))


def load_optimizers(optimizers: list[torch.optim.Optimizer], saved: list[dict[str, Any]]) -> None:
    """Take over the moments that ``state_dict`` saved; rates, decays and the like stay as they are now.

    Raises:
        UserError: The saved moments belong to other weights.
    """
    require(
        len(optimizers) == len(saved) and all(map(_fits, optimizers, saved)),
        "the saved optimiser state belongs to other weights; start a new run with init_from to keep only the weights",
    )
    for optimizer, state in zip(optimizers, saved, strict=True):
        options = [{name: v for name, v in group.items() if name != "params"} for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, option in zip(optimizer.param_groups, options, strict=True):
            group.update(option)


def rate_factor(
    step: int, *, steps: int, warmup_steps: int, decay: Literal["none", "linear", "cosine"], decay_steps: int
) -> float:
    """Return the factor in [0, 1] on the learning rate of optimiser step ``step`` (from 0)."""
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if decay == "none" or not decay_steps:
        return warm
    left = min(1.0, max(0.0, (steps - step) / decay_steps))
    return warm * (left if decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))

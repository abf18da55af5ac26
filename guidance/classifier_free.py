"""Conditioning of a network and classifier-free guidance, both branches in one batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steerdiff.errors import require

__all__ = ["ClassifierFree", "Condition", "Conditioned", "Network"]

#: ``network(x, t, context=..., context_mask=..., y=..., concat=..., control=...)``; what is absent is not passed.
Network = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """What a network is told besides ``x`` and ``t``. A leading size of 1 fits any batch."""

    context: Tensor | None = None  #: text states [B, L, D]
    context_mask: Tensor | None = None  #: True where a text state counts, [B, L]
    y: Tensor | None = None  #: class labels [B], int64
    concat: Tensor | None = None  #: more input channels [B, C', H, W]: a small image, a mask and its image, depth

    @property
    def rows(self) -> int:
        """Number of rows, 1 when nothing is given."""
        return max((tensor.shape[0] for tensor in self.arguments().values()), default=1)

    def arguments(self) -> dict[str, Tensor]:
        """Keyword arguments for the network; empty for an unconditional one."""
        given = {"context": self.context, "context_mask": self.context_mask, "y": self.y, "concat": self.concat}
        return {name: tensor for name, tensor in given.items() if tensor is not None}

    def expand(self, rows: int) -> Condition:
        """Repeat a single row ``rows`` times.

        Raises:
            UserError: There are several rows, but not ``rows``.
        """
        arguments = self.arguments()
        for tensor in arguments.values():
            count = tensor.shape[0]
            require(count in (1, rows), f"{count} prompts or labels were given for {rows} images; give one, or {rows}")
        return Condition(**{name: tensor.expand(rows, *tensor.shape[1:]) for name, tensor in arguments.items()})

    def repeat(self, n: int) -> Condition:
        """Follow each row by ``n - 1`` copies of itself; a single row stands for all of them."""
        arguments = self.arguments().items()
        repeated = {name: t if t.shape[0] == 1 else t.repeat_interleave(n, dim=0) for name, t in arguments}
        return Condition(**repeated)

    def __getitem__(self, rows: slice) -> Condition:
        """Return some of the rows; a single row stands for all of them."""
        arguments = self.arguments().items()
        return Condition(**{name: tensor if tensor.shape[0] == 1 else tensor[rows] for name, tensor in arguments})

    def join(self, other: Condition) -> Condition:
        """Stack the rows of ``other`` below; the shorter context is padded with masked states."""
        y = None if self.y is None or other.y is None else torch.cat([self.y, other.y])
        concat = None if self.concat is None or other.concat is None else torch.cat([self.concat, other.concat])
        if self.context is None or other.context is None:
            require(self.context is other.context, "one branch has a text and the other has none; give both a text")
            return Condition(y=y, concat=concat)
        length = max(self.context.shape[1], other.context.shape[1])
        uneven = self.context.shape[1] != other.context.shape[1]
        masked = uneven or self.context_mask is not None or other.context_mask is not None
        return Condition(
            context=torch.cat([_pad(self.context, length), _pad(other.context, length)]),
            context_mask=torch.cat([self._mask(length), other._mask(length)]) if masked else None,
            y=y,
            concat=concat,
        )

    def _mask(self, length: int) -> Tensor:
        mask = self.context_mask
        if mask is None and self.context is not None:
            mask = torch.ones(self.context.shape[:2], dtype=torch.bool, device=self.context.device)
        return torch.nn.functional.pad(mask, (0, length - mask.shape[1])) if mask is not None else torch.empty(0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditioned:
    """A network with its conditioning bound: ``(x, t) -> output``."""

    network: Network  #: the bare network
    condition: Condition = Condition()  #: one row, or one a image
    control: Any = None  #: attention edits, taps and shifts (`steerdiff.models.Control`); None passes nothing

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Output of the network for ``x`` [B, C, H, W] at times ``t`` [B]."""
        return _call(self.network, x, t, self.condition.expand(x.shape[0]), self.control)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierFree:
    """Classifier-free guidance: ``uncond + scale * (cond - uncond)`` on the output of a network.

    The formula is linear, so it means the same for eps, x0 and v. Scale 1 is plainly conditional and runs one branch,
    bit for bit as without guidance; scale 0 is plainly unconditional (or the negative prompt) and runs one branch too.
    Any other real scale runs both branches in one batch, the conditional rows first. Clipping belongs after guidance,
    where `NetworkDenoiser` does it.

    Source: Ho & Salimans 2022, eq. 6, with w = scale - 1. Negative prompts take the place of the empty one.

    Raises:
        UserError: ``scale`` is not finite.
    """

    network: Network  #: the bare network
    cond: Condition  #: what the image should follow
    uncond: Condition  #: empty or negative
    scale: float | Tensor  #: guidance strength; a tensor [B] guides each image by its own
    guided_channels: int | None = None  #: leading channels that are guided (None: all); the variance's are cond's
    control: Any = None  #: sees 2 B rows, the conditional ones first

    def __post_init__(self) -> None:
        """Check the scale."""
        finite = bool(self.scale.isfinite().all()) if isinstance(self.scale, Tensor) else math.isfinite(self.scale)
        require(finite, f"guidance is {self.scale}; it must be a finite number")

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Guided output for ``x`` [B, C, H, W] at times ``t`` [B]."""
        rows = x.shape[0]
        if not isinstance(self.scale, Tensor) and self.scale in (0.0, 1.0):
            only = self.cond if self.scale else self.uncond
            return _call(self.network, x, t, only.expand(rows), self.control)
        both = self.cond.expand(rows).join(self.uncond.expand(rows))
        cond, uncond = _call(self.network, torch.cat([x, x]), torch.cat([t, t]), both, self.control).chunk(2)
        guided = cond.shape[1] if self.guided_channels is None else self.guided_channels
        return torch.cat([self._extrapolate(cond[:, :guided], uncond[:, :guided]), cond[:, guided:]], dim=1)

    def _extrapolate(self, cond: Tensor, uncond: Tensor) -> Tensor:
        scale = self.scale
        if isinstance(scale, Tensor):
            scale = scale.to(cond).reshape(-1, *[1] * (cond.dim() - 1))
        return uncond + scale * (cond - uncond)


def _call(network: Network, x: Tensor, t: Tensor, condition: Condition, control: Any) -> Tensor:
    arguments: dict[str, Any] = condition.arguments()
    if control is not None:
        arguments["control"] = control
    return network(x, t, **arguments)


def _pad(context: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(context, (0, 0, 0, length - context.shape[1]))

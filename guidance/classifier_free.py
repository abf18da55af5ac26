"""Conditioning of a network and classifier-free guidance, all branches in one batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steerdiff.errors import require

from .scales import over_images

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

    def __getitem__(self, rows: slice | list[int] | Tensor) -> Condition:
        """Return some of the rows, by a slice or by their numbers, with gradients; a single row stands for all."""
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

    With further conditions ``c_k`` and weights ``w_k`` it is ``uncond + scale * (cond - uncond) + sum_k w_k (c_k -
    uncond)``; a weight may be negative. The formula is linear with factors that sum to one, so it means the same for
    eps, x0 and v. Scale 1 is plainly conditional and runs one branch, bit for bit as without guidance; scale 0 is
    plainly unconditional (or the negative prompt) and runs one branch too. Any other real scale runs all branches in
    one batch: the conditional rows first, then those of ``also``, the unconditional ones last. A branch with the weight
    0 is not run. Clipping belongs after guidance, where `NetworkDenoiser` does it.

    Source: Ho & Salimans 2022, eq. 6, with w = scale - 1. Negative prompts take the place of the empty one. Rescaling:
    Lin et al. 2024 (Common diffusion noise schedules and sample steps are flawed), section 3.4; unlike the rest it
    depends on what the network's output means.

    Raises:
        UserError: A scale or weight that is not finite, a ``rescale`` outside [0, 1], or ``split`` with a control.
    """

    network: Network  #: the bare network
    cond: Condition  #: what the image should follow
    uncond: Condition  #: empty or negative
    scale: float | Tensor  #: guidance strength; a tensor [B] guides each image by its own
    guided_channels: int | None = None  #: leading channels that are guided (None: all); the variance's are cond's
    control: Any = None  #: sees the rows of all branches, the conditional ones first
    also: tuple[tuple[Condition, float | Tensor], ...] = ()  #: further conditions and their weights, a number or [B]
    rescale: float = 0.0  #: phi in [0, 1]: how far the output gets back the standard deviation of cond's, by image
    split: bool = False  #: one branch after the other: the memory of one, without a control

    def __post_init__(self) -> None:
        """Check the numbers."""
        require(_finite(self.scale), f"guidance is {self.scale}; it must be a finite number")
        for _, weight in self.also:
            require(_finite(weight), f"a prompt has the weight {weight}; it must be a finite number")
        require(0 <= self.rescale <= 1, f"rescale is {self.rescale}; it must lie in [0, 1], 0 for none")
        together = not self.split or self.control is None
        require(together, "split runs one branch after the other, and a control sees them together; leave one out")

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Guided output for ``x`` [B, C, H, W] at times ``t`` [B]."""
        return self.guided(x, t, self.scale)

    def guided(self, x: Tensor, t: Tensor, scale: float | Tensor, factor: float | Tensor = 1.0) -> Tensor:
        """Return the output with another scale, and with a factor on what departs from the plainly conditional one.

        Args:
            x: [B, C, H, W].
            t: Times [B].
            scale: In the place of the field, a number or [B].
            factor: A number or [B]; 0 is plainly conditional, 1 guides in full. ``scale`` becomes ``1 + factor (scale -
                1)`` and each further weight ``factor`` times itself.
        """
        rows = x.shape[0]
        terms = [(one, _times(weight, factor, x)) for one, weight in self.also]
        terms = [(one, weight) for one, weight in terms if not _is(weight, 0)]
        scale = scale if _is(factor, 1) else 1 + _times(scale - 1, factor, x)
        same = self.cond is self.uncond
        if not terms and (same or _is(scale, 1) or (_is(scale, 0) and not self.rescale)):
            only = self.uncond if _is(scale, 0) else self.cond
            return _call(self.network, x, t, only.expand(rows), self.control)
        if not same and not (_is(scale, 0) and not self.rescale):
            terms = [(self.cond, scale), *terms]
        *outputs, uncond = self._outputs(x, t, [one.expand(rows) for one, _ in terms] + [self.uncond.expand(rows)])
        cond = outputs[0] if terms[0][0] is self.cond else uncond
        guided = uncond.shape[1] if self.guided_channels is None else self.guided_channels
        total = base = uncond[:, :guided]
        for output, (_, weight) in zip(outputs, terms, strict=True):
            total = total + _over(weight, x) * (output[:, :guided] - base)
        total = self._rescaled(total, cond[:, :guided]) if self.rescale else total
        return torch.cat([total, cond[:, guided:]], dim=1)

    def _outputs(self, x: Tensor, t: Tensor, conditions: list[Condition]) -> list[Tensor]:
        """Return the network's output for each condition, from one batch unless ``split``."""
        if self.split:
            return [_call(self.network, x, t, one, None) for one in conditions]
        count = len(conditions)
        joined = functools.reduce(Condition.join, conditions)
        outputs = _call(self.network, torch.cat([x] * count), torch.cat([t] * count), joined, self.control)
        return list(outputs.chunk(count))

    def _rescaled(self, guided: Tensor, cond: Tensor) -> Tensor:
        std, wanted = (one.flatten(1).std(1, correction=0) for one in (guided, cond))
        ratio = torch.where(std > 0, wanted / std, torch.ones_like(std)).reshape(-1, *[1] * (guided.dim() - 1))
        return self.rescale * (ratio * guided) + (1 - self.rescale) * guided


def _finite(value: float | Tensor) -> bool:
    return bool(value.isfinite().all()) if isinstance(value, Tensor) else math.isfinite(value)


def _is(value: float | Tensor, number: float) -> bool:
    """Say whether ``value`` is known to be ``number``; of a tensor nobody asks, for that waits for the device."""
    return not isinstance(value, Tensor) and value == number


def _times(weight: float | Tensor, factor: float | Tensor, x: Tensor) -> float | Tensor:
    """Return their product, where one is a number for each image as [B] in the dtype of ``x``."""
    if _is(factor, 1) or _is(weight, 0):
        return weight
    if _is(factor, 0):
        return 0.0
    each = [over_images(one, x, "weights") if isinstance(one, Tensor) else one for one in (weight, factor)]
    return each[0] * each[1]


def _over(weight: float | Tensor, x: Tensor) -> float | Tensor:
    """Return a weight as it multiplies [B, C, H, W]."""
    if not isinstance(weight, Tensor):
        return weight
    return over_images(weight, x, "guidance scales or weights").reshape(-1, *[1] * (x.dim() - 1))


def _call(network: Network, x: Tensor, t: Tensor, condition: Condition, control: Any) -> Tensor:
    arguments: dict[str, Any] = condition.arguments()
    if control is not None:
        arguments["control"] = control
    return network(x, t, **arguments)


def _pad(context: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(context, (0, 0, 0, length - context.shape[1]))

"""Constraints that hold part of a state to a noised reference: a known region, or what a linear filter passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from .combined import combined
from .noise import Noise
from .path import Move
from .schedule import Level
from .solvers import Step

__all__ = ["FilteredReference", "KnownRegion"]

#: The level of the reference: that of the state after the move ("there"), or the one it came from ("here").
At = Literal["there", "here"]


@dataclass(frozen=True, eq=False)
class KnownRegion:
    """Put the known region in place of what was drawn: ``x <- keep * q(x0, level) + (1 - keep) * x``.

    With ``at="there"`` the reference is at the level of the state, so the last move, which ends clean, leaves the known
    pixels exactly as they are in ``x0``. Its noise comes from the stream "reference", apart from the solver's.

    Source: Lugmayr et al. 2022, Algorithm 1; Meng et al. 2022, Algorithm 3.
    """

    x0: Tensor  #: clean image [B, C, H, W]
    keep: Tensor = field(kw_only=True)  #: 1 where the image is known, else 0; broadcast over [B, C, H, W]
    at: At = field(default="there", kw_only=True)  #: level of the reference
    before_network: bool = field(default=False, kw_only=True)  #: act where a denoising move follows, after any move
    eps: Tensor | None = field(default=None, kw_only=True)  #: one noise [B, C, H, W] for all moves; None draws anew
    resets_history: ClassVar[bool] = True

    def __call__(self, step: Step, move: Move, noise: Noise) -> Tensor:
        """Return the constrained state after ``move``."""
        applies = move.following == "denoise" if self.before_network else move.kind == "denoise"
        if not applies:
            return step.x
        return self.keep * _noised(self.x0, _level(move, self.at), self.eps, noise) + (1 - self.keep) * step.x


@dataclass(frozen=True, eq=False)
class FilteredReference:
    """Give the state the reference's part that a linear filter passes: ``x <- x - phi(x) + phi(q(y, level))``.

    Source: Choi et al. 2021 (ILVR), Algorithm 1. The noise of ``y`` comes from the stream "reference".
    """

    y: Tensor  #: clean reference [B, C, H, W]
    low_pass: Callable[[Tensor], Tensor] = field(kw_only=True)  #: phi, linear
    moves: int | None = field(default=None, kw_only=True)  #: only the first so many moves; None is all of them
    at: At = field(default="there", kw_only=True)  #: level of the reference
    final: bool = field(default=False, kw_only=True)  #: also the move that ends clean, against y itself
    resets_history: ClassVar[bool] = True

    def __call__(self, step: Step, move: Move, noise: Noise) -> Tensor:
        """Return the constrained state after ``move``."""
        last = move.there.clean
        applies = (self.final and last) or self.moves is None or move.index < self.moves
        if not applies:
            return step.x
        y = self.y if last and self.final else _noised(self.y, _level(move, self.at), None, noise)
        return step.x + self.low_pass(y - step.x)


def _level(move: Move, at: At) -> Level:
    return move.there if at == "there" else move.here


def _noised(x0: Tensor, level: Level, eps: Tensor | None, noise: Noise) -> Tensor:
    """Draw from ``q(x0, level)``; the clean level is ``x0`` itself, without a draw."""
    if level.clean:
        return x0
    eps = noise.fork("reference")() if eps is None else eps
    return combined((math.sqrt(level.alpha_bar), x0), (math.sqrt(1 - level.alpha_bar), eps))

"""Asyrp's quality boosting: a deterministic sampler that becomes stochastic near the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from steerdiff.samplers import DDIM, Denoiser, Move, Noise, Step

__all__ = ["BoostedDDIM"]


@dataclass(frozen=True, kw_only=True)
class BoostedDDIM:
    """DDIM that is deterministic down to ``t_boost`` and stochastic (eta = 1) below: quality boosting.

    Source: Kwon et al. 2023, section 3.5.
    """

    t_boost: float = 0.0  #: steps from times below it add noise; 0 is plain DDIM
    order: ClassVar[int] = 1

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move."""
        return DDIM(eta=1.0 if move.here.t < self.t_boost else 0.0).step(denoise, x, move, state, noise)

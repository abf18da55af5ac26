"""Denoising diffusion implicit models: the deterministic step, its stochastic family, and inversion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from steerdiff.errors import require

from .combined import combined
from .noise import Noise
from .path import Move
from .prediction import Denoiser
from .solvers import Step, check_goes_down

__all__ = ["DDIM"]


@dataclass(frozen=True, kw_only=True)
class DDIM:
    """Implicit step; ``eta = 0`` is deterministic and also inverts. Order 1. Source: Song et al. 2021, eq. 12 and 16.

    Uses ``x0`` and ``eps`` of the prediction as they are, even where they disagree. Guidance by a score moves both
    (Dhariwal & Nichol 2021, Algorithm 2).
    """

    eta: float = 0.0  #: noise of a step: 0 is none, 1 has DDPM's posterior variance
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require(0 <= self.eta <= 1, f"eta is {self.eta}; it must lie in [0, 1]")

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] along one move; UserError if ``eta > 0`` goes up."""
        if self.eta:
            check_goes_down("DDIM with eta > 0", move, "invert with eta=0")
        a, b = move.here.alpha_bar, move.there.alpha_bar
        prediction = denoise(x, move.here).with_score(a)
        if a == b:  # the last step of a library's convention may stay where it is: bit for bit
            return Step(x, prediction)
        sigma_step = self.eta * math.sqrt((1 - b) / (1 - a) * move.beta) if self.eta else 0.0
        noise_left = math.sqrt(max(0.0, 1 - b - sigma_step**2))
        terms = [*prediction.x0_terms(math.sqrt(b)), (noise_left, prediction.eps)]
        if sigma_step:
            terms.append((sigma_step, noise()))
        return Step(combined(*terms), prediction)

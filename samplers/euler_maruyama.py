"""The Euler-Maruyama method for the reverse-time stochastic differential equation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .noise import Noise
from .path import Move
from .prediction import Denoiser
from .solvers import Step, check_goes_down, check_has_signal

__all__ = ["EulerMaruyama"]


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama:
    """Plain step of the variance-preserving reverse SDE, ``x + h (x / 2 + score) + sqrt(h) z``. Weak order 1.

    ``h`` is the integral of beta(t) over the move, ``log(alpha_bar_there / alpha_bar_here)``. The last move, to the
    clean image, returns the predicted image, which to first order is the noise-free mean that the score-SDE authors
    return. It needs hundreds of steps. Source: Song et al. 2021 (score SDE), eq. 6 and appendix G.
    """

    order: ClassVar[int] = 1

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] down one move; UserError if it goes up, or where alpha_bar is 0."""
        check_goes_down("Euler-Maruyama", move, "invert with DDIM(eta=0), Euler or Heun")
        check_has_signal("Euler-Maruyama", move)
        a, b = move.here.alpha_bar, move.there.alpha_bar
        prediction = denoise(x, move.here).with_score(a)
        if move.there.clean:
            return Step(prediction.x0, prediction)
        h = math.log(b / a)
        score = prediction.eps / -math.sqrt(1 - a)
        return Step(x + h * (x / 2 + score) + math.sqrt(h) * noise(), prediction)

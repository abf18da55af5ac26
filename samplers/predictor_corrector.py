"""Predictor and corrector: Langevin steps at a level, then a step to the next."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from steerdiff.errors import require

from .noise import Noise
from .path import Move
from .prediction import Denoiser, Prediction
from .reverse_sde import ReverseDiffusion, forward_step
from .solvers import Constraint, Solver, Step, check_goes_down, check_has_signal, predict

__all__ = ["PredictorCorrector"]


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector:
    """Langevin steps at the level of the image, then a step of the predictor. ``n_steps`` evaluations besides its own.

    A Langevin step is ``x + s score + sqrt(2 s) z`` with ``s = 2 alpha (snr |z| / |score|)**2``; alpha is ``1 - beta``
    of the move, so 1 for VE. It is the same in all coordinates. Predictors are ``ReverseDiffusion``, ``Ancestral``,
    ``EulerMaruyama``, ``NoPredictor`` or any other solver; one without a field ``sde`` counts as variance preserving.

    Inpainting as the score-SDE authors do it holds the known region, noised to the level of the move's start, after
    corrector and predictor alike::

        known = KnownRegion(x0, keep=keep, at="here")
        solver = PredictorCorrector(constraint=known)
        x = integrate(denoise, solver, path, x, constraints=[known], noise=noise)
        x = keep * x0 + (1 - keep) * x

    The last line is theirs but for a factor of 0.99995: the last move's known region is noised to its start here. In VE
    coordinates hold it with ``at="there"`` instead, since the scale changes with the move.

    Source: Song et al. 2021 (score SDE), Algorithms 2-5, appendices G and I.2.
    """

    predictor: Solver = ReverseDiffusion()  #: makes the step to the next level
    snr: float = 0.16  #: size of a Langevin step; published are 0.16 for small and 0.075 for 256 pixel images
    n_steps: int = 1  #: Langevin steps at each level; 0 leaves the predictor alone
    batch_norms: bool = False  #: step sizes from norms averaged over the batch, as published; else each image's own
    constraint: Constraint | None = None  #: applied between corrector and predictor, as by the loop after both
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require(
            hasattr(self.predictor, "step"),
            f"predictor is {self.predictor!r}; give a solver such as ReverseDiffusion()",
        )
        require(self.snr >= 0, f"snr is {self.snr}; it must be at least 0, such as 0.16")
        require(
            isinstance(self.n_steps, int) and self.n_steps >= 0,
            f"n_steps is {self.n_steps!r}; it must be an integer of at least 0, which corrects nothing",
        )

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] down one move; UserError if it goes up, or where alpha_bar is 0."""
        check_goes_down("PredictorCorrector", move, "invert with DDIM(eta=0), Euler, Heun or RK45")
        check_has_signal("PredictorCorrector", move)
        prediction = None
        for _ in range(self.n_steps):
            x, prediction = self._corrected(denoise, x, move, noise)
        if self.constraint is not None:
            x = self.constraint(Step(x, prediction), replace(move, there=move.here), noise)
        step = self.predictor.step(denoise, x, move, None, noise)
        return Step(step.x, prediction if step.prediction is None else step.prediction)

    def _corrected(self, denoise: Denoiser, x: Tensor, move: Move, noise: Noise) -> tuple[Tensor, Prediction]:
        prediction = predict(denoise, x, move.here)
        score, z = prediction.eps / -math.sqrt(1 - move.here.alpha_bar), noise()
        kept, _ = forward_step(getattr(self.predictor, "sde", None), getattr(self.predictor, "N", None), move)
        size = 2 * kept**2 * (self.snr * self._norms(z) / self._norms(score)) ** 2
        return x + size * score + torch.sqrt(2 * size) * z, prediction

    def _norms(self, values: Tensor) -> Tensor:
        """Lengths [B, 1, 1, 1], taken image by image so that no batch changes them, or their mean [1, 1, 1, 1]."""
        norms = torch.stack([one.norm() for one in values])
        return (norms.mean(0, keepdim=True) if self.batch_norms else norms).reshape(-1, 1, 1, 1)

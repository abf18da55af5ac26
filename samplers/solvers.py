"""What every solver shares: the record of a step, the interface, and the move up by fresh noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from steerdiff.errors import require

from .combined import combined
from .noise import Noise
from .path import Move
from .prediction import Denoiser, Prediction
from .schedule import Level

__all__ = ["Constraint", "Solver", "Step", "renoise"]


@dataclass(frozen=True, eq=False)
class Step:
    """What one move made."""

    x: Tensor  #: the image at the level the move leads to, [B, C, H, W]
    prediction: Prediction | None = None  #: the denoiser's answer the step used; None for a move up by fresh noise
    state: Any = None  #: what the solver wants back at its next step; None where it keeps no history


class Solver(Protocol):
    """Carries an image along one move. Solvers are frozen dataclasses without state; ``order`` is tested."""

    @property
    def order(self) -> int:
        """How fast its error falls with the number of steps, at least; a constant of the class, or a field."""
        ...

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: Any, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] from ``move.here`` to ``move.there``.

        ``state`` is the ``Step.state`` of the step before, None at the first and after anything else touched ``x``.
        ``noise()`` gives fresh standard normal noise of the shape of ``x``.
        """
        ...


class Constraint(Protocol):
    """A projection after each move. A constraint that never edits ``x`` may say ``resets_history = False``."""

    def __call__(self, step: Step, move: Move, noise: Noise, /) -> Tensor:
        """Return what ``step.x`` becomes, [B, C, H, W] at level ``move.there``."""
        ...


def renoise(x: Tensor, move: Move, noise: Noise) -> Tensor:
    """Carry ``x`` up to a noisier level by fresh noise, without a network call (Lugmayr et al. 2022, eq. 1).

    ``sqrt(1 - beta) x + sqrt(beta) z``; with ``beta = 1 - alpha_bar_there / alpha_bar_here`` the marginal is kept.

    Raises:
        UserError: The move goes down.
    """
    require(
        move.there.alpha_bar <= move.here.alpha_bar,
        f"a renoise move from t = {move.here.t:g} to t = {move.there.t:g} would go towards the image",
    )
    return combined((math.sqrt(1 - move.beta), x), (math.sqrt(move.beta), noise()))


def predict(denoise: Denoiser, x: Tensor, level: Level) -> Prediction:
    """The denoiser's answer, with guidance by a score already part of ``x0`` and ``eps``."""
    return denoise(x, level).with_score(level.alpha_bar)


def straight(x: Tensor, slope: Tensor, here: Level, there: Level) -> Tensor:
    """``x / sqrt(alpha_bar) + (sigma' - sigma) slope``, scaled to the level it reaches."""
    kept = math.sqrt(there.alpha_bar / here.alpha_bar)
    return combined((kept, x), (math.sqrt(there.alpha_bar) * (there.sigma - here.sigma), slope))


def check_goes_down(name: str, move: Move, remedy: str) -> None:
    """Raise UserError unless ``move`` goes towards the image, or stays."""
    require(
        move.there.alpha_bar >= move.here.alpha_bar,
        f"{name} cannot move towards noise (t = {move.here.t:g} to {move.there.t:g}); {remedy}",
    )


def check_has_signal(name: str, move: Move) -> None:
    """Raise UserError where a level holds no image at all, so that sigma is infinite."""
    require(
        min(move.here.alpha_bar, move.there.alpha_bar) > 0,
        f"{name} works in sigma, which is infinite at alpha_bar = 0 (t = {move.here.t:g} to {move.there.t:g}); "
        "use DDIM",
    )

"""One step of a reverse-time diffusion: the predictors of the score-SDE paper.

Source: Song et al. 2021 (score SDE), eq. 6 and 46-47, appendices E to G.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

from torch import Tensor

from steerdiff.errors import require

from .noise import Noise
from .path import Move
from .prediction import Denoiser
from .sde import SDE, SubVPSDE, euler_step, sde_scale, sde_time
from .solvers import Step, check_goes_down, check_has_signal, predict

__all__ = ["Ancestral", "End", "EulerMaruyama", "NoPredictor", "ReverseDiffusion", "ReverseStep", "forward_step"]

#: What a move to the clean image returns.
End = Literal["x0", "mean", "noisy"]


class Reverse(NamedTuple):
    """A reverse step in the diffusion's own coordinates: ``x + pull x + gain score + spread z``."""

    pull: float
    gain: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class ReverseStep:
    """What the predictors share: fields, checks, and the way into the diffusion's own coordinates and back.

    Raises:
        UserError: ``N`` without ``sde``, below 2, or an unknown ``end``.
    """

    sde: SDE | None = None  #: equation to reverse, on paths of ``sde_path``; None preserves variance on any path
    N: int | None = None  #: number of steps that the official code derives its step from; None goes by the levels
    end: End = "x0"  #: clean end: the predicted image, the step's mean ("noise removal"), or with its noise too
    order: ClassVar[int] = 1
    title: ClassVar[str]  #: for messages

    def __post_init__(self) -> None:
        require(self.end in get_args(End), f"end is {self.end!r}; known are {', '.join(get_args(End))}")
        require(
            self.sde is None or hasattr(self.sde, "discretize"),
            f"sde is {self.sde!r}; give a diffusion such as VPSDE(), or None",
        )
        if self.N is not None:
            require(self.sde is not None, f"N is {self.N} without a diffusion to discretise; give sde too")
            require(self.N >= 2, f"N is {self.N}; the official code takes at least 2 steps")

    def reverse(self, move: Move) -> Reverse:
        """Coefficients of the step along ``move``."""
        raise NotImplementedError

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] down one move; UserError if it goes up, or where alpha_bar is 0."""
        check_goes_down(self.title, move, "invert with DDIM(eta=0), Euler, Heun or RK45")
        check_has_signal(self.title, move)
        prediction = predict(denoise, x, move.here)
        if move.there.clean and self.end == "x0":
            return Step(prediction.x0, prediction)
        own, std, back = self._coordinates(move)
        x = own * x
        pull, gain, spread = self.reverse(move)
        x = x + (pull * x - gain / std * prediction.eps)
        if spread and not (move.there.clean and self.end == "mean"):
            x = x + spread * noise()
        return Step(x / back, prediction)

    def _coordinates(self, move: Move) -> tuple[float, float, float]:
        """Factor into the diffusion's own coordinates, noise there, and what to divide by on the way back."""
        if self.sde is None:
            return 1.0, math.sqrt(1 - move.here.alpha_bar), 1.0
        t, there = _times(self.sde, move)
        return sde_scale(self.sde, t), self.sde.std(t), 1.0 if there is None else sde_scale(self.sde, there)


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(ReverseStep):
    """Plain step of the reverse SDE, ``x - (f - g**2 score) dt + g sqrt(dt) z``. Weak order 1.

    Without ``sde`` it is that of the variance-preserving SDE between two levels: ``x + h (x / 2 + score) + sqrt(h) z``
    with ``h``, the integral of beta(t) over the move, ``log(alpha_bar_there / alpha_bar_here)``. It needs hundreds of
    steps. With ``N`` every step has ``dt = 1 / N`` as in the official code, a little less than the grid's own.

    The last move, to the clean image, returns the predicted image, which to first order is the noise-free mean of a
    step from there. The score-SDE authors return the mean of an ordinary step: that is ``end="mean"``. Source: Song et
    al. 2021 (score SDE), eq. 6 and appendix G.
    """

    title: ClassVar[str] = "Euler-Maruyama"

    def reverse(self, move: Move) -> Reverse:
        """Coefficients of the step along ``move``."""
        if self.sde is None:
            h = math.log(move.there.alpha_bar / move.here.alpha_bar)
            return Reverse(h / 2, h, math.sqrt(h))
        kept, variance = euler_step(self.sde, *_times(self.sde, move), self.N)
        return Reverse(1 - kept, variance, math.sqrt(variance))


@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(ReverseStep):
    """The discrete forward step, reversed: ``x - f + G**2 score + G z``. Weak order 1.

    For VP ``f`` is ``(sqrt(1 - beta) - 1) x`` and ``G**2`` is beta, for VE 0 and the difference of ``sigma**2``; sub-VP
    has the step of Euler and Maruyama. Source: Song et al. 2021 (score SDE), eq. 46 and appendix E.
    """

    title: ClassVar[str] = "Reverse diffusion"

    def reverse(self, move: Move) -> Reverse:
        """Coefficients of the step along ``move``."""
        kept, variance = forward_step(self.sde, self.N, move)
        return Reverse(1 - kept, variance, math.sqrt(variance))


@dataclass(frozen=True, kw_only=True)
class Ancestral(ReverseStep):
    """Ancestral step of the discrete diffusions. Weak order 1.

    For VP ``(x + beta score) / sqrt(1 - beta) + sqrt(beta) z``, which between levels is ``DDPM`` with the variance
    ``fixed_large``; for VE ``x + (sigma**2 - sigma'**2) score`` and noise of the posterior's variance, which is
    ``EulerAncestral``. Source: Song et al. 2021 (score SDE), eq. 4 and 47 and appendix F.

    Raises:
        UserError: ``sde`` is sub-VP, for which there is none.
    """

    title: ClassVar[str] = "The ancestral step"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not isinstance(self.sde, SubVPSDE), "there is no ancestral step for sub-VP; use ReverseDiffusion(sde=...)"
        )

    def reverse(self, move: Move) -> Reverse:
        """Coefficients of the step along ``move``."""
        kept, variance = forward_step(self.sde, self.N, move)
        if kept != 1 or self.sde is None:
            return Reverse(1 / kept - 1, variance / kept, math.sqrt(variance))
        _, noise = self.sde.discretize(_times(self.sde, move)[0], None, self.N)
        return Reverse(0.0, variance, math.sqrt(variance * (1 - variance / noise)))


@dataclass(frozen=True, kw_only=True)
class NoPredictor(ReverseStep):
    """Leaves the image as it is in the diffusion's own coordinates: a corrector alone carries it down."""

    title: ClassVar[str] = "NoPredictor"

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: None, noise: Noise) -> Step:
        """Take ``x`` [B, C, H, W] for an image at the end of the move; only ``end="x0"`` asks the denoiser."""
        if move.there.clean and self.end == "x0":
            return super().step(denoise, x, move, state, noise)
        check_goes_down(self.title, move, "invert with DDIM(eta=0), Euler, Heun or RK45")
        own, _, back = self._coordinates(move)
        return Step(own / back * x)


def forward_step(sde: SDE | None, N: int | None, move: Move) -> tuple[float, float]:
    """Factor of ``x`` and added variance of the discrete forward step that ``move`` undoes."""
    if sde is None:
        return math.sqrt(1 - move.beta), move.beta
    return sde.discretize(*_times(sde, move), N)


def _times(sde: SDE, move: Move) -> tuple[float, float | None]:
    """Times of both ends of a move of ``sde``; None is the clean image."""
    return sde_time(sde, move.here), None if move.there.clean else sde_time(sde, move.there)

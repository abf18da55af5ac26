"""What a denoiser says about a noisy image, in every parameterisation, and the denoiser made from a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from steerdiff.errors import UserError, require

from .combined import Terms, combined, plus
from .schedule import Level

__all__ = ["ClipPolicy", "Denoiser", "Network", "NetworkDenoiser", "Parameterization", "Prediction"]

Parameterization = Literal["eps", "x0", "v", "score"]
ClipPolicy = Literal["none", "clip", "dynamic"]

_PARAMETERIZATIONS = get_args(Parameterization)  # checks of a step write no message unless one fails


class _Origin(NamedTuple):
    """What implies ``x0``, beside ``eps``."""

    x: Tensor
    level: Level


@dataclass(frozen=True, eq=False)
class Prediction:
    """A denoiser's answer: the clean image and the noise it sees in ``x``, and what else solvers may use.

    ``x0`` and ``eps`` normally obey ``x = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps``. They may disagree on purpose:
    asymmetric reverse processes edit one of them only.

    Where a network says ``eps`` (or the score), ``x0`` is implied by ``eps`` and ``x``. It is then computed when it is
    first looked at, which solvers that only add images never do; until then ``x`` must not be changed in place.
    """

    x0: Tensor  #: predicted clean image [B, C, H, W]
    eps: Tensor  #: predicted noise [B, C, H, W]
    log_variance_fraction: Tensor | None = None  #: v of a learned range, nominally in [-1, 1] but never clamped
    score: Tensor | None = None  #: guidance: gradient in x of a log-likelihood, scaled, not yet part of x0 and eps
    _origin: ClassVar[_Origin | None] = None  # an instance has its own where x0 is implied

    @staticmethod
    def from_output(
        output: Tensor,
        x: Tensor,
        level: Level | Tensor,
        parameterization: Parameterization = "eps",
        learns_variance: bool = False,
    ) -> Prediction:
        """Read a network's raw output. Arithmetic is in float32, or wider if ``x`` is.

        Args:
            output: [B, C, H, W], or [B, 2C, H, W] where the network learns variances.
            x: The noisy image the network saw, [B, C, H, W].
            level: Where ``x`` is; or, in training, ``alpha_bar`` of each image, a tensor [B] (float64 is best).
            parameterization: What the first C channels mean. ``v`` is ``sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0``
                (Salimans & Ho 2022); ``score`` is the gradient of ``log p(x)``, ``-eps / sqrt(1 - alpha_bar)``.
            learns_variance: Whether the last C channels are the v of a learned range (Nichol & Dhariwal 2021, eq. 15).

        Raises:
            UserError: The channels do not fit, the parameterisation is unknown, or it says nothing at this level.
        """
        _check_parameterization(parameterization)
        channels = x.shape[1]
        expected = 2 * channels if learns_variance else channels
        if output.shape != (x.shape[0], expected, *x.shape[2:]):
            raise UserError(
                f"the network's output is {list(output.shape)} for an input of {list(x.shape)}; expected "
                f"{expected} channels with learns_variance={learns_variance}"
            )
        if isinstance(level, Level):
            _check_level(level, parameterization)
        x, output = _widened(x, output)
        value, fraction = (output[:, :channels], output[:, channels:]) if learns_variance else (output, None)
        if parameterization == "eps":
            return _of_eps(value, x, level, fraction)
        signal, noise = _roots(level, x)
        if parameterization == "score":
            return _of_eps(-noise * value, x, level, fraction)
        if parameterization == "x0":
            return Prediction(value, _remainder(x, value, signal, noise), fraction)
        x0, eps = combined((signal, x), (-noise, value)), combined((signal, value), (noise, x))
        return Prediction(x0, eps, fraction)

    if not TYPE_CHECKING:  # where it would stand for any name

        def __getattr__(self, name: str) -> Tensor:
            """Compute the ``x0`` that ``eps`` implies, which is the one attribute that may not be there yet."""
            if name != "x0" or self._origin is None:
                raise AttributeError(f"a Prediction has no {name!r}")
            x0 = self.__dict__["x0"] = combined(*self.x0_terms())
            return x0

    def x0_terms(self, factor: float = 1.0) -> Terms:
        """``factor * x0`` as terms for ``combined``: those of ``x`` and ``eps``, where ``x0`` is implied by them.

        Which they are does not depend on whether anybody has looked at ``x0``.
        """
        if self._origin is None:
            return ((factor, self.x0),)
        return _x0_terms(self._origin.x, self.eps, self._origin.level, factor)

    def clipped(self, level: Level | Tensor, x: Tensor) -> Prediction:
        """Clip ``x0`` to [-1, 1] and take ``eps`` from the clipped image, as guided-diffusion does."""
        return self._with_x0(self.x0.clamp(-1, 1), level, x)

    def thresholded(self, level: Level | Tensor, x: Tensor, quantile: float = 0.995) -> Prediction:
        """Dynamic thresholding: clip ``x0`` at a quantile of its own size and divide by it, image by image.

        Source: Saharia et al. 2022 (Imagen), section 2.3. The bound is at least 1, so images in range stay as they are.

        Args:
            level: Where ``x`` is, or ``alpha_bar`` per image [B].
            x: The noisy image [B, C, H, W]; ``eps`` is taken anew from it.
            quantile: In (0, 1]; the share of pixels that keep their value before the division.

        Raises:
            UserError: ``quantile`` outside (0, 1].
        """
        _check_quantile(quantile)
        sizes = self.x0.abs().flatten(1)  # image by image: torch.quantile was long limited to 2**24 numbers
        bound = torch.stack([torch.quantile(one, quantile) for one in sizes]).clamp(min=1)
        bound = bound.reshape(-1, *[1] * (self.x0.ndim - 1))
        return self._with_x0(self.x0.clamp(-bound, bound) / bound, level, x)

    def with_score(self, alpha_bar: float) -> Prediction:
        """Fold ``score`` into ``eps`` and ``x0``, which are not clipped again; without one, the prediction itself.

        ``eps - sqrt(1 - alpha_bar) score``. Source: Dhariwal & Nichol 2021, Algorithm 2.
        """
        if self.score is None:
            return self
        require(alpha_bar > 0, "guidance by a score needs a level with alpha_bar above 0; start the path lower")
        eps = self.eps - math.sqrt(1 - alpha_bar) * self.score
        if self._origin is not None and not eps.requires_grad:
            return _implied(self._origin, eps, self.log_variance_fraction)
        x0 = self.x0 + (1 - alpha_bar) / math.sqrt(alpha_bar) * self.score
        return replace(self, x0=x0, eps=eps, score=None)

    def adding(self, score: Tensor | None) -> Prediction:
        """Return the prediction with ``score`` [B, C, H, W] added to its own: guidances nest by their sum."""
        if score is None:
            return self
        score = score if self.score is None else self.score + score
        if self._origin is not None:
            return _implied(self._origin, self.eps, self.log_variance_fraction, score)
        return replace(self, score=score)

    def _with_x0(self, x0: Tensor, level: Level | Tensor, x: Tensor) -> Prediction:
        signal, noise = _roots(level, self.x0)
        return replace(self, x0=x0, eps=_remainder(*_widened(x, x0), signal, noise))


Denoiser = Callable[[Tensor, Level], Prediction]
"""``denoise(x, level) -> Prediction``, with the conditioning already bound."""

Network = Callable[[Tensor, Tensor], Tensor]
"""``network(x [B, C, H, W], t [B]) -> output``: the published form of every network here."""


@dataclass(frozen=True, kw_only=True)
class NetworkDenoiser:
    """A denoiser from a network: calls it with the level's time and reads its output."""

    network: Network  #: called as network(x, t) with t a float tensor [B]
    parameterization: Parameterization = "eps"  #: what the network's output means
    learns_variance: bool = False  #: whether the output has twice the channels, the second half for the variance
    clip: ClipPolicy = "none"  #: what happens to x0: nothing, clipping to [-1, 1], or dynamic thresholding
    quantile: float = 0.995  #: of dynamic thresholding, in (0, 1]
    time_scale: float = 1.0  #: the network is told t * time_scale; 1000 / T for "rescaled" times
    dtype: torch.dtype | None = None  #: of the network; x is cast to it, None passes x as it is

    def __post_init__(self) -> None:
        require(
            self.clip in get_args(ClipPolicy), f"clip is {self.clip!r}; known are {', '.join(get_args(ClipPolicy))}"
        )
        _check_parameterization(self.parameterization)
        _check_quantile(self.quantile)
        require(self.time_scale > 0, f"time_scale is {self.time_scale}; it must be positive")

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict from ``x`` [B, C, H, W] at ``level``; UserError where the network's form cannot answer."""
        seen = x if self.dtype is None else x.to(self.dtype)
        t = torch.full((x.shape[0],), level.t * self.time_scale, device=x.device, dtype=_wide(seen.dtype))
        return self._read(self.network(seen, t), x, level)

    def rows(self, x: Tensor, levels: Sequence[Level]) -> Prediction:
        """Predict from ``x`` [B, C, H, W] whose images stand at a level each, in one call of the network."""
        for level in levels:
            _check_level(level, self.parameterization)
        seen = x if self.dtype is None else x.to(self.dtype)
        t = torch.tensor([level.t * self.time_scale for level in levels], dtype=_wide(seen.dtype))
        alpha_bar = torch.tensor([level.alpha_bar for level in levels], dtype=torch.float64)
        return self._read(self.network(seen, t.to(x.device)), x, alpha_bar.to(x.device))

    def _read(self, output: Tensor, x: Tensor, level: Level | Tensor) -> Prediction:
        prediction = Prediction.from_output(output, x, level, self.parameterization, self.learns_variance)
        if self.clip == "clip":
            return prediction.clipped(level, x)
        return prediction.thresholded(level, x, self.quantile) if self.clip == "dynamic" else prediction


def _of_eps(eps: Tensor, x: Tensor, level: Level | Tensor, fraction: Tensor | None) -> Prediction:
    """The prediction that ``eps`` is, whose ``x0`` waits unless it needs a gradient, or there is a level per image."""
    if isinstance(level, Level) and not (x.requires_grad or eps.requires_grad):
        return _implied(_Origin(x, level), eps, fraction)
    return Prediction(combined(*_x0_terms(x, eps, level)), eps, fraction)


def _implied(
    origin: _Origin, eps: Tensor, log_variance_fraction: Tensor | None, score: Tensor | None = None
) -> Prediction:
    """A prediction without an ``x0`` yet; what ``dataclasses.replace`` makes of it has one of its own."""
    prediction = object.__new__(Prediction)
    prediction.__dict__.update(eps=eps, log_variance_fraction=log_variance_fraction, score=score, _origin=origin)
    return prediction


def _x0_terms(x: Tensor, eps: Tensor, level: Level | Tensor, factor: float = 1.0) -> Terms:
    """``factor (x - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar)``, each tensor's factor rounded once."""
    if isinstance(level, Level):
        share = factor / math.sqrt(level.alpha_bar)
        return (share, x), (-share * math.sqrt(1 - level.alpha_bar), eps)
    alpha_bar = _by_image(level, x)
    shares = factor / alpha_bar.sqrt()
    return (shares.to(x.dtype), x), ((-shares * (1 - alpha_bar).sqrt()).to(x.dtype), eps)


def _remainder(x: Tensor, part: Tensor, factor: float | Tensor, divisor: float | Tensor) -> Tensor:
    """``(x - factor part) / divisor`` of tensors of one type, in one new tensor."""
    return plus(x, -factor, part).div_(divisor)


def _roots(level: Level | Tensor, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """``sqrt(alpha_bar)`` and ``sqrt(1 - alpha_bar)``: floats, or tensors [B, 1, 1, 1] rounded at the end."""
    if isinstance(level, Level):
        return math.sqrt(level.alpha_bar), math.sqrt(1 - level.alpha_bar)
    alpha_bar, dtype = _by_image(level, like), _wide(like.dtype)
    return alpha_bar.sqrt().to(dtype), (1 - alpha_bar).sqrt().to(dtype)


def _by_image(alpha_bar: Tensor, like: Tensor) -> Tensor:
    """One number for each image [B], as it broadcasts: [B, 1, 1, 1]."""
    return alpha_bar.reshape(-1, *[1] * (like.ndim - 1))


def _widened(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their types, at least float32."""
    if x.dtype == y.dtype == torch.float32:
        return x, y
    dtype = _wide(torch.promote_types(x.dtype, y.dtype))
    return x.to(dtype), y.to(dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _check_parameterization(name: str) -> None:
    if name not in _PARAMETERIZATIONS:
        raise UserError(f"parameterization is {name!r}; known are {', '.join(_PARAMETERIZATIONS)}")


def _check_level(level: Level, parameterization: Parameterization) -> None:
    if level.clean:
        raise UserError("the denoiser was asked at the clean level; start at a level with noise, such as path.start")
    if level.alpha_bar == 0 and parameterization not in ("v", "x0"):
        raise UserError(
            f"alpha_bar is 0 at t = {level.t:g}, where {parameterization!r} says nothing about the image; "
            "only v and x0 do"
        )


def _check_quantile(quantile: float) -> None:
    require(0 < quantile <= 1, f"quantile is {quantile}; it must lie in (0, 1]")

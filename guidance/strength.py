"""Everything about classifier-free guidance but the prompt: how strong, at which levels, with which further prompts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.samplers import Denoiser, Level, NetworkDenoiser, Path, Prediction

from .classifier_free import ClassifierFree, Condition, Conditioned, Network
from .noisy_classifier import Classes
from .prompts import Weighted
from .scales import ScaleSchedule, check_factor, check_schedule, over_images, scale_at, spread

if TYPE_CHECKING:
    from .model import Model

__all__ = ["Guidance", "LevelGuided", "Strength", "scale_of", "w_of"]


def scale_of(w: float) -> float:
    """Return the guidance strength of this library, ``w + 1``.

    Papers count it as ``w`` in ``(1 + w) cond - w uncond`` (Ho & Salimans 2022, eq. 6), where 0 is plainly conditional;
    here and in Imagen, GLIDE and Stable Diffusion it is ``scale`` in ``uncond + scale (cond - uncond)``, where 1 is.
    """
    return w + 1


def w_of(scale: float) -> float:
    """Return Ho & Salimans' ``w`` of a strength of this library, ``scale - 1``; see `scale_of`."""
    return scale - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Guidance:
    """How classifier-free guidance is done: ``uncond + scale (cond - uncond) + sum_k w_k (c_k - uncond)``.

    ``interval`` and ``schedule`` weaken at some levels what departs from the plainly conditional output: the scale is
    ``1 + factor (scale - 1)`` and each weight ``factor w_k``, with a factor in [0, 1]. Where it is 0 only the
    conditional branch runs. Levels are read as Python numbers: nothing waits for the device.

    Source: Ho & Salimans 2022; for the interval Kynkäänniemi et al. 2024, who count it in sigma (give a callable).
    """

    #: strength: a number, one for each image [B], or a function of the level; None is the model's own
    scale: float | Tensor | Callable[[Level], float] | None = None
    also: tuple[Weighted, ...] = ()  #: further prompts with weights of any sign
    rescale: float = 0.0  #: phi of guidance rescale in [0, 1], published 0.7; 0 is none
    interval: tuple[float, float] = (0.0, 1.0)  #: shares t / (T - 1) between which, ends included, it guides
    schedule: ScaleSchedule = "constant"  #: factor by the level
    split: bool = False  #: one branch after the other: the memory of one branch

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        if self.scale is not None and not callable(self.scale):
            check_factor(self.scale, "guidance")
        for one in self.also:
            check_factor(one.weight, "a prompt's weight")
        require(0 <= self.rescale <= 1, f"rescale is {self.rescale}; it must lie in [0, 1], 0 for none")
        low, high = self.interval
        within = 0 <= low <= high <= 1
        require(within, f"the interval of guidance is {low:g} to {high:g}; give two shares of the times in [0, 1]")
        check_schedule(self.schedule)

    @staticmethod
    def of(given: Strength) -> Guidance:
        """Return a guidance of strength ``given``, or ``given`` itself if it is one."""
        if isinstance(given, Guidance):
            return given
        if isinstance(given, Sequence):
            return Guidance(scale=torch.tensor(given, dtype=torch.float64))
        return Guidance(scale=given)

    def bound(self, model: Model, *, y: Classes | None = None, extra: Tensor | None = None) -> Guidance:
        """Return it with the prompts encoded, the tensors on the model's device and None as the model's own.

        Raises:
            UserError: A prompt that the model cannot take.
        """
        also = tuple(
            Weighted(model.condition(one.prompt, y=y, extra=extra), _moved(one.weight, model)) for one in self.also
        )
        scale = model.sampling.guidance if self.scale is None else self.scale
        return replace(self, scale=scale if callable(scale) else _moved(scale, model), also=also)

    @property
    def rows(self) -> int:
        """Number of rows of the further prompts, once they are encoded; 1 without any."""
        return max((one.prompt.rows for one in self.also if isinstance(one.prompt, Condition)), default=1)

    def repeat(self, n: int) -> Guidance:
        """Follow each row of the encoded prompts by ``n - 1`` copies of itself; scales and weights stay as they are."""
        return replace(self, also=tuple(Weighted(_encoded(one).repeat(n), one.weight) for one in self.also))

    def __getitem__(self, rows: slice) -> Guidance:
        """Return the guidance of some of the images."""
        also = tuple(Weighted(_encoded(one)[rows], _cut(one.weight, rows)) for one in self.also)
        scale = self.scale
        return replace(self, scale=_cut(scale, rows) if isinstance(scale, Tensor) else scale, also=also)

    def check_fits(self, path: Path, T: int, images: int) -> None:
        """Check before a run that it guides somewhere, by finite numbers, and has as many of them as images.

        Args:
            path: Where the run goes.
            T: Number of trained times.
            images: Images of the run.

        Raises:
            UserError: Another number of scales or weights, no level of the path in the interval, or a callable that
                gives no finite number at one.
        """
        for one in (self.scale, *(one.weight for one in self.also)):
            count = one.numel() if isinstance(one, Tensor) else 1
            require(
                count in (1, images),
                f"{count} guidance scales or weights were given for {images} images; give one, or one for each",
            )
        levels = [move.here for move in path]
        strengths = [self.at(level, T) for level in levels]
        low, high = self.interval
        times = f"{min(level.t for level in levels):g} to {max(level.t for level in levels):g}"
        require(
            any(factor != 0 for _, factor in strengths),
            f"nothing is guided: none of the {len(levels)} times, {times} of {T}, lies in the interval {low:g} to "
            f"{high:g} and the schedule {self.schedule!r}; widen it, or take guidance 1 for none",
        )

    def at(self, level: Level, T: int) -> tuple[float | Tensor, float]:
        """Return the scale, before the factor, and the factor at ``level`` of ``T`` trained times."""
        share = min(max(level.t / max(T - 1, 1), 0.0), 1.0)
        factor = scale_at(self.schedule, level, T) if self.interval[0] <= share <= self.interval[1] else 0.0
        if not callable(self.scale):
            return cast("float | Tensor", self.scale), factor
        scale = float(self.scale(level))
        require(math.isfinite(scale), f"guidance is {scale} at t = {level.t:g}; it must be a finite number")
        return scale, factor

    def network(self, network: Network, cond: Condition, uncond: Condition, *, channels: int, control: Any) -> Network:
        """Return the guided network at full strength, or the plain one where there is nothing to guide.

        Args:
            network: The bare one.
            cond: What the image should follow.
            uncond: Empty or negative; the same object as ``cond`` where guidance has no effect.
            channels: Leading channels that are guided.
            control: Passed to the network.
        """
        if uncond is cond and not self.also:
            return Conditioned(network=network, condition=cond, control=control)
        return ClassifierFree(
            network=network,
            cond=cond,
            uncond=uncond,
            scale=1.0 if callable(self.scale) else cast("float | Tensor", self.scale),  # a callable is asked by level
            guided_channels=channels,
            control=control,
            also=tuple((_encoded(one), one.weight) for one in self.also),
            rescale=self.rescale,
            split=self.split,
        )

    def over_levels(self, denoise: NetworkDenoiser, T: int) -> Denoiser:
        """Return the denoiser that guides at each level as this says; ``denoise`` itself where all are alike."""
        always = self.interval == (0, 1) and self.schedule == "constant" and not callable(self.scale)
        if always or not isinstance(denoise.network, ClassifierFree):
            return denoise
        return LevelGuided(denoise=denoise, guidance=self, T=T)


#: A strength as `Guidance.scale` means it, one for each image, or a whole `Guidance`.
Strength = float | Tensor | Sequence[float] | Callable[[Level], float] | Guidance | None


@dataclass(frozen=True, kw_only=True, eq=False)
class LevelGuided:
    """A denoiser whose classifier-free guidance is of another strength at each level; made by `Model.denoiser`."""

    denoise: NetworkDenoiser  #: over a `ClassifierFree` network
    guidance: Guidance  #: says how strong
    T: int  #: number of trained times

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict from ``x`` [B, C, H, W] at ``level``."""
        return self._with(*self.guidance.at(level, self.T))(x, level)

    def rows(self, x: Tensor, levels: Sequence[Level]) -> Prediction:
        """Predict from ``x`` [B, C, H, W] whose images stand at a level each, in one call of the network."""
        each = [self.guidance.at(level, self.T) for level in levels]
        scale: float | Tensor = each[0][0]
        factor: float | Tensor = each[0][1]
        if any(one is not scale and one != scale for one, _ in each):  # only those of a callable differ
            scale = spread([cast(float, one) for one, _ in each], x)
        if any(one != factor for _, one in each):
            factor = over_images(spread([one for _, one in each], x), x, "factors")
        return self._with(scale, factor).rows(x, levels)

    def _with(self, scale: float | Tensor, factor: float | Tensor) -> NetworkDenoiser:
        guide = cast(ClassifierFree, self.denoise.network)
        return replace(self.denoise, network=functools.partial(guide.guided, scale=scale, factor=factor))


def _moved(weight: float | Tensor, model: Model) -> float | Tensor:
    return weight.to(model.device).reshape(-1) if isinstance(weight, Tensor) else weight


def _encoded(one: Weighted) -> Condition:
    return cast(Condition, one.prompt)


def _cut(weight: float | Tensor, rows: slice) -> float | Tensor:
    return weight[rows] if isinstance(weight, Tensor) and weight.numel() > 1 else weight

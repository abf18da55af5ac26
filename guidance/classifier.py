"""Guidance by the gradient of a noisy classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steerdiff.errors import UserError, require
from steerdiff.samplers import Denoiser, Level, Move, Path, Prediction, posterior_mean
from steerdiff.samplers.rows import predict_rows

from .noisy_classifier import Classifier
from .scales import ScaleSchedule, check_factor, check_schedule, over_images, scale_at, spread

__all__ = ["ClassifierGuidance"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierGuidance:
    """A denoiser that pulls towards classes: it adds ``scale grad_x log p(y | x_t)`` to the prediction's score.

    ``DDPM`` moves its mean by the score times its variance, all other solvers move ``eps``. The classifier is asked at
    ``x_t`` with the time there, as in the official code. With a ``path`` it is asked at the mean of the unguided DDPM
    step from there along the path, with the time that the step leads to, as the derivation has it; the authors call the
    difference without effect. ``x0`` and ``eps`` of the prediction stay unguided. Guidance nests, since scores add. The
    score carries no gradient of its own.

    A scale of 0 is the unguided denoiser, bit for bit, without running the classifier; so it is at levels where the
    schedule is 0.

    Source: Dhariwal & Nichol 2021, Algorithms 1 and 2; section 4.1 for ``path``.

    Raises:
        UserError: Labels that are no integers from 0 on, not [B], a scale that is not finite, or an unknown schedule.
    """

    denoise: Denoiser  #: what is guided
    classifier: Classifier  #: ``classifier(x [B, C, H, W], t [B]) -> logits [B, classes]``, in eval mode
    y: int | Tensor  #: class to pull towards, one for all or int64 [B]
    scale: float | Tensor = 1.0  #: strength, an exponent of p(y | x); a tensor [B] guides each image by its own
    time_scale: float = 1.0  #: the classifier is told t * time_scale; 1000 / T for "rescaled" times
    schedule: ScaleSchedule = "constant"  #: how the strength depends on the level
    T: int = 1000  #: number of trained times, for the schedule
    path: Path | None = None  #: asks at the mean of the step down along this path; None asks at ``x_t``
    _largest: int = field(init=False, repr=False)
    _moves: dict[Level, Move] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        labels = torch.as_tensor(self.y)
        integral = not labels.is_floating_point() and labels.dtype != torch.bool and labels.ndim <= 1
        require(
            integral and labels.numel() > 0,
            f"y is {list(labels.shape)} {labels.dtype}; give one class, or an int64 tensor [B] of one for each image",
        )
        require(int(labels.min()) >= 0, f"y holds the label {int(labels.min())}; labels count from 0")
        check_factor(self.scale, "scale")
        require(
            0 < self.time_scale < math.inf,
            f"time_scale is {self.time_scale}; it must be positive, 1 unless the classifier learned rescaled times",
        )
        check_schedule(self.schedule)
        downs = [] if self.path is None else [move for move in self.path if move.kind == "denoise"]
        object.__setattr__(self, "_moves", {move.here: move for move in downs})
        object.__setattr__(self, "_largest", int(labels.max()))  # read once: a step never waits for the device

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict from ``x`` [B, C, H, W] at ``level``, with the classes' pull as score."""
        return self._guided(self.denoise(x, level), x, [level])

    def rows(self, x: Tensor, levels: Sequence[Level]) -> Prediction:
        """Predict from ``x`` [B, C, H, W] whose images stand at a level each."""
        return self._guided(predict_rows(self.denoise, x, levels), x, levels)

    def _guided(self, prediction: Prediction, x: Tensor, levels: Sequence[Level]) -> Prediction:
        factors = [scale_at(self.schedule, level, self.T) for level in levels]
        if not any(factors) or (not isinstance(self.scale, Tensor) and self.scale == 0):
            return prediction
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        seen, times = self._point(prediction, x, levels)
        t = spread(times, x).expand(x.shape[0])
        strength = (over_images(self.scale, x, "scales") * spread(factors, x)).reshape(-1, 1, 1, 1)
        return prediction.adding(strength * _class_score(self.classifier, seen, t, self._labels(x), self._largest))

    def _point(self, prediction: Prediction, x: Tensor, levels: Sequence[Level]) -> tuple[Tensor, list[float]]:
        """Return where the classifier is asked, [B, C, H, W], and the times that it is told, one or one an image."""
        if self.path is None:
            return x, [level.t * self.time_scale for level in levels]
        for level in levels:
            known = f"no step down from t = {level.t:g}; give the path that the solver walks, and a solver of one call"
            require(level in self._moves, f"the path of the guidance has {known}")
        moves = [self._moves[level] for level in levels]
        rows = [slice(None)] if len(moves) == 1 else [slice(i, i + 1) for i in range(len(moves))]
        means = [posterior_mean(prediction.x0[row], x[row], move) for row, move in zip(rows, moves, strict=True)]
        return torch.cat(means), [max(move.there.t, 0.0) * self.time_scale for move in moves]

    def _labels(self, x: Tensor) -> Tensor:
        images = x.shape[0]
        if not isinstance(self.y, Tensor):
            return torch.full((images,), self.y, device=x.device)
        count = self.y.numel()
        require(count in (1, images), f"{count} labels were given for {images} images; give one, or one for each")
        return self.y.reshape(-1).long().to(x.device).expand(images)


def _class_score(classifier: Classifier, x: Tensor, t: Tensor, y: Tensor, largest: int) -> Tensor:
    """``grad_x log softmax(classifier(x, t))[y]`` [B, C, H, W], also where autograd is off.

    It is the gradient of the sum over the batch: images do not influence each other's logits.
    """
    with torch.inference_mode(False), torch.enable_grad():
        seen = x.detach().clone().requires_grad_()
        logits = classifier(seen, t)
        require(
            logits.ndim == 2 and logits.shape[0] == x.shape[0],
            f"the classifier's logits are {list(logits.shape)} for {x.shape[0]} images; expected [B, classes]",
        )
        require(
            largest < logits.shape[1],
            f"y holds the label {largest}; this classifier has {logits.shape[1]} classes, 0 to {logits.shape[1] - 1}",
        )
        log_p = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)
        if not log_p.requires_grad:
            raise UserError(
                "the classifier's logits carry no gradient; call it without torch.no_grad and without detach"
            )
        (gradient,) = torch.autograd.grad(log_p.gather(1, y.reshape(-1, 1)).sum(), seen)
    return gradient

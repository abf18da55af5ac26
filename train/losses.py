"""The loss of a diffusion model: weighted mean squared error, and the variational term for a learned variance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerdiff.errors import require
from steerdiff.samplers import NoiseSchedule, Prediction
from steerdiff.samplers.variational import vlb_terms

from .data import Labels
from .noising import Noising
from .randomness import SampleRandom

__all__ = ["Batch", "DiffusionLoss", "snr_weights"]

Parameterization = Literal["eps", "x0", "v"]


@dataclass(frozen=True)
class Batch:
    """Samples of one step, or of one accumulated part of it."""

    images: Tensor  #: [B, 3, H, W] in [-1, 1]
    labels: Labels  #: captions, class numbers [B] or None
    random: SampleRandom  #: the samples' random numbers

    def part(self, rows: slice, device: torch.device) -> Batch:
        """Return some rows, on ``device``."""
        labels = None if self.labels is None else self.labels[rows]
        labels = labels.to(device) if isinstance(labels, Tensor) else labels
        random = SampleRandom(self.random.seed, self.random.indices[rows])
        return Batch(self.images[rows].to(device, non_blocking=True), labels, random)


def snr_weights(alpha_bars: NDArray[np.float64], parameterization: Parameterization, gamma: float | None) -> Tensor:
    """Return the loss weight of every time, float64 [T].

    With ``snr = alpha_bar / (1 - alpha_bar)`` the error of x0 has weight ``min(snr, gamma)``. The same loss written in
    eps has ``min(snr, gamma) / snr`` and in v ``min(snr, gamma) / (snr + 1)``: ``|eps - eps'|^2 = snr |x0 - x0'|^2``
    and ``|v - v'|^2 = (snr + 1) |x0 - x0'|^2``. Without gamma every weight is 1.

    Source: Hang et al. 2023, section 3.4 and eq. 8-9.
    """
    if gamma is None:
        return torch.ones(len(alpha_bars), dtype=torch.float64)
    snr = alpha_bars / (1 - alpha_bars)
    clipped = np.minimum(snr, gamma)
    if parameterization == "x0":
        weights = clipped
    elif parameterization == "eps":
        weights = np.divide(clipped, snr, out=np.ones_like(snr), where=snr > 0)
    else:
        weights = clipped / (snr + 1)
    return torch.from_numpy(np.ascontiguousarray(weights))


Condition = Callable[[Labels, torch.device], Mapping[str, Tensor]]
"""Turns labels into keyword arguments of the model."""


class DiffusionLoss:
    """Draw times and noise, run the model on the noised images and compare.

    Args:
        model: ``model(x, t, **condition(labels))`` with x [B, C, H, W] and t [B] float.
        schedule: The noise schedule.
        condition: Turns captions or classes into the model's other arguments.
        parameterization: What the model predicts.
        learns_variance: The output has 2C channels; the second half interpolates the log variance. The hybrid loss
            adds the variational term, in bits per dimension, which trains the variance alone (Nichol & Dhariwal 2021,
            section 3.1). guided-diffusion adds it as it is.
        rescales_vlb: The variational term is multiplied by T / 1000, as improved-diffusion does by default.
        min_snr: Gamma of the loss weights; None for plain mean squared error.
        dropout: Chance that a caption becomes the empty one, or a class label ``null_class`` (Ho & Salimans 2022,
            algorithm 1, p_uncond).
        null_class: Label that stands for no class; None keeps all class labels.
        strata: Sample i draws its time from part ``i mod strata`` of [0, T); 1: anywhere.
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        schedule: NoiseSchedule,
        condition: Condition,
        *,
        parameterization: Parameterization = "v",
        learns_variance: bool = False,
        rescales_vlb: bool = False,
        min_snr: float | None = 5.0,
        dropout: float = 0.1,
        null_class: int | None = None,
        strata: int = 1,
    ) -> None:
        self.model, self.schedule, self.condition = model, schedule, condition
        self.parameterization: Parameterization = parameterization
        self.learns_variance = learns_variance
        self.vlb_scale = schedule.T / 1000 if rescales_vlb else 1.0
        self.dropout, self.null_class, self.noising = dropout, null_class, Noising(schedule, strata)
        alpha_bars = np.asarray(schedule.alpha_bars, dtype=np.float64)
        self._weights = snr_weights(alpha_bars, parameterization, min_snr).float()

    def times(self, random: SampleRandom) -> Tensor:
        """Return the samples' times, int64 [B] in [0, T)."""
        return self.noising.times(random)

    def labels(self, batch: Batch) -> Labels:
        """Return the labels with some of them dropped, each on its own: captions to "", classes to the null class."""
        labels = batch.labels
        if labels is None or (isinstance(labels, Tensor) and self.null_class is None):
            return labels
        dropped = batch.random.uniform("dropout") < self.dropout
        if isinstance(labels, Tensor):
            return labels.masked_fill(dropped.to(labels.device), cast(int, self.null_class))
        return ["" if drop else caption for caption, drop in zip(labels, dropped.tolist(), strict=True)]

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of the batch (float32 scalar) and detached metrics."""
        x0, device = batch.images, batch.images.device
        t = self.times(batch.random)
        eps = batch.random.normal("noise", x0.shape[1:]).to(device, non_blocking=True)
        signal, noise = self.noising.roots(t, device)
        x = signal * x0 + noise * eps
        output = self.model(x, t.float().to(device), **self.condition(self.labels(batch), device)).float()
        channels = x0.shape[1]
        require(
            output.shape[1] == channels * (2 if self.learns_variance else 1),
            f"the model returns {output.shape[1]} channels for {channels}-channel images and "
            f"learns_variance={self.learns_variance}; set out_channels accordingly",
        )
        target = {"eps": eps, "x0": x0}.get(self.parameterization)
        target = signal * eps - noise * x0 if target is None else target
        squared = (output[:, :channels] - target).square().flatten(1).mean(1)
        loss = (self._weights[t].to(device) * squared).mean()
        metrics = {"mse": squared.mean().detach()}
        if self.learns_variance:
            vlb = self._variational(output, x0, x, t.to(device), signal, noise).mean()
            metrics["vlb"] = vlb.detach()
            loss = loss + self.vlb_scale * vlb
        return loss, metrics

    def _variational(self, output: Tensor, x0: Tensor, x: Tensor, t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """Return the bound's term of each sample in bits per dimension [B]; only the variance gets a gradient."""
        mean, fraction = output.chunk(2, dim=1)
        mean = mean.detach()
        if self.parameterization == "eps":
            predicted, eps = (x - noise * mean) / signal, mean
        elif self.parameterization == "x0":
            predicted, eps = mean, (x - signal * mean) / noise
        else:
            predicted, eps = signal * x - noise * mean, noise * x + signal * mean
        prediction = Prediction(x0=predicted, eps=eps, log_variance_fraction=fraction)
        return vlb_terms(self.schedule, prediction, x0, x, t)

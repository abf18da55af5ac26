"""Asking a denoiser about images that stand at different levels, as adaptive solvers must."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .prediction import Denoiser, Prediction
from .schedule import Level

__all__ = ["RowDenoiser", "predict_rows"]


@runtime_checkable
class RowDenoiser(Protocol):
    """A denoiser that can be asked about images at different levels in one call."""

    def __call__(self, x: Tensor, level: Level, /) -> Prediction:
        """Predict from ``x`` [B, C, H, W], all at one level."""
        ...

    def rows(self, x: Tensor, levels: Sequence[Level], /) -> Prediction:
        """Predict from ``x`` [B, C, H, W], image ``i`` at ``levels[i]``; each answer as if it were alone."""
        ...


def predict_rows(denoise: Denoiser, x: Tensor, levels: Sequence[Level]) -> Prediction:
    """The denoiser's answer for ``x`` [B, C, H, W], image ``i`` at ``levels[i]``.

    A denoiser with the method ``rows`` answers in one call. Any other is called once for each different level, with the
    whole batch, because what it is conditioned on belongs to the whole batch.
    """
    if isinstance(denoise, RowDenoiser):
        return denoise.rows(x, levels)
    answers = {level: denoise(x, level) for level in dict.fromkeys(levels)}
    if len(answers) == 1:
        return answers[levels[0]]
    chosen: dict[str, Any] = {}
    for field in fields(Prediction):
        parts = [getattr(answers[level], field.name) for level in levels]
        given = all(part is not None for part in parts)
        chosen[field.name] = torch.cat([part[i : i + 1] for i, part in enumerate(parts)]) if given else None
    return Prediction(**chosen)

"""Several denoisers at once: their predictions added with weights that may change with the noise level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from steerdiff.errors import require
from steerdiff.samplers import Denoiser, Level, Prediction

__all__ = ["MixedDenoiser"]

Stage = tuple[float, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class MixedDenoiser:
    """``eps = sum_i w_i eps_i``, and x0 alike, with the weights of the stage that the time falls into.

    The stage is the one with the largest threshold that is not above t. A denoiser of weight 0 is not called, and one
    of weight 1 alone gives its prediction as it is, bit for bit. Where several are mixed, learned variances are left
    out.

    Source: Kim et al. 2022 (DiffusionCLIP), section 3.4 and Algorithm 4. Unlike the official code it takes thresholds
    in any order and any batch.
    """

    denoisers: tuple[Denoiser, ...]  #: what is mixed
    stages: tuple[Stage, ...]  #: (threshold of the time, a weight for each denoiser); weights of a stage sum to 1

    def __post_init__(self) -> None:
        """Check that every time has its weights, and put the stages in order."""
        for threshold, weights in self.stages:
            fits = len(weights) == len(self.denoisers)
            given = f"the stage from t = {threshold:g} has {len(weights)} weights for {len(self.denoisers)} models"
            require(fits, f"{given}; give each model one")
            total = abs(sum(weights) - 1) < 1e-6
            require(total, f"the weights from t = {threshold:g} on are {weights}; they must sum to 1")
        lowest = min((threshold for threshold, _ in self.stages), default=1.0)
        require(lowest <= 0, f"no weights are given for times below {lowest:g}; add a stage from 0 on")
        object.__setattr__(self, "stages", tuple(sorted(self.stages, key=lambda stage: stage[0], reverse=True)))

    def weights_at(self, t: float) -> tuple[float, ...]:
        """Return the weights at time ``t``; at the clean level those of the lowest stage."""
        return next((weights for threshold, weights in self.stages if t >= threshold), self.stages[-1][1])

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict from ``x`` [B, C, H, W] at ``level``."""
        used = [(w, one) for w, one in zip(self.weights_at(level.t), self.denoisers, strict=True) if w != 0]
        if len(used) == 1:
            return used[0][1](x, level)
        parts = [(weight, denoise(x, level).with_score(level.alpha_bar)) for weight, denoise in used]
        return Prediction(x0=_total([(w, p.x0) for w, p in parts]), eps=_total([(w, p.eps) for w, p in parts]))


def _total(parts: Sequence[tuple[float, Tensor]]) -> Tensor:
    weight, first = parts[0]
    total = weight * first
    for weight, part in parts[1:]:
        total = total + weight * part
    return total

"""A mixture of Gaussians: its score at every level, its exact probability flow and its samples, in closed form.

Source of the flow: in one dimension the probability-flow ODE keeps the order of points, so it keeps each point's
quantile, ``F_there(x_there) = F_here(x_here)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from steerdiff.samplers import Level, NoiseSchedule, Path, Prediction

SCHEDULE = NoiseSchedule.linear()


@dataclass(frozen=True)
class Mixture:
    """Isotropic components in D dimensions; points are [B, D, H, W], D along the channels."""

    weights: tuple[float, ...]
    means: tuple[tuple[float, ...], ...]
    stds: tuple[float, ...]

    @property
    def dimensions(self) -> int:
        return len(self.means[0])

    def score(self, x: Tensor, signal: float, std: float) -> Tensor:
        """Gradient of the log density of ``signal * x0 + std * z`` at ``x``."""
        logits, pulls = [], []
        for weight, mean, spread in zip(self.weights, self.means, self.stds, strict=True):
            variance = (signal * spread) ** 2 + std**2
            away = x - signal * torch.tensor(mean, dtype=x.dtype).reshape(1, -1, 1, 1)
            squared = away.square().sum(1, keepdim=True)
            logits.append(math.log(weight) - squared / (2 * variance) - self.dimensions / 2 * math.log(variance))
            pulls.append(-away / variance)
        shares = torch.softmax(torch.stack(logits), dim=0)
        return (shares * torch.stack(pulls)).sum(0)

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """The exact denoiser."""
        signal, std = math.sqrt(level.alpha_bar), math.sqrt(1 - level.alpha_bar)
        score = self.score(x, signal, std)
        return Prediction((x + std**2 * score) / signal, -std * score)

    def draw(self, n: int, seed: int) -> np.ndarray:
        """Exact samples [n, D]."""
        random = np.random.default_rng(seed)
        which = random.choice(len(self.weights), size=n, p=self.weights)
        z = random.standard_normal((n, self.dimensions))
        return np.array(self.means)[which] + np.array(self.stds)[which, None] * z

    def flow(self, x: Tensor, here: Level, there: Level) -> Tensor:
        """Where the probability-flow ODE carries ``x`` [B, 1, H, W]; exact to 1e-12, one dimension only."""
        target = self._cdf(x, here)
        low, high = torch.full_like(x, -50.0), torch.full_like(x, 50.0)
        for _ in range(60):
            middle = (low + high) / 2
            above = self._cdf(middle, there) > target
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    def _cdf(self, x: Tensor, level: Level) -> Tensor:
        """Distribution function minus 1/2, which is exact on both sides of the middle."""
        total = torch.zeros_like(x)
        for weight, (mean,), spread in zip(self.weights, self.means, self.stds, strict=True):
            std = math.sqrt(level.alpha_bar * spread**2 + 1 - level.alpha_bar)
            total += weight / 2 * torch.erf((x - math.sqrt(level.alpha_bar) * mean) / (std * math.sqrt(2)))
        return total


ONE = Mixture((0.35, 0.65), ((-0.7,), (0.4,)), (0.3, 0.2))  #: two modes on a line
TWO = Mixture((0.3, 0.3, 0.4), ((-0.8, 0.2), (0.6, 0.7), (0.3, -0.6)), (0.2, 0.3, 0.15))  #: three in the plane


@cache
def even_path(steps: int, top: float = 999.0, bottom: float = 0.0) -> Path:
    """Levels even in log-SNR between two times, not ending clean: the grid on which orders are measured."""
    low, high = SCHEDULE.level(top).log_snr, SCHEDULE.level(bottom).log_snr
    times = [SCHEDULE.t_of_log_snr(value) for value in np.linspace(low, high, steps + 1)]
    return Path.from_levels([SCHEDULE.level(t) for t in times], T=SCHEDULE.T)


def slope(steps: list[int], errors: list[float]) -> float:
    """Order of convergence: minus the slope of log error over log steps."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def two_sample_p(ours: np.ndarray, exact: np.ndarray, directions: int = 8) -> float:
    """Two-sample Kolmogorov-Smirnov test of points [n, D], on several lines; Bonferroni-corrected p value."""
    if ours.shape[1] == 1:
        return float(stats.ks_2samp(ours[:, 0], exact[:, 0]).pvalue)
    angles = np.arange(directions) * math.pi / directions
    lines = np.stack([np.cos(angles), np.sin(angles)])
    values = [stats.ks_2samp(ours @ line, exact @ line).pvalue for line in lines.T]
    return min(1.0, directions * min(values))

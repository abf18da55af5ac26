"""Times and noise of training samples: what every loss on noised images draws."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from steerdiff.samplers import NoiseSchedule

from .randomness import SampleRandom

__all__ = ["Noising"]


class Noising:
    """Draw times and noise images to them: ``x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps``.

    Args:
        schedule: The noise schedule.
        strata: Sample i draws its time from part ``i mod strata`` of [0, T); 1: anywhere.
    """

    def __init__(self, schedule: NoiseSchedule, strata: int = 1) -> None:
        self.T, self.strata = schedule.T, strata
        alpha_bars = np.asarray(schedule.alpha_bars, dtype=np.float64)
        self._signal = torch.from_numpy(np.sqrt(alpha_bars)).float()
        self._noise = torch.from_numpy(np.sqrt(1 - alpha_bars)).float()

    def times(self, random: SampleRandom) -> Tensor:
        """Return the samples' times, int64 [B] in [0, T)."""
        part = torch.tensor(random.indices, dtype=torch.float64) % self.strata
        fraction = (part + random.uniform("time")) / self.strata
        return (fraction * self.T).long().clamp_(max=self.T - 1)

    def roots(self, t: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return ``sqrt(alpha_bar)`` and ``sqrt(1 - alpha_bar)`` at int64 times [B], each [B, 1, 1, 1]."""
        signal, noise = (table[t].to(device).view(-1, 1, 1, 1) for table in (self._signal, self._noise))
        return signal, noise

    def noised(self, x0: Tensor, t: Tensor, random: SampleRandom) -> Tensor:
        """Return images [B, C, H, W] noised to int64 times [B] by the samples' own noise."""
        signal, noise = self.roots(t, x0.device)
        return signal * x0 + noise * random.normal("noise", x0.shape[1:]).to(x0.device, non_blocking=True)

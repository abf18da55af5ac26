"""Given noise in the place of drawn noise, and a solver that shows what it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from steerdiff.samplers import DDPM, Denoiser, Move, Noise, Solver, Step


class GivenNoise(Noise):
    """Gives the listed draws, and those of one fork, in order; more are an error."""

    def __init__(self, draws: Sequence[Any], reference: Sequence[Any] = ()) -> None:
        super().__init__(0, (1,))
        self.draws, self.reference = list(draws), list(reference)
        self._fork: GivenNoise | None = None

    def __call__(self) -> Tensor:
        return torch.as_tensor(np.asarray(self.draws.pop(0)))

    def fork(self, name: str) -> GivenNoise:
        if self._fork is None:
            self._fork = GivenNoise(self.reference)
        return self._fork

    def used_up(self) -> bool:
        """Whether every draw was taken."""
        return not self.draws and not self.fork("").draws


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A solver that keeps the state after each of its steps, before any constraint."""

    solver: Solver = DDPM()
    made: list[Tensor] = field(default_factory=list)
    order: ClassVar[int] = 1

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: Any, noise: Noise) -> Step:
        step = self.solver.step(denoise, x, move, state, noise)
        self.made.append(step.x)
        return step


def close(ours: Tensor, expected: Any, tolerance: float) -> None:
    """Compare to ``tolerance`` of the largest expected value, or of 1 where all are smaller."""
    expected = torch.as_tensor(np.asarray(expected))
    largest = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(ours.to(expected), expected, rtol=0, atol=tolerance * largest)

"""Random numbers as pure functions of (seed, sample number), so that no state has to survive a crash.

Every number a training sample needs depends on the run's seed, a stream's name and the sample's number only. A resumed
run, another batch split and another number of processes therefore see the same noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["SampleRandom", "mix"]


def mix(seed: int, stream: str, numbers: Sequence[int]) -> NDArray[np.uint64]:
    """Return one well-mixed 64-bit integer for each of ``numbers`` (splitmix64 of a hash of seed and stream)."""
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    with np.errstate(over="ignore"):
        z = np.asarray(numbers, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.frombuffer(digest, np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


class SampleRandom:
    """The random numbers of some training samples.

    Args:
        seed: The run's seed.
        indices: Numbers of the samples, counted from the run's first sample over all steps and processes [B].
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self.seed = seed
        self.indices = list(indices)

    def uniform(self, stream: str, *, of: Sequence[int] | None = None) -> Tensor:
        """Return float64 numbers [B] in [0, 1), one for each sample, or for each of the numbers ``of``."""
        bits = mix(self.seed, stream, self.indices if of is None else of) >> np.uint64(11)
        return torch.from_numpy(bits.astype(np.float64) * 2.0**-53)

    def normal(self, stream: str, shape: Sequence[int]) -> Tensor:
        """Return standard normal float32 numbers [B, *shape] on the CPU."""
        rows = torch.empty(len(self.indices), *shape)
        generator = torch.Generator()
        for row, seed in zip(rows, mix(self.seed, stream, self.indices).tolist(), strict=True):
            torch.randn(tuple(shape), generator=generator.manual_seed(seed), out=row)
        return rows

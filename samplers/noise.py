"""Random noise with one generator per image, so that an image does not depend on the batch it is drawn in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from steerdiff.errors import require

__all__ = ["Noise", "Seeds", "resolve_seeds"]

Seeds = int | Sequence[int]
_SEED_LIMIT = 2**63


def resolve_seeds(seed: Seeds, count: int) -> list[int]:
    """One seed per image: an int gives ``seed + i`` to image ``i``, a list is taken as it is.

    Raises:
        UserError: A list of another length than ``count``, or a seed that is no integer in [0, 2**63).
    """
    if isinstance(seed, Sequence) and not isinstance(seed, (str, bytes)):
        require(len(seed) == count, f"{len(seed)} seeds for {count} images; give one int, or one seed per image")
        seeds = list(seed)
    else:
        require(_is_seed(seed), f"seed is {seed!r}; it must be an integer in [0, 2**63), or a list of them")
        seeds = [seed + i for i in range(count)]  # type: ignore[operator]  # an int, as just checked
    for one in seeds:
        require(_is_seed(one), f"seed is {one!r}; it must be an integer in [0, 2**63)")
    return seeds


def _is_seed(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _SEED_LIMIT


class Noise:
    """A stream of standard normal tensors; ``noise()`` gives the next one, [B, C, H, W].

    Image ``i`` has its own generator on the CPU, so its draws are the same alone, in any batch and on any device. Draws
    are made in float32 and then cast, so a float64 run sees the same numbers.
    """

    def __init__(
        self,
        seed: Seeds = 0,
        shape: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        like: Tensor | None = None,
    ) -> None:
        """Start the streams.

        Args:
            seed: An int (image ``i`` uses ``seed + i``) or one int per image, in [0, 2**63).
            shape: [B, C, H, W] of each draw.
            device: Where the draws go.
            dtype: What the draws are cast to.
            like: A tensor to take shape, device and dtype from, instead of giving them.

        Raises:
            UserError: Neither or both of ``shape`` and ``like``, or bad seeds.
        """
        require((shape is None) != (like is None), "noise needs its size: give either shape=[B, C, H, W] or like=x")
        if like is not None:
            shape, device, dtype = like.shape, like.device, like.dtype
        self.shape = tuple(shape or ())
        require(len(self.shape) >= 1, "noise needs a batch dimension: give shape=[B, C, H, W]")
        self.device, self.dtype = torch.device(device), dtype
        self.seeds = tuple(resolve_seeds(seed, self.shape[0]))
        self._generators = [torch.Generator().manual_seed(one) for one in self.seeds]
        self._forks: dict[str, Noise] = {}

    def __call__(self) -> Tensor:
        """The next draw [B, C, H, W]."""
        rows = [torch.randn(self.shape[1:], generator=one, dtype=torch.float32) for one in self._generators]
        draw = torch.stack(rows)
        if self.device.type == "cuda":  # from pinned memory the copy does not make the host wait
            draw = draw.pin_memory()
        return draw.to(device=self.device, dtype=self.dtype, non_blocking=True)

    def fork(self, name: str) -> Noise:
        """An independent stream for another purpose, known by its name; asked again, the same stream, which goes on.

        Its seeds are a hash of this stream's seeds and the name, so taking it does not move this stream.
        """
        if name not in self._forks:
            seeds = [_derived_seed(one, name) for one in self.seeds]
            self._forks[name] = Noise(seeds, self.shape, self.device, self.dtype)
        return self._forks[name]


def _derived_seed(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

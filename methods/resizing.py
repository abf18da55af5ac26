"""Exact resizing as matrices, the low-pass filter of ILVR: Matlab's bicubic, with Lanczos and box kernels beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from steerdiff.errors import require

__all__ = ["Kernel", "LowPass"]

Kernel = Literal["cubic", "lanczos3", "box"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LowPass:
    """``phi(x) = up(down(x))`` on images, applied as one matrix for each axis. Make one with `LowPass.of`.

    Down by N the kernel is stretched N times (it averages); up it is not. Borders mirror with the edge pixel repeated
    and weights are normalised, so constants and the image's mean pass unchanged. With "cubic", phi is symmetric with a
    spectrum in [0, 1] but not idempotent: one swap does not make two low-passes equal. With "box" (mean down, nearest
    up) it is a projection. ``torch.nn.functional.interpolate`` differs: its bicubic has a = -0.75 and no averaging.

    Source: Choi et al. 2021 (ILVR), eq. 7, whose official code resizes as Matlab's ``imresize`` does.
    """

    down_rows: Tensor  #: [H / N, H]
    down_columns: Tensor  #: [W / N, W]
    up_rows: Tensor  #: [H, H / N]
    up_columns: Tensor  #: [W, W / N]

    @classmethod
    def of(cls, factor: int, like: Tensor, kernel: Kernel = "cubic") -> LowPass:
        """Return the filter for images such as ``like`` [B, C, H, W], in its type and on its device.

        Raises:
            UserError: ``factor`` does not divide H and W, or leaves fewer than two pixels of either.
        """
        sizes = [int(size) for size in like.shape[-2:]]
        for size in sizes:
            require(factor >= 1, f"downsample is {factor}; it must be at least 1")
            fits = factor == 1 or (size % factor == 0 and size // factor >= 2)
            allowed = [n for n in range(1, size // 2 + 1) if size % n == 0]
            require(fits, f"downsample is {factor}; images of {size} pixels can be reduced by {allowed}")
        down = [_down_matrix(size, factor, kernel).to(like) for size in sizes]
        up = [_up_matrix(size, factor, kernel).to(like) for size in sizes]
        return cls(down_rows=down[0], down_columns=down[1], up_rows=up[0], up_columns=up[1])

    def down(self, x: Tensor) -> Tensor:
        """Reduce ``x`` [B, C, H, W] to [B, C, H / N, W / N]."""
        return self.down_rows @ x @ self.down_columns.T

    def up(self, x: Tensor) -> Tensor:
        """Enlarge ``x`` [B, C, H / N, W / N] to [B, C, H, W]."""
        return self.up_rows @ x @ self.up_columns.T

    def __call__(self, x: Tensor) -> Tensor:
        """Low frequencies of ``x`` [B, C, H, W], at its size."""
        return self.up(self.down(x))


def _cubic(u: float) -> float:
    """Keys' kernel with a = -0.5, support [-2, 2]."""
    u = abs(u)
    if u <= 1:
        return 1.5 * u**3 - 2.5 * u**2 + 1
    return -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2 if u < 2 else 0.0


def _lanczos3(u: float) -> float:
    """Sinc windowed by a sinc three times as wide, support [-3, 3]."""
    if abs(u) >= 3:
        return 0.0
    a = math.pi * u
    return 3 * math.sin(a) * math.sin(a / 3) / a**2 if a else 1.0


def _box(u: float) -> float:
    return float(-0.5 < u <= 0.5)


_KERNELS = {"cubic": (_cubic, 2.0), "lanczos3": (_lanczos3, 3.0), "box": (_box, 0.5)}


@lru_cache(maxsize=64)
def _down_matrix(size: int, factor: int, kernel: Kernel) -> Tensor:
    """Matrix [size / factor, size] in float64: the kernel stretched ``factor`` times."""
    centres = [factor * (j + 0.5) - 0.5 for j in range(size // factor)]
    return _matrix(centres, size, float(factor), kernel)


@lru_cache(maxsize=64)
def _up_matrix(size: int, factor: int, kernel: Kernel) -> Tensor:
    """Matrix [size, size / factor] in float64: the plain kernel."""
    return _matrix([(i + 0.5) / factor - 0.5 for i in range(size)], size // factor, 1.0, kernel)


def _matrix(centres: list[float], size: int, stretch: float, kernel: Kernel) -> Tensor:
    weight, support = _KERNELS[kernel]
    matrix = torch.zeros(len(centres), size, dtype=torch.float64)
    for row, centre in enumerate(centres):
        reach = support * stretch
        for place in range(math.floor(centre - reach), math.ceil(centre + reach) + 1):
            mirrored = place % (2 * size)
            column = mirrored if mirrored < size else 2 * size - 1 - mirrored
            matrix[row, column] += weight((place - centre) / stretch)
        matrix[row] /= matrix[row].sum()
    return matrix

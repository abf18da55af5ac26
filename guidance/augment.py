"""Extending augmentations: several transformed views of an image, so that guidance finds no adversarial shortcut."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import require
from steerdiff.samplers import Noise

__all__ = ["ExtendingAugmentations", "ShiftAxes", "fitted"]

#: Along which axes views are shifted; the official code's argument amounts to "vertical" only.
ShiftAxes = Literal["both", "vertical"]

_AFFINE, _PERSPECTIVE = 4, 9  # random numbers of a view: whether, angle, two shifts; whether, four corners by two axes
_CORNERS = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))  # x and y, from the upper left clockwise


@dataclass(frozen=True, kw_only=True)
class ExtendingAugmentations:
    """Make ``views`` of each image: the first is the image itself, the others are turned, shifted and tilted.

    Each view beyond the first goes, with probability ``probability`` each, through an affine map (a rotation about the
    centre and a shift; the border is repeated) and then through a perspective map (each corner moves inwards; what
    comes from outside is 0, mid-grey). Both are bilinear and differentiable. Images of any size and shape are taken.

    Source: Avrahami et al. 2022, section 3.3, with the values of the official code. Where that differs
    (``shift_axes="vertical"``): its argument for the shift is read by the library that it uses as no horizontal shift
    at all.
    """

    views: int = 8  #: of each image, the untouched one among them; 1 is no augmentation
    degrees: float = 15.0  #: largest angle of the rotation, to both sides
    shift: float = 0.1  #: largest shift, as a share of the side, to both sides
    shift_axes: ShiftAxes = "both"  #: "vertical" is what the official code does
    distortion: float = 0.7  #: how far a corner may come in, as a share of half the side
    probability: float = 0.7  #: of each of the two maps, for each view

    def __post_init__(self) -> None:
        """Check the numbers."""
        require(self.views >= 1, f"views is {self.views}; there must be at least 1, the image itself")
        known = get_args(ShiftAxes)
        require(self.shift_axes in known, f"shift_axes is {self.shift_axes!r}; known are {', '.join(known)}")
        for name in ("shift", "distortion", "probability"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} is {value}; it must lie in [0, 1]")
        require(math.isfinite(self.degrees), f"degrees is {self.degrees}; it must be a finite angle")

    def stream(self, noise: Noise) -> Noise:
        """Return the stream "augment" of ``noise``: random numbers of the views, an own generator for each image."""
        seeds = noise.fork("augment").seeds
        return Noise(seeds, [len(seeds), self.views - 1, _AFFINE + _PERSPECTIVE])

    def __call__(self, image: Tensor, stream: Noise | None = None) -> Tensor:
        """Return views [B, views, C, H, W] of images [B, C, H, W]; the next numbers are taken from ``stream``.

        Raises:
            UserError: There is more than one view but no stream, or one of another number of images.
        """
        if self.views == 1:
            return image[:, None]
        return self.transformed(image, self.draw(stream, image.shape[0]))

    def draw(self, stream: Noise | None, images: int) -> Tensor:
        """Return the next numbers of ``stream``, even in (0, 1), float64 [B, views - 1, 13] on the CPU."""
        if self.views == 1:
            return torch.zeros(images, 0, _AFFINE + _PERSPECTIVE, dtype=torch.float64)
        given = len(stream.seeds) if stream is not None else 0
        require(
            given == images, f"{images} images are to be augmented by the random numbers of {given}; give noise for all"
        )
        numbers: Tensor = torch.special.ndtr(stream().double()) if stream is not None else torch.empty(0)
        return numbers

    def transformed(self, image: Tensor, numbers: Tensor) -> Tensor:
        """Return views [B, views, C, H, W] of images [B, C, H, W] for numbers that `draw` gave."""
        if self.views == 1:
            return image[:, None]
        copies = image.repeat_interleave(self.views - 1, dim=0)
        flat = numbers.flatten(0, 1)
        affine, perspective = flat[:, :_AFFINE], flat[:, _AFFINE:]
        size = image.shape[2], image.shape[3]
        turned = self._mapped(copies, self._affine(affine, size), affine[:, 0], "border")
        tilted = self._mapped(turned, self._perspective(perspective, size), perspective[:, 0], "zeros")
        return torch.cat([image[:, None], tilted.reshape(image.shape[0], -1, *image.shape[1:])], dim=1)

    def _mapped(self, image: Tensor, matrix: Tensor, chance: Tensor, padding: str) -> Tensor:
        """Apply maps [N, 3, 3] (pixels of the result to pixels of the image) where ``chance`` says so."""
        applies = (chance < self.probability).to(image.device).reshape(-1, 1, 1, 1)
        grid = _grid(matrix.to(image.device, image.dtype), image.shape[2], image.shape[3])
        warped = functional.grid_sample(image, grid, mode="bilinear", padding_mode=padding, align_corners=False)
        return torch.where(applies, warped, image)

    def _affine(self, numbers: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps [N, 3, 3]: back by the shift, then turned back about the centre."""
        height, width = size
        angle, right, down = (2 * numbers[:, 1:] - 1).unbind(1)
        angle = torch.deg2rad(angle * self.degrees)
        right = right * (self.shift * width if self.shift_axes == "both" else 0.0)
        down = down * self.shift * height
        cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
        x, y = width / 2 - 0.5, height / 2 - 0.5
        back = torch.stack([one, zero, -x - right, zero, one, -y - down, zero, zero, one], 1).reshape(-1, 3, 3)
        turn = torch.stack([cos, sin, zero + x, -sin, cos, zero + y, zero, zero, one], 1).reshape(-1, 3, 3)
        return turn @ back

    def _perspective(self, numbers: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps [N, 3, 3] that take the moved corners to the corners of the image."""
        height, width = size
        corners = numbers.new_tensor(_CORNERS) * numbers.new_tensor([width - 1.0, height - 1.0])
        inwards = 1 - 2 * numbers.new_tensor(_CORNERS)
        reach = numbers.new_tensor([width, height]) * self.distortion / 2
        moved = corners + inwards * reach * numbers[:, 1:].reshape(-1, 4, 2)
        return _homography(moved, corners.expand_as(moved))


def fitted(image: Tensor, size: int) -> Tensor:
    """Bring images [B, C, H, W] to [B, C, size, size]: averaged over cells if larger, else bilinear; gradients flow.

    The whole image is kept; one that is not square is squeezed. Source: Avrahami et al. 2022, official code.
    """
    height, width = image.shape[2:]
    if (height, width) == (size, size):
        return image
    if min(height, width) >= size:
        return functional.adaptive_avg_pool2d(image, size)
    return functional.interpolate(image, (size, size), mode="bilinear", align_corners=False)


def _grid(matrix: Tensor, height: int, width: int) -> Tensor:
    """Sampling grid [N, H, W, 2] of maps [N, 3, 3] between pixels whose centres are whole numbers."""
    across = torch.arange(width, device=matrix.device, dtype=matrix.dtype)
    down = torch.arange(height, device=matrix.device, dtype=matrix.dtype)
    y, x = torch.meshgrid(down, across, indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    x, y, w = (matrix @ pixels).unbind(1)
    grid = torch.stack([(2 * x / w + 1) / width - 1, (2 * y / w + 1) / height - 1], dim=-1)
    return grid.reshape(-1, height, width, 2)


def _homography(source: Tensor, target: Tensor) -> Tensor:
    """Projective maps [N, 3, 3] that take four points [N, 4, 2] to four others."""
    x, y = source.unbind(2)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rows = []
    for axis, place in enumerate(target.unbind(2)):
        linear = [x, y, one, zero, zero, zero] if axis == 0 else [zero, zero, zero, x, y, one]
        rows.append(torch.stack([*linear, -x * place, -y * place], dim=2))
    wanted = torch.cat(target.unbind(2), dim=1)
    solved = torch.linalg.solve(torch.cat(rows, dim=1), wanted[..., None])[..., 0]
    return torch.cat([solved, torch.ones_like(solved[:, :1])], dim=1).reshape(-1, 3, 3)

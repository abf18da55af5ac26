"""What the methods are given: boxes around an edit, holes, and degraded pictures. All of it deterministic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import UserError, require
from steerdiff.io import to_uint8
from steerdiff.train.scenes import CANVAS, Draws, to_images

__all__ = ["box_around", "box_hole", "low_resolution", "stroke_hole", "strokes"]

FACTOR = 8  #: of "low resolution": ILVR's N = 32 of 256 pixels
MEDIAN = 7  #: kernel of the median filter of "strokes": of 5 and 7, around 23 / 4, the one that leaves no eyes
PALETTE = 6  #: colours of "strokes", as SDEdit has them

_MARGIN = 2  # pixels of a box around what changes
_BOX_SIDES = tuple(range(20, 37, 2))  # of a hole, in pixels
_RADII = (4, 5, 6)  # half the width of a brush
_JOINTS = (3, 4, 5)  # of a brush stroke
_REACH = tuple(range(-18, 19))  # of its joints from the object's centre
_SPREAD = (-8, -6, -4, -2, 0, 2, 4, 6, 8)  # of a box's centre from the object's
_COVERED = (0.4, 0.8)  # share of the object that a hole hides
_TRIES = 200
_LLOYD_STEPS = 20


def box_around(changed: Tensor, margin: int = _MARGIN) -> Tensor:
    """Return the box around what a mask marks, a little wider, so that the answer's outline is not given away.

    Args:
        changed: [1, H, W], 1 at what changes.
        margin: Pixels added on each side, as far as the image goes.

    Returns:
        float32 [1, H, W] of 0 and 1.

    Raises:
        UserError: The mask marks nothing.
    """
    require(bool(changed.any()), "the mask marks nothing, so there is no box around it; give one with a 1 in it")
    rows, columns = changed[0].any(1).nonzero()[:, 0], changed[0].any(0).nonzero()[:, 0]
    box = torch.zeros(changed.shape)
    top, left = max(0, int(rows.min()) - margin), max(0, int(columns.min()) - margin)
    box[:, top : int(rows.max()) + margin + 1, left : int(columns.max()) + margin + 1] = 1
    return box


def box_hole(ink: Tensor, centre: tuple[int, int], draw: Draws) -> Tensor:
    """Return a rectangular hole that hides a good part of an object, 40 to 80 % of its pixels.

    Args:
        ink: [1, 64, 64], 1 at the object's pixels.
        centre: x and y of the object's centre.
        draw: Where the sides and the place come from; rectangles are drawn until one fits.

    Returns:
        float32 [1, 64, 64], 1 in the hole.

    Raises:
        UserError: No rectangle fits: there is next to no object.
    """

    def hole() -> Tensor:
        width, height = draw.choose(_BOX_SIDES), draw.choose(_BOX_SIDES)
        left = max(0, centre[0] + draw.choose(_SPREAD) - width // 2)
        top = max(0, centre[1] + draw.choose(_SPREAD) - height // 2)
        mask = torch.zeros(1, CANVAS, CANVAS)
        mask[:, top : top + height, left : left + width] = 1
        return mask

    return _fitting(hole, ink)


def stroke_hole(ink: Tensor, centre: tuple[int, int], draw: Draws) -> Tensor:
    """Return a hole of one thick, broken stroke of a brush; all else is as in ``box_hole``."""

    def hole() -> Tensor:
        radius, joints = draw.choose(_RADII), draw.choose(_JOINTS)
        ends = [(centre[0] + draw.choose(_REACH), centre[1] + draw.choose(_REACH)) for _ in range(joints)]
        near = [_distance(a, b) <= radius for a, b in zip(ends, ends[1:], strict=False)]
        return torch.from_numpy(np.any(near, axis=0).astype(np.float32))[None]

    return _fitting(hole, ink)


def _fitting(hole: Callable[[], Tensor], ink: Tensor) -> Tensor:
    least, most = _COVERED
    for _ in range(_TRIES):
        mask = hole()
        if least * float(ink.sum()) <= float((mask * ink).sum()) <= most * float(ink.sum()):
            return mask
    raise UserError("no hole hides a part of the object and leaves a part; give the pixels of an object")


def _distance(a: tuple[int, int], b: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Return how far each pixel [64, 64] is from the line between two points."""
    y, x = np.mgrid[:CANVAS, :CANVAS].astype(np.float64)
    along = (b[0] - a[0], b[1] - a[1])
    length = max(along[0] ** 2 + along[1] ** 2, 1)
    share = np.clip(((x - a[0]) * along[0] + (y - a[1]) * along[1]) / length, 0, 1)
    distance: npt.NDArray[np.float64] = np.hypot(x - a[0] - share * along[0], y - a[1] - share * along[1])
    return distance


def low_resolution(image: Tensor) -> Tensor:
    """Return a picture as 8 x 8 averages of boxes, enlarged again to its size.

    The enlargement is bicubic: the steps between the boxes that repeated pixels would show are detail that no small
    picture has, and a method that starts from the input would keep them.

    Args:
        image: float32 [3, 64, 64] in [-1, 1].

    Returns:
        The same, in the 256 levels of a file.
    """
    small = functional.avg_pool2d(image[None], FACTOR)
    large = functional.interpolate(small, size=image.shape[-2:], mode="bicubic", align_corners=False)
    return to_images(to_uint8(large).numpy())[0]


def strokes(image: Tensor) -> Tensor:
    """Return a picture as if painted with a coarse brush: a median filter, then six colours.

    Args:
        image: float32 [3, 64, 64] in [-1, 1].

    Returns:
        The same, in the 256 levels of a file.

    Source: Meng et al. 2022, appendix on simulated strokes: kernel 23 on 256 pixels, 6 colours by k-means. Here
    the kernel is 7 on 64 pixels, and k-means starts from colours far from each other, without random numbers.
    """
    picture = Image.fromarray(to_uint8(image).permute(1, 2, 0).contiguous().numpy())
    pixels = np.asarray(picture.filter(ImageFilter.MedianFilter(MEDIAN)))
    painted = _quantised(pixels.reshape(-1, 3).astype(np.float64)).reshape(pixels.shape)
    return to_images(np.moveaxis(painted.round().astype(np.uint8), 2, 0)[None].copy())[0]


def _quantised(pixels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return pixels [N, 3] as the nearest of at most six colours, found by k-means (Lloyd's steps)."""
    distinct, owner, times = np.unique(pixels, axis=0, return_inverse=True, return_counts=True)
    colours = np.median(pixels, axis=0, keepdims=True)
    for _ in range(PALETTE - 1):
        farthest = _squared(distinct, colours).min(1).argmax()
        colours = np.concatenate([colours, distinct[farthest][None]])
    nearest = _squared(distinct, colours).argmin(1)
    for _ in range(_LLOYD_STEPS):
        for k in np.unique(nearest):
            members = nearest == k
            colours[k] = np.average(distinct[members], axis=0, weights=times[members])
        nearest = _squared(distinct, colours).argmin(1)
    quantised: npt.NDArray[np.float64] = colours[nearest[owner.ravel()]]
    return quantised


def _squared(pixels: npt.NDArray[np.float64], colours: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return squared distances [N, K] of pixels [N, 3] from colours [K, 3]."""
    distances: npt.NDArray[np.float64] = ((pixels[:, None] - colours) ** 2).sum(-1)
    return distances

"""The pictures beside the page: what was given, the true answer and every result."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from steerdiff.io import atomic_write, to_uint8
from steerdiff.train.benchmark import Case

from .edit_results import Entry, TaskResults

__all__ = ["given_path", "others_path", "plot_path", "result_path", "truth_path", "write_pictures"]

T = TypeVar("T", bound=np.generic)

_ZOOM = 4  # of a given image, so that the line around its mask hides little of it
_WHITE, _BLACK = 255, 0


def plot_path(task: str) -> str:
    """Return the path, from the page, of a task's Pareto plot."""
    return f"pareto-{_slug(task)}.png"


def given_path(case: Case) -> str:
    """Return the path, from the page, of what a method was given, its mask outlined."""
    return f"{_stem(case)}-given.png"


def truth_path(case: Case) -> str:
    """Return the path of a true answer."""
    return f"{_stem(case)}-truth.png"


def result_path(case: Case, entry: Entry) -> str:
    """Return the path of a result with seed 0."""
    return f"{_stem(case)}-{entry.entrant.slug}.png"


def others_path(case: Case, entry: Entry) -> str:
    """Return the path of the results with the other seeds, side by side."""
    return f"{_stem(case)}-{entry.entrant.slug}-seeds.png"


def write_pictures(results: TaskResults, folder: Path) -> None:
    """Write all pictures of a task: uint8 PNGs of the model's own size, an image given four times as large."""
    for number, case in enumerate(results.cases):
        if case.has_image:
            _write(outlined(case), folder / given_path(case))
        _write(_pixels(to_uint8(case.truth)), folder / truth_path(case))
        for entry in results.entries:
            if entry.images is not None and entry.entrant.method != "unchanged":
                first, *others = (_pixels(image) for image in entry.images[number])
                _write(first, folder / result_path(case, entry))
                if others:
                    _write(np.concatenate(others, axis=1), folder / others_path(case, entry))


def outlined(case: Case) -> npt.NDArray[np.uint8]:
    """Return a given image, enlarged, with a white and a black line inside the border of its mask: [H, W, 3]."""
    pixels = _enlarged(_pixels(to_uint8(case.image)))
    if case.mask is not None:
        inside = _enlarged(case.mask[0].numpy() > 0.5)
        thinner = _shrunk(_shrunk(inside))
        pixels[inside & ~thinner] = _BLACK
        pixels[thinner & ~_shrunk(_shrunk(thinner))] = _WHITE
    return pixels


def _shrunk(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Take one pixel off a mask's borders, where the picture ends too."""
    wide = np.pad(mask, 1)
    return mask & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]


def _enlarged(values: npt.NDArray[T]) -> npt.NDArray[T]:
    return values.repeat(_ZOOM, 0).repeat(_ZOOM, 1)


def _pixels(image: Tensor) -> npt.NDArray[np.uint8]:
    array: npt.NDArray[np.uint8] = image.permute(1, 2, 0).contiguous().numpy()
    return array


def _write(pixels: npt.NDArray[np.uint8], path: Path) -> None:
    picture = Image.fromarray(pixels)
    atomic_write(path, lambda file: picture.save(file, format="PNG", optimize=True))


def _stem(case: Case) -> str:
    return f"pictures/{_slug(case.task)}/{case.number:02d}"


def _slug(task: str) -> str:
    return task.replace(" ", "-")

"""Where a recipe's weights and data are, and what is wrong with them before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from steerdiff.errors import UserError, require
from steerdiff.io import load_image, load_mask
from steerdiff.models.published import PRESETS
from steerdiff.scripts.papers.recipe import Data, Recipe, Run

from .masks import DRAWN
from .metrics import METRICS

__all__ = ["Inputs", "find_file", "find_weights", "missing_data", "pictures_in", "read_data", "weights_folder"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_VARIABLE = "STEERDIFF_WEIGHTS"


def weights_folder() -> Path | None:
    """Return the folder of published weights that the environment names."""
    return Path(os.environ[_VARIABLE]) if os.environ.get(_VARIABLE) else None


def find_weights(preset: str) -> Path | None:
    """Return the weights of a preset in the folder of weights: a file named like the preset, or as it is published."""
    return find_file({*PRESETS[preset].files, *(f"{preset}{suffix}" for suffix in _WEIGHTS)})


def find_file(names: Set[str]) -> Path | None:
    """Return the first file in the folder of weights that has one of these names."""
    folder = weights_folder()
    if folder is None or not folder.is_dir():
        return None
    return next((path for path in sorted(folder.rglob("*")) if path.name in names and path.is_file()), None)


def pictures_in(folder: Path) -> tuple[Path, ...]:
    """Return the pictures in a folder and its sub-folders, in the order of their paths."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."))
    return tuple(sorted(path for path in found if path.is_file()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """The pictures of an experiment, read one by one as the recipe prepares them."""

    data: Data
    images: tuple[Path, ...] = ()
    masks: Mapping[str, tuple[Path, ...]]  #: by kind; those that are drawn have none
    prompts: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    reference: Path | None = None  #: a folder of pictures or an ``.npz`` file
    subject: Path | None = None  #: a folder of pictures, named as its class

    def image(self, number: int, size: tuple[int, int]) -> Tensor:
        """Return an image as [1, 3, H, W] in [-1, 1]; UserError if it cannot be read."""
        return prepared(self.images[number], self.data, size)

    def mask(self, kind: str, number: int, size: tuple[int, int]) -> Tensor:
        """Return a mask as [1, 1, H, W], 1 where the image may change; UserError if it is not black and white."""
        if not self.masks.get(kind):
            return DRAWN[kind](*size)
        return 1 - load_mask(self.masks[kind][number], size)  # white is known in the papers' files


def prepared(path: Path, data: Data, size: tuple[int, int]) -> Tensor:
    """Return a picture as [1, 3, H, W] in [-1, 1], cut and resized as the data say."""
    if data.box is None:
        return load_image(path, size)
    whole = load_image(path)
    top, bottom, left, right = data.box
    height, width = int(whole.shape[2]), int(whole.shape[3])
    if (height, width) == size:  # someone did it before
        return whole
    require(
        bottom <= height and right <= width,
        f"{path} is {width} x {height}; the recipe cuts rows {top} to {bottom} and columns {left} to {right} out of "
        "the pictures as they are distributed: give those",
    )
    pixels = ((whole[0, :, top:bottom, left:right] + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(np.uint8)
    picture = Image.fromarray(pixels)
    if data.bilinear:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return load_image(picture, size)


def missing_data(recipe: Recipe, folder: Path | None, runs: tuple[Run, ...]) -> str | None:
    """Return what lacks so that the recipe cannot run, and where it was looked for; None if all is there."""
    data = recipe.data
    always = all(METRICS[name].needs == "reference" for name in recipe.metrics)
    kinds = {run.masks for run in runs if run.masks is not None and run.masks not in DRAWN}
    needed = [
        name
        for name, needs in (
            ("images", data.images),
            ("subject", data.subject),
            *((f"masks/{kind}", kind) for kind in sorted(kinds)),
        )
        if needs
    ]
    needs_reference = always and data.reference is not None
    if folder is None:
        return "no --data was given" if needed or needs_reference or data.prompts else None
    if not folder.is_dir():
        return f"{folder.absolute()} is no folder"
    for name in needed:
        if not (folder / name).is_dir():
            return f"there is no folder {(folder / name).absolute()}"
    if needs_reference and _reference(folder) is None:
        place = (folder / "reference").absolute()
        return f"there is neither the folder {place} nor the file {place}.npz"
    for name, needs in (("prompts.txt", data.prompts), ("targets.txt", data.targets)):
        if needs and not (folder / name).is_file():
            return f"there is no file {(folder / name).absolute()}"
    return None


def read_data(recipe: Recipe, folder: Path | None, runs: tuple[Run, ...], n: int | None) -> tuple[Inputs, int]:
    """Return the inputs of the runs and the number of results.

    Args:
        recipe: What is run.
        folder: Of ``--data``; None for a recipe that needs none.
        runs: Those that are run.
        n: Results asked for; None is as many as the recipe says.

    Raises:
        UserError: Something is missing, empty, of another count or fewer than asked for.
    """
    lacking = missing_data(recipe, folder, runs)
    if lacking is not None:
        raise UserError(f"the data of {recipe.name} are absent: {lacking}; --show says what to put where")
    if folder is None:
        return Inputs(data=recipe.data, masks={}), _asked(n, recipe.n)
    images = _filled(folder / "images") if recipe.data.images else ()
    kinds = sorted({run.masks for run in runs if run.masks is not None})
    masks = {kind: _filled(folder / "masks" / kind) if (folder / "masks" / kind).is_dir() else () for kind in kinds}
    for kind, found in masks.items():
        require(
            len(found) in (0, len(images)),
            f"{folder / 'images'} has {len(images)} pictures and {folder / 'masks' / kind} has {len(found)} masks; "
            "they are paired in the order of their paths: give as many",
        )
    prompts = _lines(folder / "prompts.txt") if recipe.data.prompts else ()
    targets = _lines(folder / "targets.txt") if recipe.data.targets else ()
    given = {"images": images, "prompts.txt": prompts, "targets.txt": targets}
    count = _counted({name: len(items) for name, items in given.items() if items}, folder, recipe, n)
    reference = _reference(folder)
    if reference is not None and reference.is_dir():
        _filled(reference)
    texts = {"prompts": prompts, "targets": targets}
    taught = _subject(folder / "subject") if recipe.data.subject else None
    return Inputs(data=recipe.data, images=images, masks=masks, reference=reference, subject=taught, **texts), count


def _counted(given: Mapping[str, int], folder: Path, recipe: Recipe, n: int | None) -> int:
    """Return the number of results, for which what was given must suffice; ``given`` counts it by its name."""
    count = _asked(n, recipe.n if recipe.n is not None else min(given.values(), default=None))
    for name, found in given.items():
        few = f"{folder / name} has {found} and {count} are asked for"
        require(found >= count, f"{few}; add some, or give --n {found} for a part")
    return count


def _asked(n: int | None, usual: int | None) -> int:
    count = n if n is not None else usual
    if count is None:
        raise UserError("the recipe does not say how many results it makes; give --n")
    require(count >= 1, f"n is {count}; ask for at least one result")
    return count


def _filled(folder: Path) -> tuple[Path, ...]:
    found = pictures_in(folder)
    require(len(found) > 0, f"{folder} has no pictures; expected files that end in {', '.join(_SUFFIXES)}")
    return found


def _subject(folder: Path) -> Path:
    """Return the one folder of pictures in a folder."""
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    names = ", ".join(path.name for path in found) or "none"
    require(len(found) == 1, f"{folder} must hold one folder, named as the class of the subject; it holds {names}")
    _filled(found[0])
    return found[0]


def _lines(path: Path) -> tuple[str, ...]:
    """Return the prompts of a file, one a line; blank lines may only end it, for each line belongs to a picture."""
    lines = tuple(line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines())
    require(len(lines) > 0, f"{path} is empty; write one prompt a line")
    blank = next((number for number, line in enumerate(lines, 1) if not line), None)
    require(blank is None, f"line {blank} of {path} is blank, and lines belong to pictures in order; fill or remove it")
    return lines


def _reference(folder: Path) -> Path | None:
    places = (folder / "reference.npz", folder / "reference")
    return next((place for place in places if place.exists()), None)

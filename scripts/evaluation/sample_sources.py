"""Where the images of an evaluation come from: folders, ``.npz`` files, true scenes and a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.io import load_image, to_uint8
from steerdiff.train.scenes import CANVAS, EmojiScenes

from .statistics_file import Statistics, open_npz, read_statistics

__all__ = ["PAIRS", "Source", "file_source", "scene_source"]

#: Share of scenes with two objects, as in training.
PAIRS = 0.3

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_SHEET = "grid.png"  # which `steerdiff sample` lays beside its images


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """One side of a comparison."""

    title: str  #: what it is called in messages and tables
    n: int  #: number of images; 0 where there are statistics alone
    size: tuple[int, int] | None = None  #: height and width of every image in pixels
    read: Callable[[slice], Tensor] | None = None  #: uint8 [k, 3, H, W] of the images of a slice
    names: tuple[str, ...] = ()  #: of the images, to pair them by; empty where they have none
    paths: tuple[Path, ...] = ()  #: files of the images, where they have some
    captions: tuple[str, ...] | None = None  #: what each image should show, where the source says it
    statistics: Statistics | None = None  #: of a file of statistics
    facts: Mapping[str, Any] = field(default_factory=dict)  #: for the record: seeds, sampler, what was left out

    def images(self, part: slice) -> Tensor:
        """Return the images of a slice, uint8 [k, 3, H, W].

        Raises:
            UserError: There are statistics alone.
        """
        require(self.read is not None, f"{self.title} holds no images")
        return self.read(part)  # type: ignore[misc]

    def to_dict(self) -> dict[str, Any]:
        """Return it for the record."""
        width = None if self.statistics is None else self.statistics.width
        size = None if self.size is None else list(self.size)
        return {"given": self.title, "n": self.n, "size": size, "features of its statistics": width, **self.facts}


def file_source(path: Path) -> Source:
    """Return the images or statistics of a folder or of an ``.npz`` file.

    Raises:
        UserError: There is neither, a folder has no images, they differ in size, or one cannot be read.
    """
    known = "give a folder of images, an .npz file, or one of: model, scenes"
    require(path.exists(), f"{path} does not exist; {known}")
    if path.is_dir():
        return _folder(path)
    require(path.suffix == ".npz", f"{path} is neither a folder nor an .npz file; {known}")
    return _npz(path)


def _folder(folder: Path) -> Source:
    found = [path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file()]
    found = sorted((path for path in found if not path.name.startswith(".")), key=lambda path: path.as_posix())
    paths = [path for path in found if path.name != _SHEET]
    kinds = ", ".join(_SUFFIXES)
    require(bool(paths), f"{folder} has no images; expected files that end in {kinds}, sub-folders included")
    first = None
    for path in paths:
        image = load_image(path)
        size = (int(image.shape[2]), int(image.shape[3]))
        first = first or size
        differ = f"{paths[0]} is {first[1]} x {first[0]} and {path} is {size[1]} x {size[0]}"
        require(size == first, f"{differ} (width x height); images of one folder must have one size")
    left_out = [path.relative_to(folder).as_posix() for path in found if path.name == _SHEET]

    def read(part: slice) -> Tensor:
        return torch.cat([to_uint8(load_image(path)) for path in paths[part]])

    names = tuple(path.relative_to(folder).with_suffix("").as_posix() for path in paths)
    return Source(
        title=str(folder),
        n=len(paths),
        size=first,
        read=read,
        names=names if len(set(names)) == len(names) else (),  # a.png beside a.jpg: neither can be meant
        paths=tuple(paths),
        facts={"left out": left_out} if left_out else {},
    )


def _npz(path: Path) -> Source:
    arrays = open_npz(path)
    statistics = read_statistics(arrays, str(path))
    facts = {"not used": [name for name in ("mu_s", "sigma_s") if name in arrays]} if "mu_s" in arrays else {}
    if "arr_0" not in arrays:
        both = f"{path} holds {', '.join(arrays) or 'nothing'}; expected mu and sigma (statistics) or arr_0 (images)"
        require(statistics is not None, both)
        return Source(title=str(path), n=0, statistics=statistics, facts=facts)
    pixels = arrays["arr_0"]
    fits = pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[3] == 3 and len(pixels) > 0
    given = f"{path} has arr_0 of {pixels.dtype} {list(pixels.shape)}"
    require(fits, f"{given}; images are uint8 [N, H, W, 3]")
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return Source(
        title=str(path),
        n=len(images),
        size=(int(images.shape[2]), int(images.shape[3])),
        read=lambda part: images[part].contiguous(),
        names=tuple(str(number) for number in range(len(images))),
        statistics=statistics,
        facts=facts,
    )


def scene_source(seed: int, n: int) -> Source:
    """Return the first ``n`` true scenes of a seed, as the embedded model was trained on.

    Raises:
        UserError: ``n`` is below 1 or the seed negative.
    """
    require(n >= 1, f"n is {n}; compare at least one image")
    scenes = EmojiScenes(seed, pairs=PAIRS)
    captions = tuple(scene.caption for scene in scenes.scenes(range(n)))
    return Source(
        title=f"{n} true scenes",
        n=n,
        size=(CANVAS, CANVAS),
        read=lambda part: to_uint8(scenes.batch(range(n)[part])[0]),
        captions=captions,
        facts={"scenes": {"seed": seed, "split": scenes.split, "pairs": PAIRS}},
    )

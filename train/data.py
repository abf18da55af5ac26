"""Training data: what a data set is, and images from a folder."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from steerdiff.errors import UserError, require

from .randomness import mix

__all__ = ["Dataset", "ImageFolder", "Labels", "batches", "made_dataset"]

Made = TypeVar("Made")

Labels = list[str] | Tensor | None
"""Captions, class numbers [B], or None for images without either."""


class Dataset(Protocol):
    """Endless training samples, each a pure function of its number."""

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Labels]:
        """Return samples number ``indices``: images [B, 3, H, W] in [-1, 1], and what conditions them."""
        ...


class ImageFolder:
    """Images of a folder and its subfolders, in a new order each time round.

    Prepared as ADM does: halved with a box filter while the shorter side is at least twice ``image_size``, then bicubic
    to ``image_size``, centre crop, ``uint8 / 127.5 - 1``.

    Args:
        path: Folder with .png, .jpg, .jpeg, .webp or .bmp files.
        image_size: Height and width in pixels.
        labels: none; class: the file name before the first ``_`` (classes numbered in alphabetical order, as ADM);
            caption: the text of ``name.txt`` beside ``name.png``.
        flip: Mirror a sample with chance 1/2.
        seed: Decides order and mirroring.

    Raises:
        UserError: No such folder, no images in it, or a caption file is missing.
    """

    suffixes = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

    def __init__(
        self, path: str | Path, *, image_size: int, labels: str = "none", flip: bool = True, seed: int = 0
    ) -> None:
        root = Path(path)
        require(root.is_dir(), f"{root} is not a folder; give a folder of images")
        require(labels in ("none", "class", "caption"), f"labels is {labels!r}; choose none, class or caption")
        self.files = sorted(file for file in root.rglob("*") if file.suffix.lower() in self.suffixes)
        require(bool(self.files), f"{root} holds no images; put {', '.join(self.suffixes)} files into it")
        self.image_size, self.flip, self.seed, self._labels = image_size, flip, seed, labels
        self.classes = sorted({file.name.split("_")[0] for file in self.files}) if labels == "class" else []
        if labels == "caption":
            missing = next((f for f in self.files if not f.with_suffix(".txt").is_file()), None)
            require(missing is None, f"{missing} has no caption; put its text into a .txt file of the same name")
        self._epoch: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Labels]:
        """Return samples number ``indices``; sample i of pass e over the folder has number ``e * len + i``."""
        files = [self.files[self._place(i)] for i in indices]
        mirrored = mix(self.seed, "flip", indices) & np.uint64(1)
        rows = [self._load(file, bool(m) and self.flip) for file, m in zip(files, mirrored, strict=True)]
        images = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float() / 127.5 - 1
        if self._labels == "class":
            return images, torch.tensor([self.classes.index(file.name.split("_")[0]) for file in files])
        if self._labels == "caption":
            return images, [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in files]
        return images, None

    def _place(self, index: int) -> int:
        epoch, place = divmod(index, len(self.files))
        if self._epoch[0] != epoch:
            order = np.argsort(mix(self.seed, f"order {epoch}", range(len(self.files))), kind="stable")
            self._epoch = (epoch, order.tolist())
        return self._epoch[1][place]

    def _load(self, file: Path, mirrored: bool) -> np.ndarray[Any, np.dtype[np.uint8]]:
        try:
            image = Image.open(file).convert("RGB")
        except OSError as error:
            raise UserError(f"{file} cannot be read as an image ({error}); remove or replace it") from error
        size = self.image_size
        while min(image.size) >= 2 * size:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        factor = size / min(image.size)
        image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
        top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
        pixels = pixels[top : top + size, left : left + size]
        return pixels[:, ::-1] if mirrored else pixels


class DataConfig(Protocol):
    """What settings say of a data set."""

    @property
    def data(self) -> str:
        """Its name, for errors."""

    @property
    def data_options(self) -> dict[str, Any]:
        """Arguments of its maker."""

    @property
    def image_size(self) -> int:
        """Height and width of its images in pixels."""

    @property
    def seed(self) -> int:
        """Decides the order of the samples."""


def made_dataset(maker: Callable[..., Made], config: DataConfig, **defaults: Any) -> Made:
    """Return the data set that settings describe; ``data_options`` go before size, seed and other defaults.

    Raises:
        UserError: Options that the maker does not know, or that it refuses.
    """
    options = {"image_size": config.image_size, "seed": config.seed, **defaults, **config.data_options}
    try:
        return maker(**options)
    except TypeError as error:
        raise UserError(f"data_options {sorted(config.data_options)} do not fit {config.data}: {error}") from error


class _Batches(TorchDataset[tuple[Tensor, Labels]]):
    def __init__(self, dataset: Dataset, rows: Sequence[Sequence[int]]) -> None:
        self.dataset, self.rows = dataset, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, Labels]:
        return self.dataset.batch(self.rows[i])


def _unchanged(item: Any) -> Any:
    return item


def _calm_worker(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the main process decides when to stop
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


def batches(dataset: Dataset, rows: Sequence[Sequence[int]], workers: int) -> DataLoader[tuple[Tensor, Labels]]:
    """Return a loader that yields ``dataset.batch(r)`` for each r of ``rows``, in order.

    Args:
        dataset: The data.
        rows: Sample numbers of each batch; a lazy sequence will do.
        workers: Processes that prepare batches ahead; 0: prepared when asked for.
    """
    return DataLoader(
        _Batches(dataset, rows),
        batch_size=None,
        shuffle=False,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_calm_worker if workers else None,
        prefetch_factor=2 if workers else None,
    )

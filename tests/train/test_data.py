from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.train.data import ImageFolder, batches

from .runs import make_images


def test_every_pass_shows_every_image_once_in_another_order(tmp_path: Path) -> None:
    data = ImageFolder(make_images(tmp_path / "i"), image_size=8, flip=False, labels="caption")
    n = len(data)
    passes = [data.batch(range(k * n, k * n + n))[0].flatten(1) for k in range(3)]
    rows = [[tuple(row.tolist()) for row in images] for images in passes]
    assert set(rows[0]) == set(rows[1]) == set(rows[2]) and len(set(rows[0])) == n
    assert rows[0] != rows[1] != rows[2]


def test_a_sample_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    data = ImageFolder(make_images(tmp_path / "i"), image_size=8, labels="class")
    images, labels = data.batch([3, 25, 7])
    assert isinstance(labels, Tensor)
    for row, index in enumerate([3, 25, 7]):
        image, label = ImageFolder(tmp_path / "i", image_size=8, labels="class").batch([index])
        assert torch.equal(images[row], image[0]) and labels[row] == label[0]  # type: ignore[index]


def test_pixels_are_cropped_from_the_centre_and_scaled(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = [0, 255, 51]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image, labels = ImageFolder(tmp_path, image_size=4, flip=False).batch([0])
    assert labels is None
    assert image.shape == (1, 3, 4, 4) and image.dtype == torch.float32
    for channel, value in enumerate([0, 255, 51]):
        assert (image[0, channel] == value / 127.5 - 1).all()


def test_large_images_are_halved_first(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = ImageFolder(tmp_path, image_size=8, flip=False).batch([0])[0]
    boxes = torch.from_numpy(pixels).permute(2, 0, 1).float().unflatten(1, (8, 4)).unflatten(3, (8, 4)).mean((2, 4))
    assert (image[0] - (boxes / 127.5 - 1)).abs().max() <= 2.01 / 127.5  # two halvings round twice each


def test_mirroring_is_fair_and_optional(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:, :2] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    n = 1000
    left = ImageFolder(tmp_path, image_size=4).batch(range(n))[0][:, 0, 0, 0] > 0
    assert abs(left.float().mean() - 0.5) < 5 * 0.5 / n**0.5
    assert (ImageFolder(tmp_path, image_size=4, flip=False).batch(range(n))[0][:, 0, 0, 0] > 0).all()


def test_labels_come_from_names_or_text_files(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "i", count=6)
    data = ImageFolder(folder, image_size=8, labels="class")
    assert data.classes == ["blue", "green", "red"]
    captions = ImageFolder(folder, image_size=8, labels="caption").batch(range(6))[1]
    classes = data.batch(range(6))[1]
    assert isinstance(classes, Tensor) and isinstance(captions, list)
    assert [f"{data.classes[k]} thing" for k in classes.tolist()] == captions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "nowhere"}, "nowhere is not a folder"),
        ({"path": "empty"}, "holds no images"),
        ({"path": "i", "labels": "name"}, "labels is 'name'; choose none, class or caption"),
        ({"path": "bare", "labels": "caption"}, r"a.png has no caption; put its text into a .txt file"),
    ],
)
def test_bad_folders_are_named(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    make_images(tmp_path / "i", count=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "bare" / "a.png")
    with pytest.raises(UserError, match=message):
        ImageFolder(**{**arguments, "path": tmp_path / arguments["path"]}, image_size=8)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="a.png cannot be read as an image"):
        ImageFolder(tmp_path, image_size=8).batch([0])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_from_any_number_of_workers(tmp_path: Path, workers: int) -> None:
    data = ImageFolder(make_images(tmp_path / "i", count=5), image_size=8, labels="caption")
    rows = [range(3 * k, 3 * k + 3) for k in range(4)]
    seen = list(batches(data, rows, workers))
    assert len(seen) == 4
    for (images, labels), row in zip(seen, rows, strict=True):
        expected, captions = data.batch(row)
        assert torch.equal(images, expected) and labels == captions

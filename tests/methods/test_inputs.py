"""What methods read of a folder of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.io import save_image
from steerdiff.methods import DiffusionCLIP
from steerdiff.methods.dreambooth_tuning import folder_pictures
from steerdiff.methods.edit_tuning import training_images
from steerdiff.methods.inputs import folder_images

from ..guidance.toys import formula_model


def folder_of(path: Path, n: int = 4) -> Path:
    """Write grey pictures, each of another grey, with a text that names it."""
    for k in range(n):
        save_image(torch.full((3, 10, 12), k / n), path / f"{k}.png")
        (path / f"{k}.txt").write_text(f"grey {k}")
    return path


def greys(images: Tensor, n: int = 4) -> list[str]:
    return [f"grey {round(float(image.mean()) * n)}" for image in images]


def test_a_folder_gives_pictures_of_the_models_size_each_with_its_text(tmp_path: Path) -> None:
    model = formula_model(lambda x, t: x, 8)
    images, nothing = folder_images(model, folder_of(tmp_path / "in"), captioned=False)
    assert images.shape == (4, 3, 8, 8) and nothing is None
    again, captions = folder_images(model, tmp_path / "in", captioned=True)
    assert torch.equal(again, images) and captions == greys(images) and len(set(captions)) == 4


def test_of_a_folder_the_first_pictures_are_taken_as_far_as_there_are_so_many(tmp_path: Path) -> None:
    model = formula_model(lambda x, t: x, 8)
    images, captions = folder_images(model, folder_of(tmp_path / "in"), captioned=True)
    some, told = folder_images(model, tmp_path / "in", captioned=True, n=3)
    assert captions is not None and torch.equal(some, images[:3]) and told == captions[:3]
    assert len(folder_images(model, tmp_path / "in", captioned=False, n=99)[0]) == 4


def test_methods_that_tune_on_a_folder_read_the_same(tmp_path: Path) -> None:
    model, folder = formula_model(lambda x, t: x, 8), folder_of(tmp_path / "in")
    taught = folder_pictures(model, {folder: None})
    edit = DiffusionCLIP(source_text="cat", target_text="dog", images=folder, n_images=3, uses_prompt=True)
    images, captions = training_images(edit, model)
    assert torch.equal(images, taught.images[:3]) and captions == list(taught.captions[:3])


def test_a_model_that_draws_no_squares_takes_no_folder(tmp_path: Path) -> None:
    model = formula_model(lambda x, t: x, 8).resized(8, 16)
    with pytest.raises(UserError, match="custom draws 8 x 16; pictures of a folder are cut square"):
        folder_images(model, folder_of(tmp_path / "in"), captioned=False)

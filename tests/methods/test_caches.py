"""What is computed of weights that were taken for another kind of network is not found again for the right one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from steerdiff.guidance import Model
from steerdiff.guidance.perceptual import PerceptualDistance
from steerdiff.io import save_image
from steerdiff.methods import DiffusionCLIP
from steerdiff.methods.asyrp_tuning import cached_curves
from steerdiff.methods.dreambooth_tuning import class_pictures
from steerdiff.methods.edit_tuning import latent_pairs, training_images
from steerdiff.methods.imagic import Imagic
from steerdiff.models.clip import Clip

from ..guidance.toys import pictures, tiny_text_model


class Looks:
    """Stands for a CLIP."""

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


def drawn(model: Model, _: Path) -> None:
    training_images(DiffusionCLIP(source_text="cat", target_text="dog", n_images=1, image_steps=2), model)


def inverted(model: Model, folder: Path) -> None:
    save_image(torch.full((3, 8, 8), 0.5), folder / "one.png")  # the same image for both kinds
    edit = DiffusionCLIP(source_text="cat", target_text="dog", images=folder, uses_prompt=False)
    latent_pairs(edit, model, cast(Clip, Looks()), model.path(2).inverted())


def of_a_class(model: Model, _: Path) -> None:
    class_pictures(model, ["a dog"], 0, None, steps=2)


def embedded(model: Model, folder: Path) -> None:
    edit = Imagic(embedding_steps=1, network_steps=0)
    edit.finetune(model, pictures(1, 8) * 0.9, prompt="a cat", folder=folder, resume=True, progress=False)


class Apart:
    """Stands for a perceptual distance."""

    name, weights_hash = "apart", "0"

    def __call__(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one - other).abs().mean((1, 2, 3))


def compared(model: Model, _: Path) -> None:
    cached_curves(model, pictures(1, 8) * 0.9, ["a cat"], cast(PerceptualDistance, Apart()), 2)


CACHED: dict[str, Callable[[Model, Path], Any]] = {
    "images": drawn,
    "latents": inverted,
    "class-images": of_a_class,
    "embeddings": embedded,
    "phase-curves": compared,
}


@pytest.mark.parametrize("kind", CACHED)
def test_a_cache_tells_noise_from_v_and_levels_from_others(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERDIFF_CACHE", str(tmp_path / "cache"))
    model = tiny_text_model()
    predicts = dataclasses.replace(model, parameterization="v" if model.parameterization == "eps" else "eps")
    levels = dataclasses.replace(model, schedule=type(model.schedule).linear(model.schedule.T, 1e-3, 1e-2))
    for number, one in enumerate((model, predicts, levels, model)):
        CACHED[kind](one, tmp_path / f"{number}")
    assert len(list((tmp_path / "cache" / kind).glob("*.safetensors"))) == 3

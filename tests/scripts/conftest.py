"""A tiny model with random weights, saved as the library saves one, and a runner of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from steerdiff.models import TextConfig, TextToImage, UNetConfig
from steerdiff.models.checkpoint import save_safetensors
from steerdiff.models.config import EncoderUNetConfig
from steerdiff.models.encoder_unet import EncoderUNet
from steerdiff.samplers import NoiseSchedule
from steerdiff.scripts.cli import run

SIZE = 16
WORDS = ("a", "red", "green", "cat", "apple", "on", "background")


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def steerdiff(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run a command line in this process, as `main` does, and return its exit code and what it printed."""

    def call(*arguments: object) -> Done:
        capsys.readouterr()
        threads = torch.get_num_threads()
        try:
            code = run([str(argument) for argument in arguments])
        except SystemExit as error:  # tyro leaves on --help and on bad flags
            code = int(error.code or 0)
        finally:
            torch.set_num_threads(threads)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


def save_tiny(
    path: Path, seed: int = 0, *, words: tuple[str, ...] = WORDS, image_size: int = SIZE, unshuffle: int = 1
) -> Path:
    """Save a small random text-to-image model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text = TextConfig(words=words, width=32, depth=1, heads=2, length=24)
        shape = {"model_channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "attention_at": (2,)}
        unet = UNetConfig(**shape, context_dim=32, unshuffle=unshuffle)
        model = TextToImage(unet, text)
        for parameter in model.parameters():  # the last layers are zero at the start; a random model shall do something
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.5 / parameter[0].numel() ** 0.5)
    header = {
        "kind": "text-to-image",
        "unet": {field: getattr(unet, field) for field in unet.__dataclass_fields__},
        "text": {field: getattr(text, field) for field in text.__dataclass_fields__},
        "schedule": NoiseSchedule.cosine(shift=0.5).to_dict(),  # the noise that the shipped classifier knows
        "parameterization": "v",
        "image_size": image_size,
    }
    save_safetensors(path, model.state_dict(), header)
    return path


def save_tiny_classifier(path: Path) -> Path:
    """Save a small random classifier of the tiny model's noise, which knows two classes."""
    trunk = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "attention_at": (), "head_channels": 32}
    config = EncoderUNetConfig(trunk=UNetConfig(**trunk, out_channels=2), image_size=SIZE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = EncoderUNet(config)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.5 / parameter[0].numel() ** 0.5)
    header = {
        "kind": "classifier",
        "trunk": config.trunk.to_dict(),
        "pool": config.pool,
        "image_size": SIZE,
        "labels": ["cat", "apple"],
        "schedule": NoiseSchedule.cosine(shift=0.5).to_dict(),
    }
    save_safetensors(path, network.state_dict(), header)
    return path


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of the tiny classifier."""
    return save_tiny_classifier(tmp_path_factory.mktemp("weights") / "tiny-classifier.safetensors")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of the tiny model."""
    return save_tiny(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with image.png and mask.png, of other sizes than the model's."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    mask = np.zeros((40, 40), np.uint8)
    mask[:, 20:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder

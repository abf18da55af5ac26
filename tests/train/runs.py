"""A training run small enough for tests: 8 x 8 pixel images of a folder, one level of 32 channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from steerdiff.train.config import TrainConfig

WORDS = ("red", "green", "blue", "thing")
UNET = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "attention_at": (1,)}


def make_images(folder: Path, count: int = 10) -> Path:
    """Write ``count`` noisy red, green and blue images, with classes in their names and captions beside them."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(count):
        pixels = random.integers(0, 56, (9, 11, 3), dtype=np.uint8)
        pixels[..., i % 3] += 200
        Image.fromarray(pixels).save(folder / f"{WORDS[i % 3]}_{i}.png")
        (folder / f"{WORDS[i % 3]}_{i}.txt").write_text(f"{WORDS[i % 3]} thing")
    return folder


def tiny_config(folder: Path, name: str = "run", **changes: Any) -> TrainConfig:
    """Return a run in ``folder``/``name`` on the images of ``folder``/images, which are made if missing."""
    images = folder / "images"
    if not images.exists():
        make_images(images)
    values: dict[str, Any] = {
        "folder": str(folder / name),
        "unet": UNET,
        "text": {"words": WORDS, "width": 16, "depth": 1, "heads": 2, "length": 5},
        "schedule": {"name": "cosine", "T": 100},
        "data": "folder",
        "data_options": {"path": str(images), "labels": "caption"},
        "image_size": 8,
        "steps": 4,
        "batch_size": 4,
        "optimizer": "muon",
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "ema_decay": 0.9,
        "device": "cpu",
        "log_every": 1,
        "checkpoint_every": 2,
    }
    return TrainConfig(**{**values, **changes})


def state_of(config: TrainConfig) -> dict[str, Any]:
    """Return the newest checkpoint of the run."""
    path = max((Path(config.folder) / "checkpoints").glob("step-*.pt"))
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two state dicts are bit-identical."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def curve(config: TrainConfig) -> list[tuple[str, ...]]:
    """Return the columns of metrics.csv that do not depend on the clock, row by row, as written."""
    rows = (Path(config.folder) / "metrics.csv").read_text().splitlines()
    header = rows[0].split(",")
    keep = [i for i, name in enumerate(header) if name not in ("images_per_second", "data_wait")]
    return [tuple(row.split(",")[i] for i in keep) for row in rows]

"""Which published checkpoints lie in the folder that STEERDIFF_WEIGHTS names."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from steerdiff.io import load_image
from steerdiff.models.published import PRESETS
from steerdiff.train.scenes import EmojiScenes, Example

__all__ = ["FOLDER", "find", "pictures", "present", "scenes"]

FOLDER = Path(os.environ["STEERDIFF_WEIGHTS"]) if os.environ.get("STEERDIFF_WEIGHTS") else None

_SUFFIXES = ("", ".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def find(preset: str, folder: Path | None = FOLDER) -> Path | None:
    """Return the weights of a preset: a file or folder named like it, or a file under its published name."""
    if folder is None:
        return None
    for suffix in _SUFFIXES:
        named = folder / f"{preset}{suffix}"
        if named.is_file() or (named.is_dir() and (named / "model_index.json").is_file()):
            return named
        if named.is_dir():
            inside = sorted(path for path in named.iterdir() if path.suffix in _SUFFIXES[1:])
            if inside:
                return inside[0]
    names = {name for name in PRESETS[preset].files if " " not in name}
    return next((path for path in sorted(folder.rglob("*")) if path.name in names and path.is_file()), None)


def present(*families: str) -> list[str]:
    """Return the presets of these families whose weights are there."""
    return [name for name, preset in PRESETS.items() if preset.model.family in families and find(name) is not None]


def scenes(count: int) -> list[Example]:
    """Return emoji scenes of one object each, all objects different."""
    found: dict[str, Example] = {}
    made = EmojiScenes(seed=3, pairs=0.0)
    for number in range(20 * count):
        example = made[number]
        found.setdefault(example.scene.items[0].object, example)
    return list(found.values())[:count]


def pictures(size: tuple[int, int], count: int = 2) -> Tensor:
    """Return images [count, 3, H, W] in [-1, 1]: those in the folder ``photos`` of FOLDER, else enlarged scenes."""
    photos = sorted((FOLDER / "photos").glob("*")) if FOLDER is not None and (FOLDER / "photos").is_dir() else []
    if photos:
        return torch.cat([load_image(path, size) for path in photos[:count]])
    small = torch.stack([example.image for example in scenes(count)])
    large = torch.nn.functional.interpolate(small, size=size, mode="bicubic", align_corners=False)
    return large.clamp(-1, 1)

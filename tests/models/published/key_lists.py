"""The names and shapes of published checkpoints (golden ``keys/*.json.gz``) as files without numbers."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerdiff.models.weights import Entry, WeightFile

__all__ = ["KEY_LISTS", "key_list", "listed_file", "without_numbers"]

FOLDER = Path(os.environ.get("STEERDIFF_GOLDEN", Path(__file__).parents[2] / "golden")) / "keys"
#: Every list, by its name.
KEY_LISTS = {path.name.removesuffix(".json.gz"): path for path in sorted(FOLDER.glob("*.json.gz"))}


def key_list(name: str) -> dict[str, Any]:
    """What a list holds: meta, params and the shape of each key."""
    with gzip.open(KEY_LISTS[name], "rt") as file:
        values: dict[str, Any] = json.load(file)
    return values


def listed_file(name: str) -> WeightFile:
    """A list as a file whose numbers cannot be read."""
    return without_numbers(key_list(name)["keys"], name)


def without_numbers(shapes: Mapping[str, Any], name: str = "file.pt", **metadata: str) -> WeightFile:
    """A file of tensors of the given shapes, all float32 but the counts of batches, which fails when one is read."""

    def load(key: str) -> Tensor:
        raise AssertionError(f"{key} was read")

    counts = {True: torch.int64, False: torch.float32}
    entries = {key: Entry(tuple(shape), counts["num_batches" in key]) for key, shape in shapes.items()}
    return WeightFile(Path(name), entries, load, metadata=metadata)

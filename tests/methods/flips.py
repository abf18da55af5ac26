"""Other values of fields that alone change nothing: they name files, or act only together with other fields."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steerdiff.guidance import Model
from steerdiff.io import save_image
from steerdiff.models.delta import save_delta

from ..guidance.toys import pictures

__all__ = ["Among", "Files", "Made", "Neutral", "Refused", "replaced"]


@dataclasses.dataclass(frozen=True)
class Files:
    """Files that settings name."""

    folder: Path
    model: Model  #: that deltas are tuned for
    method: Any  #: small settings of the method

    def delta(self, number: int) -> Path:
        """Return a delta of the method, another one for each number."""
        path = self.folder / f"{number}.safetensors"
        if not path.is_file():
            rate = {"learning_rate": 0.02} if hasattr(self.method, "learning_rate") else {}
            other = dataclasses.replace(self.method, tune_seed=50 + number, **rate)
            seen = "image" in inspect.signature(other.finetune).parameters
            image = {"image": pictures(1, 8, seed=number)} if seen else {}
            run = self.folder / f"run{number}"
            save_delta(path, other.finetune(self.model, **image, folder=run, progress=False))
        return path

    def images(self) -> Path:
        """Return a folder of pictures with captions."""
        folder = self.folder / "images"
        for number, image in enumerate(pictures(3, 8, seed=9)):
            save_image(image, folder / f"{number}.png")
            (folder / f"{number}.txt").write_text("a red dog")
        return folder


@dataclasses.dataclass(frozen=True)
class Made:
    """A value that is a file."""

    make: Callable[[Files], Any]


@dataclasses.dataclass(frozen=True)
class Among:
    """A value that has something to do only where other fields have these values too."""

    value: Any
    others: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Neutral:
    """A value that may change time and memory but not the result."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Refused:
    """A value that the call refuses, because it needs what only Python code can give."""

    value: Any
    message: str


def replaced(method: Any, changes: dict[str, Any], files: Files) -> Any:
    """Return the settings with some fields changed, files made."""
    made = {name: value.make(files) if isinstance(value, Made) else value for name, value in changes.items()}
    return dataclasses.replace(method, **made)

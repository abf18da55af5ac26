"""Images with the settings that made them, and the way back from the settings to the arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerdiff.errors import require

from .arguments import plain
from .runtime import ModelFlags, environment

if TYPE_CHECKING:
    from torch import Tensor

    from steerdiff.guidance import Model

__all__ = ["FORMAT", "Batch", "Inputs", "read_inputs", "save_batch"]

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images that are computed together; the bits of one may depend on its neighbours, so a rerun makes all."""

    prompts: list[str] | None  #: one for each image; None without text
    seeds: list[int]  #: one for each image

    def to_dict(self) -> dict[str, Any]:
        """Return it for the settings."""
        return {"prompts": self.prompts, "seeds": self.seeds}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Pictures that went in: as tensors, and where they came from."""

    images: Mapping[str, Tensor] = field(default_factory=dict)  #: by flag, [1, C, H, W] in [-1, 1]; "mask" in [0, 1]
    paths: Mapping[str, str] = field(default_factory=dict)  #: by flag

    def to_dict(self) -> dict[str, Any]:
        """Return them for the settings, whole, so that a rerun needs no other file."""
        from steerdiff.io import embed_image

        pictures = {name: image * 2 - 1 if name == "mask" else image for name, image in self.images.items()}
        return {name: {"path": self.paths.get(name), "png": embed_image(image)} for name, image in pictures.items()}


def read_inputs(settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the input tensors that the settings of an image hold."""
    from steerdiff.io import load_image, load_mask, unembed_image

    stored = settings.get("inputs", {})
    pictures = {name: unembed_image(item["png"]) for name, item in stored.items()}
    return {name: load_mask(item) if name == "mask" else load_image(item) for name, item in pictures.items()}


def save_batch(
    images: Tensor,
    paths: Sequence[Path],
    *,
    command: str,
    options: ModelFlags,
    model: Model,
    batch: Batch,
    extra: Mapping[str, Any],
) -> None:
    """Write images [B, 3, H, W] to ``paths`` as PNG, each with the settings that make it again.

    Args:
        images: In [-1, 1].
        paths: One for each image.
        command: What was called, such as "edit sdedit".
        options: Its flags.
        model: What made the images.
        batch: Prompts and seeds of all of them.
        extra: More settings, such as inputs.
    """
    from steerdiff.io import save_image

    require(len(images) == len(paths), f"{len(images)} images for {len(paths)} paths")
    common = {
        "format": FORMAT,
        "command": command,
        "options": plain(options),
        "model": {"source": options.weights, "name": model.name, "sha256": model.weights_hash},
        "environment": environment(str(model.device)),
        "batch": batch.to_dict(),
        **extra,
    }
    for index, (image, path) in enumerate(zip(images, paths, strict=True)):
        own = {"index": index, "seed": batch.seeds[index]}
        if batch.prompts is not None:
            own["prompt"] = batch.prompts[index]  # type: ignore[assignment]
        save_image(image, path, {**common, **own})

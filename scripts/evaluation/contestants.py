"""What a cell can run: every method, and two that need none: a sample from the caption, and the image as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steerdiff.guidance import Model
from steerdiff.guidance.prompts import Prompt
from steerdiff.guidance.settings import Sampling
from steerdiff.methods import METHODS
from steerdiff.samplers import Seeds

__all__ = ["RUNNERS", "TextToImage", "Unchanged"]


@dataclass(frozen=True, kw_only=True)
class TextToImage(Sampling):
    """Draw from the caption alone: what an edit is worth that forgets its image."""

    def __call__(
        self,
        model: Model,
        image: Tensor | None = None,
        *,
        prompt: Sequence[str],
        seed: Seeds = 0,
        progress: str | None = None,
    ) -> Tensor:
        """Return one sample for each prompt.

        Args:
            model: Any model with text.
            image: [B, C, H, W]; not looked at, taken so that all are called alike.
            prompt: What to draw, a text for each image.
            seed: One integer (image i uses ``seed + i``) or one for each image.
            progress: Label of a progress bar; None shows none.
        """
        drawn: Tensor = model.sample(
            prompt,
            steps=self.steps,
            guidance=self.guidance,
            seed=seed,
            solver=self.solver,
            spacing=self.spacing,
            clip=self.clip,
            batch=len(prompt),
            progress=progress,
        )
        return drawn


@dataclass(frozen=True, kw_only=True)
class Unchanged:
    """Give the image back: what an edit is worth that does nothing."""

    def __call__(
        self, model: Model, image: Tensor, *, prompt: Prompt = None, seed: Seeds = 0, progress: str | None = None
    ) -> Tensor:
        """Return ``image`` [B, C, H, W]; the other arguments are taken so that all are called alike."""
        _ = model, prompt, seed, progress
        return image.to(torch.float32)


#: Everything that a cell can run, by name.
RUNNERS: Mapping[str, type[Any]] = {**METHODS, "sample": TextToImage, "unchanged": Unchanged}

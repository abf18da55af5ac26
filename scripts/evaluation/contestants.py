"""What a cell can run: every method, and beside them a sample of the caption, the image as it is, and a found mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.guidance import Model
from steerdiff.guidance.prompts import Prompt
from steerdiff.guidance.settings import Sampling
from steerdiff.methods import METHODS, DiffEdit
from steerdiff.methods.diffedit import PRESETS as FINDERS
from steerdiff.samplers import Seeds

__all__ = ["RUNNERS", "InferredMask", "TextToImage", "Unchanged"]

Reference = Literal["caption", "empty"]


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


@dataclass(frozen=True, kw_only=True)
class InferredMask:
    """Give the image back with the region marked that DiffEdit would edit: "mask IoU" then says how well it lies.

    Marked pixels move by half the range of their channels, far more than counts as changed. Where a task has a mask it
    is not looked at. The other scores say nothing of a marked image.
    """

    finder: DiffEdit = FINDERS["emoji64"]  #: whose mask it is
    reference: Reference = "caption"  #: what the target is compared with: what the image shows, or the empty text

    def __post_init__(self) -> None:
        """Check the reference."""
        known = get_args(Reference)
        require(self.reference in known, f"reference is {self.reference!r}; known are {', '.join(known)}")

    def __call__(
        self,
        model: Model,
        image: Tensor,
        *,
        prompt: Sequence[str],
        target: Sequence[str],
        seed: Seeds = 0,
        progress: str | None = None,
    ) -> Tensor:
        """Return the marked images.

        Args:
            model: Any model with text.
            image: [B, 3, H, W] in [-1, 1].
            prompt: What each image shows.
            target: What each should show.
            seed: Of the mask's noise: one integer (image i uses ``seed + i``) or one for each image.
            progress: Not used; taken so that all are called alike.
        """
        _ = progress
        told = list(prompt) if self.reference == "caption" else ""
        free = self.finder.mask(model, image, prompt=told, target=list(target), seed=seed)
        return torch.where(free > 0, torch.where(image > 0, image - 1, image + 1), image)


#: Everything that a cell can run, by name.
RUNNERS: Mapping[str, type[Any]] = {
    **METHODS,
    "sample": TextToImage,
    "unchanged": Unchanged,
    "diffedit-mask": InferredMask,
}

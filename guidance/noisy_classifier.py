"""A classifier of noisy images as guidance uses it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from steerdiff.errors import require
from steerdiff.models.checkpoint import file_hash

if TYPE_CHECKING:
    from .model import Model

__all__ = ["Classifier", "NoisyClassifier", "hash_of", "targets_of"]

#: ``classifier(x [B, C, H, W], t [B]) -> logits [B, classes]``
Classifier = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisyClassifier:
    """A published noisy classifier with what is known of it; called as ``classifier(x, t) -> logits``."""

    network: nn.Module  #: ``network(x, t)``
    num_classes: int  #: number of logits
    image_size: int  #: height and width of its images in pixels
    name: str = "custom"  #: where the weights come from, for the record
    files: tuple[Path, ...] = ()  #: files of the weights, for the record

    @functools.cached_property
    def weights_hash(self) -> str | None:
        """SHA-256 of the weights' file, for the record."""
        return hash_of(self.files)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits [B, num_classes] in float32 for noisy images [B, 3, H, W] at times ``t`` [B]."""
        weight = next(self.network.parameters())
        logits: Tensor = self.network(x.to(weight.dtype), t)
        return logits.to(torch.float32)


def targets_of(classifier: Classifier, y: int | Sequence[int] | None, model: Model) -> Tensor:
    """Return the labels [B] that a classifier pulls images of ``model`` towards.

    Raises:
        UserError: There are none, or the classifier is known to see images of another size.
    """
    require(y is not None, "a classifier pulls towards a label; give y")
    if isinstance(classifier, NoisyClassifier):
        side = classifier.image_size
        seen = model.factor == 1 and model.size == (side, side)
        drawn = f"{model.size[0]} x {model.size[1]}" if model.factor == 1 else "latents of them"
        require(seen, f"the classifier sees images of {side} x {side} pixels; {model.name} draws {drawn}")
    return torch.as_tensor(y, device=model.device).reshape(-1).long()


def hash_of(files: Sequence[Path]) -> str | None:
    """SHA-256 of a file, or of the hashes of several in their order; None without one."""
    if not files:
        return None
    hashes = [file_hash(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

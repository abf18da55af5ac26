"""What a model may be told in words, and what it asks of its text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .classifier_free import Condition

__all__ = ["Prompt", "TextEncoder", "Weighted", "listed"]

#: One text for all images, a text for each, text states made by `Model.condition`, or nothing.
Prompt = str | Sequence[str] | Condition | None


def listed(texts: str | Sequence[str] | None) -> list[str]:
    """Return texts as a list; nothing is the empty text."""
    return [texts or ""] if texts is None or isinstance(texts, str) else list(texts)


@dataclass(frozen=True, eq=False)
class Weighted:
    """A further prompt of a weighted sum: ``weight * (prompt - uncond)`` is added to what guidance gives."""

    prompt: Prompt  #: one text, or one for each image
    weight: float | Tensor  #: of any sign; a tensor [B] weighs it for each image by its own, 0 leaves it out


class TextEncoder(Protocol):
    """What a model asks of its text encoder; ``""`` is the empty prompt."""

    def tokenize(self, texts: list[str], /) -> tuple[Tensor, Tensor | None]:
        """Return ids [B, L], and a mask [B, L] or None where all states count; bad texts are a ``UserError``."""
        ...

    def __call__(self, ids: Tensor, mask: Tensor | None, /) -> Tensor:
        """Return text states [B, L, D]."""
        ...

"""What a model may be told in words, and what it asks of its text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from .classifier_free import Condition

__all__ = ["Prompt", "TextEncoder"]

#: One text for all images, a text for each, text states made by `Model.condition`, or nothing.
Prompt = str | Sequence[str] | Condition | None


class TextEncoder(Protocol):
    """What a model asks of its text encoder; ``""`` is the empty prompt."""

    def tokenize(self, texts: list[str], /) -> tuple[Tensor, Tensor | None]:
        """Return ids [B, L], and a mask [B, L] or None where all states count; bad texts are a ``UserError``."""
        ...

    def __call__(self, ids: Tensor, mask: Tensor | None, /) -> Tensor:
        """Return text states [B, L, D]."""
        ...

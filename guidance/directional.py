"""Directional CLIP losses: the edit of an image should point where the edit of the text points."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import require

__all__ = [
    "GENERAL_TEMPLATES",
    "TextFeatures",
    "directional_cosine",
    "directional_loss",
    "filled",
    "text_direction",
]

#: Sentences about any picture, with {} for what it shows.
GENERAL_TEMPLATES: tuple[str, ...] = (
    "a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "a good photo of a {}",
    "a bad photo of a {}",
    "a sharp photo of a {}",
    "a blurred photo of a {}",
    "a bright photo of a {}",
    "a dark photo of a {}",
    "a close photo of a {}",
    "a photo of a {} from afar",
    "a cropped photo of a {}",
    "a small photo of a {}",
    "a large photo of a {}",
    "a photo of the {}",
    "a photo of one {}",
    "a clean picture of a {}",
    "a noisy picture of a {}",
    "a drawing of a {}",
    "a painting of a {}",
    "a rendering of a {}",
    "a {} in a picture",
    "there is a {} here",
    "this is a {}",
    "look at this {}",
)

_TINY = 1e-7  # the paper's, beside the length of an edit
_WORST = 1e-6  # smallest (1 + cos) / 2 of the loss, which has no value at the opposite direction
_VOWELS = "aeiou"
_ARTICLE = re.compile(r"\b([Aa])n? \{\}")


class TextFeatures(Protocol):
    """The text side of a CLIP."""

    def text_features(self, texts: Sequence[str], /) -> Tensor:
        """Return unit vectors [B, D] of texts."""
        ...


def filled(template: str, phrase: str) -> str:
    """Put ``phrase`` in the place of {}; an article right before it becomes "an" before a vowel, else "a"."""
    article = r"\1n " if phrase[:1].lower() in _VOWELS else r"\1 "
    return _ARTICLE.sub(lambda match: match.expand(article) + "{}", template).replace("{}", phrase)


def text_direction(clip: TextFeatures, source: str, target: str, templates: Sequence[str] = ("{}",)) -> Tensor:
    """Return the direction from one text to another: the mean over templates of the difference of their unit vectors.

    Args:
        clip: Gives unit vectors of texts.
        source: Words for what an image shows before the edit.
        target: Words for what it shall show.
        templates: Sentences with {} for the words.

    Returns:
        A unit vector [D], float32.

    Raises:
        UserError: A text is empty, the two are equal, or a template has no {}.

    Source: Gal et al. 2022 (StyleGAN-NADA); Kim et al. 2022 (DiffusionCLIP), section 3.1, which averages over the
    templates of CLIP's ImageNet evaluation.
    """
    for name, text in (("source_text", source), ("target_text", target)):
        require(
            bool(text.strip()), f"{name} is empty; say what the image shows, such as 'flat', or shall show, as '3d'"
        )
    require(source != target, f"source_text and target_text are both {source!r}; give two different texts")
    wrong = [template for template in templates if "{}" not in template]
    require(bool(templates) and not wrong, f"the templates {wrong} have no {{}}; mark where the words go")
    with torch.no_grad():
        before = clip.text_features([filled(template, source) for template in templates])
        after = clip.text_features([filled(template, target) for template in templates])
        return functional.normalize((after - before).float().mean(0), dim=0)


def directional_cosine(edited: Tensor, source: Tensor, direction: Tensor) -> Tensor:
    """Return the cosine of each image's edit with a direction, in [-1, 1] [B]; gradients flow.

    Args:
        edited: Image vectors after the edit [B, D], of any length.
        source: Image vectors before it [B, D].
        direction: Unit vector [D] or [B, D].

    Source: Kim et al. 2022 (DiffusionCLIP), eq. 10. An image that did not move at all has cosine 0.
    """
    moved = functional.normalize(edited.float(), dim=-1) - functional.normalize(source.float(), dim=-1)
    unit = moved / (torch.linalg.vector_norm(moved, dim=-1, keepdim=True) + _TINY)
    cosine: Tensor = (unit * direction.to(unit)).sum(-1)
    return cosine


def directional_loss(edited: Tensor, source: Tensor, direction: Tensor) -> Tensor:
    """Return ``-log((1 + cos) / 2)`` of each image [B]: 0 along the direction, log 2 across it, large against it.

    Its gradient points where that of ``1 - cos`` points and is steeper the worse the image is aligned. Arguments as
    for `directional_cosine`.

    Source: the official code of DiffusionCLIP and of Asyrp (Kwon et al. 2023); the papers print ``1 - cos``.
    """
    share = (1 + directional_cosine(edited, source, direction)) / 2
    loss: Tensor = -torch.log(share.clamp(min=_WORST))
    return loss

"""How results resemble a subject and their texts, and how those of one text differ: the scores of DreamBooth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import UserError, require
from steerdiff.guidance.loading import locate
from steerdiff.scripts.evaluation.perceptual import ClipScore, PairMeasure, clip_score, dino_similarity
from steerdiff.train.recogniser import load_recogniser

from .places import find_file, weights_folder

__all__ = ["clip_of", "dino_of", "diversity", "image_likeness", "likeness", "text_likeness", "without_word"]

_CLIP = "ViT-B-32.pt"
_DINO, _DINO_FILE = "vit_small_patch16_224.dino", "dino_deitsmall16_pretrain.pth"

Similarity = Callable[[Tensor, Tensor], Tensor]


def dino_of(device: str, *, toy: bool) -> PairMeasure:
    """Return the cosine of DINO's vectors of two images; in a toy that of the shipped recogniser's features.

    Raises:
        UserError: DINO's weights are not in the folder that ``STEERDIFF_WEIGHTS`` names.

    Source: Ruiz et al. 2023, section 4.2: ViT-S/16, its class token.
    """
    return _recogniser_cosine() if toy else dino_similarity(_found(_DINO_FILE, "DINO"), _DINO, device)


def clip_of(device: str, *, toy: bool) -> ClipScore:
    """Return CLIP ViT-B/32, whose size the paper does not say and ports take; in a toy the shipped one.

    Raises:
        UserError: Its weights are not in the folder that ``STEERDIFF_WEIGHTS`` names.
    """
    path = locate("emoji64-clip") if toy else _found(_CLIP, "OpenAI's CLIP")
    return clip_score(path, None, None, device)


def likeness(results: Tensor, subject: Sequence[Tensor], measure: Similarity) -> float:
    """Return the mean of a similarity over all results with all pictures of the subject.

    Args:
        results: uint8 [N, 3, H, W].
        subject: uint8 [1, 3, H, W] each, perhaps of several sizes.
        measure: Of two batches of images, uint8 [B, 3, ., .], to [B].
    """
    rows = [measure(results, picture.expand(len(results), -1, -1, -1)) for picture in subject]
    return float(torch.stack(rows).double().mean())


def image_likeness(results: Tensor, subject: Sequence[Tensor], clip: ClipScore) -> float:
    """Return the mean cosine of CLIP's vectors of all results with those of all pictures of the subject (CLIP-I)."""
    return float((clip.vectors(results) @ torch.cat([clip.vectors(picture) for picture in subject]).T).mean())


def text_likeness(results: Tensor, prompts: Sequence[str], clip: ClipScore) -> float:
    """Return the mean cosine of CLIP's vectors of each result and its prompt (CLIP-T); a negative one counts as 0."""
    return float(clip(results, prompts).mean() / 100)


def without_word(prompt: str, words: Sequence[str]) -> str:
    """Return a prompt without the identifiers, of which a CLIP knows nothing."""
    return " ".join(word for word in prompt.split() if word.strip(",.") not in words)


def diversity(results: Tensor, prompts: Sequence[str], distance: Similarity) -> float:
    """Return the mean distance of pairs of results with the same prompt, each prompt counting alike (DIV).

    Args:
        results: uint8 [N, 3, H, W].
        prompts: N texts.
        distance: Of two images [1, 3, H, W].

    Raises:
        UserError: No prompt is drawn twice.
    """
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(place)
    groups = [some for some in places.values() if len(some) > 1]
    require(bool(groups), "no prompt is drawn twice; repeat the lines of prompts.txt")
    means = []
    for some in groups:
        found = [distance(results[i : i + 1], results[j : j + 1]) for i, j in combinations(some, 2)]
        means.append(torch.cat(found).double().mean())
    return float(torch.stack(means).mean())


def _found(name: str, whose: str) -> Path:
    path = find_file({name})
    if path is None:
        folder = weights_folder()
        place = "STEERDIFF_WEIGHTS names no folder" if folder is None else f"it is not in {folder.absolute()}"
        raise UserError(f"the weights of {whose} are absent: {name}; {place}")
    return path


def _recogniser_cosine() -> PairMeasure:
    recogniser = load_recogniser()

    def cosine(left: Tensor, right: Tensor) -> Tensor:
        a, b = (recogniser.features(images.float() / 127.5 - 1).mean((2, 3)) for images in (left, right))
        return functional.cosine_similarity(a, b)

    return PairMeasure(measure=cosine, facts={"name": "recogniser, its last convolution"})

"""Asyrp."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from steerdiff.methods.asyrp import PRESETS

from .asyrp_recipes import ASYRP_RECIPES
from .spec import Claim, Paper

__all__ = ["ASYRP_PAPER"]

_TUNED = PRESETS["emoji64"]
_WORDS: dict[str, dict[str, Any]] = {
    "flat to 3d": {"source_text": "flat", "target_text": "3d"},
    "blue to red": {"source_text": "blue", "target_text": "red"},
    "cat to panda": {"source_text": "cat", "target_text": "panda"},
}
_STYLE = replace(_TUNED, **_WORDS["flat to 3d"])

ASYRP_PAPER = Paper(
    name="asyrp",
    title="Diffusion models already have a semantic latent space",
    authors="Kwon, Jeong and Uh",
    year=2023,
    arxiv="2210.10960",
    method="asyrp",
    tasks=tuple(_WORDS),
    published=replace(
        PRESETS["quick"],
        epochs=1,
        n_images=_TUNED.n_images,
        image_steps=_TUNED.image_steps,
        distance=_TUNED.distance,
        threshold_edit=_TUNED.threshold_edit,
        threshold_boost=_TUNED.threshold_boost,
        curve_images=_TUNED.curve_images,
        curve_steps=_TUNED.curve_steps,
        cosine=_TUNED.cosine,
    ),
    translation="40 moves each way, which the README calls quick, gradient descent at 0.5, batches of one and the "
    "losses stay; one epoch, as the released shifts, on 24 images drawn by the model; the phases are measured by the "
    "embedded CLIP in place of LPIPS, with thresholds chosen for it, and the texts' cosine in sentences",
    tuned=_TUNED,
    by_task=_WORDS,
    seeds=1,
    claims=(
        Claim(
            text="shifting the bottleneck in the predicted image alone edits more than shifting both parts",
            source="section 3.1 and Theorem 1, recalled",
            method="asyrp",
            task="flat to 3d",
            base=_STYLE,
            before={"symmetric": True},
            after={"symmetric": False},
            score="right",
            rises=True,
            cases=64,
        ),
        Claim(
            text="fresh noise near the end makes edits more like true images",
            source="section 3.3 and its figure on quality boosting, recalled",
            method="asyrp",
            task="flat to 3d",
            base=_STYLE,
            before={"t_boost": 0.0},
            after={"t_boost": None},
            score="kid",
            rises=False,
            cases=64,
        ),
        Claim(
            text="the edit grows with the factor on the shift",
            source="section 4.2 and its figure on linearity, recalled",
            method="asyrp",
            task="flat to 3d",
            base=_STYLE,
            before={"degree": 0.5},
            after={"degree": 1.0},
            score="guide",
            rises=True,
            cases=64,
        ),
    ),
    ablations=("asyrp-symmetric", "asyrp-boost", "asyrp-degree", "asyrp-style", "asyrp-colour", "asyrp-object"),
    recipes=ASYRP_RECIPES,
)

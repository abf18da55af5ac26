"""Semantic diffusion guidance."""

from __future__ import annotations

from dataclasses import replace

from steerdiff.methods import SDG
from steerdiff.methods.sdg import PRESETS

from .sdg_recipes import SDG_RECIPES
from .spec import Claim, Paper

__all__ = ["SDG_PAPER"]

_TUNED = PRESETS["emoji64"]

SDG_PAPER = Paper(
    name="sdg",
    title="More control for free! Image synthesis with semantic diffusion guidance",
    authors="Liu, Park, Azadi, Zhang, Chopikyan, Hu, Shi, Rohrbach and Darrell",
    year=2023,
    arxiv="2112.05744",
    method="sdg",
    tasks=("style", "colour", "object", "class"),
    published=SDG(steps=50),
    translation="100 times become 50; text 160 and content 100 of the README's commands stay, although they belong to "
    "CLIP's RN50x16 at 256 pixels, whose place the shipped noisy CLIP takes",
    tuned=_TUNED,
    seeds=1,
    claims=(
        Claim(
            text="text and image together keep more of the reference than the text alone",
            source="section 3.4, recalled",
            method="sdg",
            task="style",
            base=_TUNED,
            before={"image_weight": 0.0},
            after={"image_weight": _TUNED.image_weight},
            score="feature_outside",
            rises=False,
            cases=64,
        ),
        Claim(
            text="text and image together show what the text asks for more often than the image alone",
            source="section 3.4, recalled",
            method="sdg",
            task="style",
            base=_TUNED,
            before={"text_weight": 0.0},
            after={"text_weight": _TUNED.text_weight},
            score="right",
            rises=True,
            cases=64,
        ),
        Claim(
            text="a CLIP tuned on noisy images guides better than one that never saw noise",
            source="section 3.5, recalled",
            method="sdg",
            task="class",
            base=replace(_TUNED, image_weight=0.0),
            before={"noisy_clip": _TUNED.clip},
            after={"noisy_clip": _TUNED.noisy_clip},
            score="right",
            rises=True,
            cases=64,
        ),
    ),
    ablations=("sdg-weights", "sdg-noisy"),
    recipes=SDG_RECIPES,
)

"""DiffusionCLIP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from steerdiff.methods import DiffusionCLIP
from steerdiff.methods.diffusion_clip import PRESETS

from .diffusionclip_recipes import DIFFUSIONCLIP_RECIPES
from .spec import Claim, Paper

__all__ = ["DIFFUSIONCLIP_PAPER"]

_TUNED = PRESETS["emoji64"]
_WORDS: dict[str, dict[str, Any]] = {
    "flat to 3d": {"source_text": "flat", "target_text": "3d"},
    "blue to red": {"source_text": "blue", "target_text": "red"},
    "cat to panda": {"source_text": "cat", "target_text": "panda"},
}
_STYLE, _OBJECT = (replace(_TUNED, **_WORDS[task]) for task in ("flat to 3d", "cat to panda"))

DIFFUSIONCLIP_PAPER = Paper(
    name="diffusionclip",
    title="DiffusionCLIP: Text-guided diffusion models for robust image manipulation",
    authors="Kim, Kwon and Ye",
    year=2022,
    arxiv="2110.02711",
    method="diffusionclip",
    tasks=tuple(_WORDS),
    published=DiffusionCLIP(t0=0.5, n_images=30, image_steps=10),
    translation="t0 = 500 of 1000, 40, 6 and 40 steps, the rate 8e-6 and 5 epochs stay, on 30 images, of which the "
    "README says that they suffice, drawn by the model; no prompt, as the published models know none",
    tuned=_TUNED,
    by_task=_WORDS,
    deterministic=True,
    claims=(
        Claim(
            text="a larger t0 allows larger changes of shape",
            source="section 4.3 and the supplement, Figure on t0",
            method="diffusionclip",
            task="cat to panda",
            base=_OBJECT,
            before={"t0": 0.3},
            after={"t0": 0.6},
            score="right",
            rises=True,
            cases=64,
        ),
        Claim(
            text="a larger t0 keeps less of the image",
            source="section 4.3 and the supplement, Figure on t0",
            method="diffusionclip",
            task="flat to 3d",
            base=_STYLE,
            before={"t0": 0.3},
            after={"t0": 0.7},
            score="outside",
            rises=True,
            cases=64,
        ),
        Claim(
            text="the degree of change follows the share of the tuned model in the noise",
            source="section 3.4, Figure on continuous transition",
            method="diffusionclip",
            task="flat to 3d",
            base=_STYLE,
            before={"degree": 0.5},
            after={"degree": 1.0},
            score="guide",
            rises=True,
            cases=64,
        ),
    ),
    ablations=(
        "diffusionclip-t0",
        "diffusionclip-t0-style",
        "diffusionclip-degree",
        "diffusionclip-variant",
        "diffusionclip-until",
        "diffusionclip-style",
        "diffusionclip-colour",
        "diffusionclip-object",
    ),
    recipes=DIFFUSIONCLIP_RECIPES,
)

"""Negative-prompt inversion."""

from __future__ import annotations

from dataclasses import replace

from steerdiff.methods import NegativePromptInversion
from steerdiff.methods.negative_prompt import PRESETS
from steerdiff.methods.prompt_to_prompt import PRESETS as EDITING

from .inversion_recipes import NEGATIVE_RECIPES
from .spec import Claim, Paper

__all__ = ["NEGPROMPT_PAPER"]

_TUNED = PRESETS["emoji64"]

NEGPROMPT_PAPER = Paper(
    name="negprompt",
    title="Negative-prompt inversion: Fast image inversion for editing with text-guided diffusion models",
    authors="Miyake, Iohara, Saito and Tanaka",
    year=2023,
    arxiv="2305.16807",
    method="negprompt",
    tasks=("reconstruct",),
    published=NegativePromptInversion(guidance=3.0),
    translation="50 steps and the explicit way up stay; guidance, which cancels in a reconstruction, becomes 3",
    tuned=_TUNED,
    deterministic=True,
    claims=(
        Claim(
            text="with the image's prompt for a negative one, an edit keeps more of the image than after plain inversion",
            source="section 4, edits by Prompt-to-Prompt, recalled",
            method="p2p",
            task="style",
            base=replace(EDITING["emoji64"], guidance=_TUNED.guidance),
            before={"inversion": "ddim"},
            after={"inversion": "negative-prompt"},
            score="feature_outside",
            rises=False,
            cases=64,
        ),
    ),
    ablations=("negprompt-edit", "negprompt-steps"),
    recipes=NEGATIVE_RECIPES,
)

"""Null-text inversion."""

from __future__ import annotations

from dataclasses import replace

from steerdiff.methods import NullTextInversion
from steerdiff.methods.null_text import PRESETS
from steerdiff.methods.prompt_to_prompt import PRESETS as EDITING

from .inversion_recipes import NULL_RECIPES
from .spec import Claim, Paper

__all__ = ["NULLTEXT_PAPER"]

_TUNED = PRESETS["emoji64"]
_GUIDED = replace(
    EDITING["emoji64"],
    cross_replace_steps=0.0,
    self_replace_steps=0.0,
    guidance=_TUNED.guidance,
    learning_rate=_TUNED.learning_rate,
)

NULLTEXT_PAPER = Paper(
    name="nulltext",
    title="Null-text inversion for editing real images using guided diffusion models",
    authors="Mokady, Hertz, Aberman, Pritch and Cohen-Or",
    year=2023,
    arxiv="2211.09794",
    method="nulltext",
    tasks=("reconstruct",),
    published=NullTextInversion(steps=25, guidance=3.0, fixed_point=1),
    translation="50 steps become 25, for the time that tuning takes, and guidance 7.5 becomes 3, the model's own; the "
    "code's way up, ten updates a step, rates and bounds stay, although they belong to 77 text states, of which this "
    "model's empty prompt has two",
    tuned=_TUNED,
    deterministic=True,
    claims=(
        Claim(
            text="tuned text states reconstruct an image under guidance better than plain DDIM inversion",
            source="section 3.2 and its figure on the ablation, recalled",
            method="p2p",
            task="reconstruct",
            base=_GUIDED,
            before={"inversion": "ddim"},
            after={"inversion": "null-text"},
            score="inside",
            rises=False,
            cases=64,
        ),
        Claim(
            text="more updates of each step reconstruct better",
            source="section 4, PSNR against the iterations, recalled",
            method="p2p",
            task="reconstruct",
            base=replace(_GUIDED, inversion="null-text"),
            before={"inner_steps": 3},
            after={"inner_steps": 10},
            score="inside",
            rises=False,
            cases=64,
        ),
    ),
    ablations=("nulltext-reconstruct",),
    recipes=NULL_RECIPES,
)

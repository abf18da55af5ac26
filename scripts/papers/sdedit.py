"""SDEdit."""

from __future__ import annotations

from steerdiff.methods import SDEdit

from .sdedit_recipes import SDEDIT_RECIPES
from .spec import Claim, Paper

__all__ = ["SDEDIT_PAPER"]

_BASE = SDEdit(repeats=1, steps=100, guidance=1.0)

SDEDIT_PAPER = Paper(
    name="sdedit",
    title="SDEdit: Guided image synthesis and editing with stochastic differential equations",
    authors="Meng, He, Song, Song, Wu, Zhu and Ermon",
    year=2022,
    arxiv="2108.01073",
    method="sdedit",
    tasks=("object", "style", "colour", "add", "remove", "hole", "low resolution", "strokes"),
    published=SDEdit(steps=100, guidance=1.0),
    translation="1000 times become 100; the caption without guidance",
    tuned=SDEdit(t0=0.5, repeats=2, steps=50, clip="clip", guidance=1.0),
    claims=(
        Claim(
            text="a larger t0 is less faithful to the guide",
            source="section 3, Figure 3",
            method="sdedit",
            task="strokes",
            base=_BASE,
            before={"t0": 0.3},
            after={"t0": 0.7},
            score="guide",
            rises=True,
        ),
        Claim(
            text="a larger t0 is more realistic",
            source="section 3, Figure 3",
            method="sdedit",
            task="strokes",
            base=_BASE,
            before={"t0": 0.2},
            after={"t0": 0.6},
            score="kid",
            rises=False,
        ),
    ),
    ablations=("sdedit-t0",),
    recipes=SDEDIT_RECIPES,
)

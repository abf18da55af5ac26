"""RePaint."""

from __future__ import annotations

from steerdiff.methods import RePaint

from .repaint_recipes import REPAINT_RECIPES
from .spec import Claim, Paper

__all__ = ["REPAINT_PAPER"]

_BASE = RePaint(steps=50, jump_length=5, jump_n_sample=4, guidance=1.0)

REPAINT_PAPER = Paper(
    name="repaint",
    title="RePaint: Inpainting using denoising diffusion probabilistic models",
    authors="Lugmayr, Danelljan, Romero, Yu, Timofte and Van Gool",
    year=2022,
    arxiv="2201.09865",
    method="repaint",
    tasks=("object", "add", "remove", "hole"),
    published=RePaint(steps=50, guidance=1.0),
    translation="250 times become 50, j = 10 and r = 10 stay; the caption without guidance",
    tuned=RePaint(steps=50, jump_length=10, jump_n_sample=4, guidance=1.0),
    claims=(
        Claim(
            text="resampling fills holes better than plain conditioning",
            source="section 4.2, Figure 3",
            method="repaint",
            task="hole",
            base=_BASE,
            before={"jump_n_sample": 1},
            after={"jump_n_sample": 4},
            score="feature_inside",
            rises=False,
        ),
        Claim(
            text="resampling fills holes better than slowing the diffusion down, at as many network calls",
            source="section 5.4, Table 2",
            method="repaint",
            task="hole",
            base=_BASE,
            before={"steps": 185, "jump_n_sample": 1},
            after={"steps": 50, "jump_n_sample": 4},
            score="feature_inside",
            rises=False,
        ),
        Claim(
            text="long jumps fill holes better than short ones",
            source="section 5.4, Table 3",
            method="repaint",
            task="hole",
            base=_BASE,
            before={"jump_length": 1},
            after={"jump_length": 10},
            score="feature_inside",
            rises=False,
        ),
    ),
    ablations=("repaint-resampling", "repaint-jump"),
    recipes=REPAINT_RECIPES,
)

"""Classifier-free guidance."""

from __future__ import annotations

from steerdiff.scripts.evaluation.contestants import TextToImage

from .classifier_free_recipes import CLASSIFIER_FREE_RECIPES
from .spec import Claim, Paper

__all__ = ["CLASSIFIER_FREE"]

CLASSIFIER_FREE = Paper(
    name="classifier-free",
    title="Classifier-free diffusion guidance",
    authors="Ho and Salimans",
    year=2022,
    arxiv="2207.12598",
    claims=(
        Claim(
            text="guidance makes samples follow their condition more often",
            source="section 4, Inception score",
            method="sample",
            task="draw",
            base=TextToImage(steps=12),
            before={"guidance": 1.0},
            after={"guidance": 3.0},
            score="right",
            rises=True,
            cases=64,
        ),
        Claim(
            text="stronger guidance lowers the variety of samples",
            source="section 4, Figure 1",
            method="sample",
            task="draw",
            base=TextToImage(steps=12),
            before={"guidance": 1.0},
            after={"guidance": 6.0},
            score="diversity",
            rises=False,
            cases=64,
        ),
        Claim(
            text="much guidance makes the distribution of samples worse",
            source="section 4, FID",
            method="sample",
            task="draw",
            base=TextToImage(steps=12),
            before={"guidance": 1.5},
            after={"guidance": 8.0},
            score="kid",
            rises=True,
            cases=64,
        ),
    ),
    ablations=("guidance-scale",),
    recipes=CLASSIFIER_FREE_RECIPES,
)

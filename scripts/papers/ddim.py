"""DDIM: deterministic sampling and inversion."""

from __future__ import annotations

from steerdiff.methods import DDIMInversion
from steerdiff.samplers import DDIM
from steerdiff.scripts.evaluation.contestants import TextToImage

from .ddim_recipes import DDIM_RECIPES
from .spec import Claim, Paper

__all__ = ["DDIM_PAPER"]

DDIM_PAPER = Paper(
    name="ddim",
    title="Denoising diffusion implicit models",
    authors="Song, Meng and Ermon",
    year=2021,
    arxiv="2010.02502",
    method="invert",
    tasks=("object", "style", "colour", "move", "reconstruct"),
    published=DDIMInversion(steps=100),
    translation="none: 100 steps of a stride, no guidance",
    tuned=DDIMInversion(steps=25, fixed_point=3),
    deterministic=True,
    claims=(
        Claim(
            text="with few steps, eta = 0 gives better samples than eta = 1",
            source="Table 1",
            method="sample",
            task="draw",
            base=TextToImage(steps=10, solver=DDIM(), spacing="respaced", guidance=1.0),
            before={"solver.eta": 0.0},
            after={"solver.eta": 1.0},
            score="kid",
            rises=True,
            cases=64,
        ),
        Claim(
            text="more steps give better samples",
            source="Table 1",
            method="sample",
            task="draw",
            base=TextToImage(solver=DDIM(), spacing="respaced", guidance=1.0),
            before={"steps": 5},
            after={"steps": 50},
            score="kid",
            rises=False,
            cases=64,
        ),
        Claim(
            text="more steps reconstruct an inverted image better",
            source="Table 2",
            method="invert",
            task="reconstruct",
            base=DDIMInversion(),
            before={"steps": 10},
            after={"steps": 100},
            score="inside",
            rises=False,
        ),
    ),
    ablations=("ddim-steps", "inversion-steps"),
    recipes=DDIM_RECIPES,
)

"""Classifier guidance."""

from __future__ import annotations

from steerdiff.methods import ClassifierGuided
from steerdiff.samplers import DDIM, DDPM

from .adm_recipes import ADM_RECIPES
from .spec import Claim, Paper

__all__ = ["ADM"]

_BASE = ClassifierGuided(steps="ddim25", solver=DDIM())

ADM = Paper(
    name="adm",
    title="Diffusion models beat GANs on image synthesis",
    authors="Dhariwal and Nichol",
    year=2021,
    arxiv="2105.05233",
    method="classifier",
    tasks=("class",),
    published=ClassifierGuided(scale=10.0, steps=50),
    translation="the scale of the published model without labels, since this model has none; 250 times become 50",
    tuned=ClassifierGuided(scale=16.0, steps="ddim25", solver=DDIM()),
    claims=(
        Claim(
            text="a larger scale makes samples of a model without labels show their class more often",
            source="section 4.3, Figure 3: 1 against 10",
            method="classifier",
            task="class",
            base=_BASE,
            before={"scale": 1.0},
            after={"scale": 16.0},
            score="right",
            rises=True,
            cases=64,
        ),
        Claim(
            text="a larger scale lowers the variety of samples of a class",
            source="section 4.3, Figure 4",
            method="classifier",
            task="class",
            base=_BASE,
            before={"scale": 1.0},
            after={"scale": 16.0},
            score="diversity",
            rises=False,
            cases=64,
        ),
        Claim(
            text="guidance brings samples of a model without labels closer to the data",
            source="section 4.3, Table 4",
            method="classifier",
            task="class",
            base=_BASE,
            before={"scale": 0.0},
            after={"scale": 16.0},
            score="kid",
            rises=False,
            cases=64,
        ),
        Claim(
            text="25 guided steps of DDIM are closer to the data than ten times as many without guidance",
            source="section 4.3, Table 5; here against twice as many",
            method="classifier",
            task="class",
            base=ClassifierGuided(),
            before={"scale": 0.0, "steps": "ddim50", "solver": DDPM()},
            after={"scale": 16.0, "steps": "ddim25", "solver": DDIM()},
            score="kid",
            rises=False,
            cases=64,
        ),
    ),
    ablations=("adm-scale", "adm-forms", "adm-schedule"),
    recipes=ADM_RECIPES,
)

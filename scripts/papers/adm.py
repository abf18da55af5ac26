"""Classifier guidance."""

from __future__ import annotations

from .adm_recipes import ADM_RECIPES
from .spec import Paper

__all__ = ["ADM"]

ADM = Paper(
    name="adm",
    title="Diffusion models beat GANs on image synthesis",
    authors="Dhariwal and Nichol",
    year=2021,
    arxiv="2105.05233",
    recipes=ADM_RECIPES,
)

"""Classifier guidance."""

from __future__ import annotations

from .spec import Paper

__all__ = ["ADM"]

ADM = Paper(
    name="adm",
    title="Diffusion models beat GANs on image synthesis",
    authors="Dhariwal and Nichol",
    year=2021,
    arxiv="2105.05233",
)

"""ILVR."""

from __future__ import annotations

from steerdiff.methods import ILVR

from .ilvr_recipes import ILVR_RECIPES
from .spec import Claim, Paper

__all__ = ["ILVR_PAPER"]

_BASE = ILVR(steps=50, downsample=8, range_t=0, guidance=1.0)

ILVR_PAPER = Paper(
    name="ilvr",
    title="ILVR: Conditioning method for denoising diffusion probabilistic models",
    authors="Choi, Kim, Jeong, Gwon and Yoon",
    year=2021,
    arxiv="2108.02938",
    method="ilvr",
    tasks=("style", "low resolution", "strokes"),
    published=ILVR(downsample=8, guidance=1.0),
    translation="N = 32 of 256 pixels becomes 8 of 64; the caption without guidance",
    tuned=ILVR(downsample=8, steps=50, range_t=10, guidance=1.0),
    claims=(
        Claim(
            text="a larger factor N gives more variety",
            source="section 4.1, Figure 4",
            method="ilvr",
            task="low resolution",
            base=_BASE,
            before={"downsample": 4},
            after={"downsample": 16},
            score="diversity",
            rises=True,
        ),
        Claim(
            text="a larger factor N keeps less of the reference",
            source="section 4.1, Figure 4",
            method="ilvr",
            task="low resolution",
            base=_BASE,
            before={"downsample": 4},
            after={"downsample": 16},
            score="guide",
            rises=True,
        ),
        Claim(
            text="a narrower range of conditioned steps gives more variety",
            source="section 4.1, Figure 6",
            method="ilvr",
            task="low resolution",
            base=_BASE,
            before={"range_t": 0},
            after={"range_t": 30},
            score="diversity",
            rises=True,
        ),
    ),
    ablations=("ilvr-factor", "ilvr-range"),
    recipes=ILVR_RECIPES,
)

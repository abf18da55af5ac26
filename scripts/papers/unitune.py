"""UniTune."""

from __future__ import annotations

from dataclasses import replace

from steerdiff.methods import UniTune
from steerdiff.methods.unitune import PRESETS

from .spec import Claim, Paper
from .unitune_recipes import UNITUNE_RECIPES

__all__ = ["UNITUNE_PAPER"]

#: The preset with less than half of its updates' work, for each case is tuned alone.
_TUNED = replace(PRESETS["emoji64"], tune_steps=80, learning_rate=8e-4, batch_size=2, steps=12)
_CASES = 64

UNITUNE_PAPER = Paper(
    name="unitune",
    title="UniTune: Text-driven image editing by fine tuning a diffusion model on a single image",
    authors="Valevski, Kalman, Molad, Segalis, Matias and Leviathan",
    year=2023,
    arxiv="2210.09477",
    method="unitune",
    tasks=("object", "style", "colour"),
    published=UniTune(tune_steps=64, steps=50),
    translation="batches of four, 1e-4, guidance 16 and t0 0.9 stay; 64 updates, which the paper calls enough to give "
    "the image back, in place of 128, and 50 times in place of 256, for time",
    tuned=_TUNED,
    seeds=1,
    claims=(
        Claim(
            text="a network that is tuned to the image keeps more of what is not edited than SDEdit",
            source="section 5 on its ablation, recalled from a summary",
            method="unitune",
            task="object",
            base=_TUNED,
            before={"tune_steps": 0},
            after={"tune_steps": _TUNED.tune_steps},
            score="feature_outside",
            rises=False,
            cases=_CASES,
        ),
        Claim(
            text="the stronger the guidance, the less is kept of the image",
            source="section 3 on guidance, recalled from a summary",
            method="unitune",
            task="object",
            base=_TUNED,
            before={"guidance": 1.0},
            after={"guidance": 3.0},
            score="guide",
            rises=True,
            cases=_CASES,
        ),
        Claim(
            text="without guidance the tuned network gives the image back, and guidance brings in the text",
            source="section 3 on guidance, recalled from a summary",
            method="unitune",
            task="object",
            base=_TUNED,
            before={"guidance": 1.0},
            after={"guidance": 3.0},
            score="right",
            rises=True,
            cases=_CASES,
        ),
        Claim(
            text="from pure noise the layout of the image is lost",
            source="section 5 on its ablation, recalled from a summary",
            method="unitune",
            task="object",
            base=_TUNED,
            before={"t0": 0.8},
            after={"t0": 1.0},
            score="guide",
            rises=True,
            cases=_CASES,
        ),
    ),
    ablations=("unitune-guidance", "unitune-t0", "unitune-updates", "unitune-ema"),
    recipes=UNITUNE_RECIPES,
)

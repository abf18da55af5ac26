"""DiffEdit."""

from __future__ import annotations

from typing import Any

from steerdiff.methods import DiffEdit
from steerdiff.methods.diffedit import PRESETS
from steerdiff.scripts.evaluation.contestants import InferredMask

from .diffedit_recipes import DIFFEDIT_RECIPES
from .spec import Claim, Paper

__all__ = ["DIFFEDIT_PAPER"]

_TUNED = PRESETS["emoji64"]
#: An edit of an object that no task gives a mask for, as the paper's swaps of a class.
_SWAP: dict[str, Any] = {"method": "diffedit", "task": "cat to panda", "base": _TUNED, "cases": 64}
_MASK: dict[str, Any] = {"method": "diffedit-mask", "task": "object", "base": InferredMask(), "cases": 64}

DIFFEDIT_PAPER = Paper(
    name="diffedit",
    title="DiffEdit: Diffusion-based semantic image editing with mask guidance",
    authors="Couairon, Verbeek, Schwenk and Cord",
    year=2023,
    arxiv="2210.11427",
    method="diffedit",
    tasks=("object", "style", "colour", "cat to panda"),
    published=DiffEdit(guidance=3.0),
    translation="50 steps, r = 0.9, ten noises at half strength, threshold 0.5 and the ports' clamp at 3 times the "
    "mean stay; guidance 7.5 becomes 3, the model's own. For a background, which is most of a picture and never 1.5 "
    "times the mean, the clamp is 1.5. Where a task gives a box, that is the mask and none is inferred",
    tuned=_TUNED,
    by_task={"colour": {"clamp": _TUNED.clamp}},
    claims=(
        Claim(
            text="the mask lies better if the target is compared with a caption of the image than with no text",
            source="section 4, on prompts for Imagen, recalled",
            **_MASK,
            before={"reference": "empty"},
            after={"reference": "caption"},
            score="iou",
            rises=True,
        ),
        Claim(
            text="the mask lies better if it is averaged over ten noises than from one",
            source="section 3.2, step 1, recalled",
            **_MASK,
            before={"finder.noises": 1},
            after={"finder.noises": 10},
            score="iou",
            rises=True,
        ),
        Claim(
            text="the further an image is encoded, the more the result shows what the text says",
            source="section 4 and its curves over the ratio r, recalled",
            **_SWAP,
            before={"t0": 0.5},
            after={"t0": 0.9},
            score="right",
            rises=True,
        ),
        Claim(
            text="the further an image is encoded, the further the result is from it",
            source="section 4 and its curves over the ratio r, recalled",
            **_SWAP,
            before={"t0": 0.5},
            after={"t0": 0.9},
            score="guide",
            rises=True,
        ),
        Claim(
            text="a threshold of 0.25, which gives larger masks, keeps less of the image than 0.5",
            source="section 4, the ablation of the threshold, recalled",
            **_SWAP,
            before={"threshold": 0.25},
            after={"threshold": 0.5},
            score="feature_outside",
            rises=False,
        ),
        Claim(
            text="a threshold of 0.75, which gives smaller masks, holds the edit back",
            source="section 4, the ablation of the threshold, recalled",
            **_SWAP,
            before={"threshold": 0.5},
            after={"threshold": 0.75},
            score="feature_inside",
            rises=True,
        ),
    ),
    ablations=(
        "diffedit-ratio",
        "diffedit-sdedit",
        "diffedit-mask",
        "diffedit-mask-style",
        "diffedit-mask-colour",
        "diffedit-reference",
        "diffedit-noises",
        "diffedit-threshold",
        "diffedit-encoding",
    ),
    recipes=DIFFEDIT_RECIPES,
)

"""Prompt-to-Prompt on photographs, inverted with and without tuning, and with and without attention control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from steerdiff.methods.prompt_to_prompt import PRESETS

from .recipe import Data, Recipe, Run, Toy, Weights

__all__ = ["FREE_WINDOWS", "P2P_RECIPES"]

#: Windows that hold no step: no attention control.
FREE_WINDOWS: Mapping[str, Any] = {"cross_replace_steps": 0.0, "self_replace_steps": 0.0}

_INVERTED = replace(PRESETS["null-text"], cross_replace_steps=0.8)
_SMALL = replace(PRESETS["emoji64"], steps=4, fixed_point=1)

_PHOTOGRAPHS = Recipe(
    name="photographs",
    title="photographs edited by their captions, with the attention of the caption in charge or not",
    weights=Weights(preset="sd-1.4", remark="the model of the notebooks"),
    data=Data(
        name="photographs with captions, and captions of what they should show instead",
        images="photographs, one for each result",
        preparation="the centre square, resized to 512 with ADM's filters (the notebook: PIL's default filter)",
        prompts=True,
        targets=True,
    ),
    runs=(
        Run(label="null-text, windows 0.8 and 0.5", settings=_INVERTED),
        Run(label="null-text, no attention control", settings=replace(_INVERTED, **FREE_WINDOWS)),
        Run(label="null-text, windows 0.8 and 0", settings=replace(_INVERTED, self_replace_steps=0.0)),
        Run(label="DDIM inversion, windows 0.8 and 0.5", settings=replace(_INVERTED, inversion="ddim")),
        Run(label="negative prompt, windows 0.8 and 0.5", settings=replace(_INVERTED, inversion="negative-prompt")),
    ),
    metrics=("lpips", "rms"),
    protocol="pictures only: neither the paper nor its repository measures edits",
    missing="There is no published number. Reported instead: LPIPS and root mean square difference from the "
    "photograph, which attention control and a better inversion should lower.",
    remarks=(
        "The settings are those of the notebook for real images, its faults included (`official`): 50 steps, guidance "
        "7.5, self-attention on grids of at most 32 x 32, windows 0.8 and 0.5 as for its swap of a word. It chooses "
        "windows, blended words and factors anew for each picture, which one row of settings cannot.",
        "The notebooks draw most of their pictures, squirrel to lion among them (0.8 and 0.4, seed 8888): `steerdiff "
        'edit p2p --weights sd-v1-4.ckpt --prompt "a photo of a squirrel eating a burger" --target "a photo of a lion '
        "eating a burger\" --seed 8888`. The noise of a seed is another here than on the authors' device.",
        "The paper edits Imagen's 64-pixel network, whose weights are not public, and has no self-attention window.",
    ),
    toy=Toy(
        runs=(
            Run(label="with control", settings=_SMALL),
            Run(label="without", settings=replace(_SMALL, **FREE_WINDOWS)),
        ),
        task="style",
        n=2,
        remark="inverted without tuning",
    ),
)

P2P_RECIPES = (_PHOTOGRAPHS,)

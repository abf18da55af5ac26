"""Photographs inverted and sampled back under guidance, with the empty prompt tuned, replaced or left alone."""

from __future__ import annotations

from dataclasses import replace

from steerdiff.methods.negative_prompt import PRESETS as NEGATIVE
from steerdiff.methods.null_text import PRESETS as NULL

from .recipe import Data, Recipe, Run, Toy, Weights

__all__ = ["NEGATIVE_RECIPES", "NULL_RECIPES"]

_OFFICIAL = NULL["official"]
_WEIGHTS = Weights(preset="sd-1.4", remark="the model of the notebook")
_DATA = Data(
    name="photographs with captions, such as 100 of COCO's validation part",
    images="photographs, one for each result",
    preparation="the centre square, resized to 512 with ADM's filters (the notebook: PIL's default filter)",
    prompts=True,
)
_PSNR = "The paper gives the peak signal-to-noise ratio, which is -10 times the decimal logarithm of the squared error."

_NULL = Recipe(
    name="reconstruction",
    title="error of photographs that are inverted and sampled back with guidance 7.5, against the updates of each step",
    weights=_WEIGHTS,
    data=_DATA,
    runs=(
        Run(label="N = 10", settings=_OFFICIAL),
        Run(label="N = 0: DDIM inversion, guided", settings=replace(_OFFICIAL, inner_steps=0)),
        Run(label="N = 1", settings=replace(_OFFICIAL, inner_steps=1)),
        Run(label="N = 3", settings=replace(_OFFICIAL, inner_steps=3)),
        Run(label="guidance 1: DDIM inversion", settings=replace(_OFFICIAL, guidance=1.0)),
    ),
    metrics=("mse", "lpips", "rms"),
    protocol="peak signal-to-noise ratio on 100 photographs of COCO with captions against the iterations, beside that "
    "of the autoencoder alone, as we recall; and votes of users on edits",
    missing="No number could be verified. Reported instead: the squared error and LPIPS, for which N = 10 should come "
    "close to the last row, and N = 0 should not.",
    remarks=(
        _PSNR,
        "`official` reads eps of the old state at the new level on the way up, as the code does; `paper` does as the "
        "formula says. Times are 981 to 1, and the image counts as the level of time 0.",
        "Run it in float32: with TF32 or half precision users report that the tuning does not converge.",
        "About a minute a photograph on an A100, as the paper says; memory is that of one backward pass "
        "(`checkpoint=True` lowers it).",
    ),
    toy=Toy(
        runs=(
            Run(label="N = 2", settings=replace(NULL["emoji64"], steps=4, inner_steps=2)),
            Run(label="N = 0", settings=replace(NULL["emoji64"], steps=4, inner_steps=0)),
        ),
        task="reconstruct",
        n=2,
    ),
)

_NEGATIVE = Recipe(
    name="reconstruction",
    title="error of photographs that are inverted and sampled back with their own caption for a negative prompt",
    weights=_WEIGHTS,
    data=_DATA,
    runs=(
        Run(label="as null-text inversion's code inverts", settings=NEGATIVE["official"]),
        Run(label="explicit steps", settings=NEGATIVE["paper"]),
        Run(label="3 iterations of implicit steps", settings=replace(NEGATIVE["paper"], fixed_point=3)),
    ),
    metrics=("mse", "lpips", "rms"),
    protocol="peak signal-to-noise ratio, LPIPS and structural similarity of reconstructed photographs of COCO, beside "
    "DDIM inversion and null-text inversion, and the seconds of each, as we recall",
    missing="No number could be verified. Reported instead: the squared error and LPIPS, which should come close to "
    "those of `steerdiff reproduce nulltext` on the same photographs, in a fraction of its time.",
    remarks=(
        _PSNR,
        "Guidance cancels in a reconstruction, for both branches are the same: it is DDIM inversion without guidance.",
    ),
    toy=Toy(
        runs=tuple(
            Run(label=f"{n} iterations", settings=replace(NEGATIVE["emoji64"], steps=5, fixed_point=n)) for n in (1, 3)
        ),
        task="reconstruct",
        n=2,
    ),
)

NULL_RECIPES = (_NULL,)
NEGATIVE_RECIPES = (_NEGATIVE,)

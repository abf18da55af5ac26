"""DiffEdit on photographs with two captions."""

from __future__ import annotations

from dataclasses import replace

from steerdiff.methods.diffedit import PRESETS

from .recipe import Data, Recipe, Run, Toy, Weights

__all__ = ["DIFFEDIT_RECIPES"]

_PUBLISHED = PRESETS["published"]
_RATIOS = (0.5, 0.6, 0.7, 0.8)
_SMALL = replace(PRESETS["emoji64"], steps=6, noises=1)

_COCO = Recipe(
    name="coco",
    title="photographs changed from one caption to another, against the ratio that they are encoded to",
    weights=Weights(preset="sd-1.4", remark="the paper says Stable Diffusion at 512 x 512, not which version"),
    data=Data(
        name="COCO photographs with their captions, and captions of similar photographs from BISON",
        images="photographs, one for each result",
        preparation="the centre square, resized to 512 with ADM's filters",
        prompts=True,
        targets=True,
    ),
    runs=(
        Run(label="r = 0.9", settings=_PUBLISHED),
        *(Run(label=f"r = {ratio}", settings=replace(_PUBLISHED, t0=ratio)) for ratio in _RATIOS),
        *(
            Run(label=f"r = 0.9, threshold {threshold}", settings=replace(_PUBLISHED, threshold=threshold))
            for threshold in (0.25, 0.75)
        ),
        Run(label="as diffusers' port", settings=PRESETS["diffusers"]),
    ),
    metrics=("lpips", "rms"),
    protocol="curves of CLIP score (or on ImageNet CSFID) against LPIPS to the input, over the ratio r",
    missing="The curves are not printed as numbers, but for one point on ImageNet: LPIPS 30.5 (times 100) and CSFID "
    "23.6 at r = 0.8, where mixing predicted images instead of states gives 30.5 and 26.4. Reported instead: LPIPS and "
    "root mean square difference from the photograph, which should rise with r and fall with the threshold.",
    remarks=(
        "The clamp at 3 times the mean is the ports'; how the paper removes extreme values it does not say.",
        "The caption as reference is the paper's variant for small changes of text; with no text as the reference, as "
        "on ImageNet, `steerdiff edit diffedit` with `--prompt` alone.",
        "The swaps of a class on ImageNet need a latent model told labels (preset `imagenet`, guidance 5) and two "
        "labels for each picture, for which a folder of data has no place: give `Model.condition(y=...)` in Python.",
        "A photograph whose two captions give an empty mask is returned as it is, with a warning.",
    ),
    toy=Toy(
        runs=(
            Run(label="r = 0.8", settings=_SMALL),
            Run(label="r = 0.5", settings=replace(_SMALL, t0=0.5)),
        ),
        task="style",
        n=2,
    ),
)

DIFFEDIT_RECIPES = (_COCO,)

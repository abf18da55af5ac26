"""Blended Diffusion on natural images: a text for a masked part, with the ImageNet model and OpenAI's CLIP."""

from __future__ import annotations

from dataclasses import replace

from steerdiff.methods import BlendedDiffusion
from steerdiff.methods.blended_diffusion import PRESETS

from .recipe import Data, Recipe, Run, Toy, Weights

__all__ = ["BLENDED_RECIPES"]

_CLIP = "ViT-B-16.pt"
_OFFICIAL = BlendedDiffusion(clip=_CLIP, shift_axes="vertical", background_level="t", ranking="official", candidates=32)
_TOY = replace(PRESETS["emoji64"], steps=6, skip_timesteps=1, views=2, guidance=0.0)

BLENDED_RECIPES = (
    Recipe(
        name="imagenet",
        title="parts of photographs changed by a text",
        weights=Weights(preset="adm-256-uncond"),
        data=Data(
            name="photographs with a mask and a text each",
            images="photographs",
            masks={"drawn": "black where the text goes; the official masks mean the opposite"},
            prompts=True,
        ),
        runs=(
            Run(label="official command", settings=_OFFICIAL, masks="drawn"),
            Run(label="as in the paper", settings=replace(PRESETS["paper"], clip=_CLIP), masks="drawn"),
            Run(label="Algorithm 1", settings=replace(PRESETS["algorithm1"], clip=_CLIP), masks="drawn"),
            Run(label="without augmentations", settings=replace(_OFFICIAL, views=1), masks="drawn"),
        ),
        metrics=("kept", "lpips"),
        protocol="a study in which users rate realism, background and fit to the text against PaintByWord++ and local "
        "CLIP-guided diffusion, and pictures",
        missing="No number could be verified. Reported instead: `kept`, which must be 0, and LPIPS to the photograph.",
        remarks=(
            f"`clip` is OpenAI's ViT-B/16, the file {_CLIP}; Algorithm 1 needs the trunk of LPIPS (VGG).",
            "The official script squeezes photographs to a square; crop them before if that matters.",
            "The official command draws 32 candidates, 4 at a time that share their background noise; its README "
            "advises 64 or more. Here each candidate has a noise of its own.",
        ),
        toy=Toy(
            runs=(
                Run(label="blending", settings=_TOY, masks="drawn"),
                Run(
                    label="Algorithm 1",
                    settings=replace(
                        _TOY, blends=False, mse_scale=100.0, perceptual_scale=10.0, distance="emoji64-clip"
                    ),
                    masks="drawn",
                ),
                Run(
                    label="official options",
                    settings=replace(
                        _TOY, shift_axes="vertical", background_level="t", ranking="official", candidates=2
                    ),
                    masks="drawn",
                ),
            ),
            task="object",
            n=2,
            remark="the shipped CLIP takes the place of the ViT-B/16, and its features that of LPIPS",
        ),
    ),
)

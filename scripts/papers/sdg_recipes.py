"""Semantic diffusion guidance on faces and on LSUN, by text, by image and by both."""

from __future__ import annotations

from dataclasses import replace

from steerdiff.methods import SDG

from .recipe import Data, Recipe, Run, Toy, Weights

__all__ = ["SDG_RECIPES"]

_CLIP = "RN50x16.pt"


def _runs(noisy_clip: str) -> tuple[Run, ...]:
    """The commands of the README, language first, with the noisy CLIP of the data set."""
    both = SDG(clip=_CLIP, noisy_clip=noisy_clip)
    by_image = replace(both, text_weight=0.0)
    return (
        Run(label="language: text 160", settings=replace(both, image_weight=0.0)),
        Run(label="content: image 100", settings=by_image),
        Run(label="style: image 100", settings=replace(by_image, image_loss="style", official=True)),
        Run(label="both: text 160, content 100", settings=both),
    )


_TOY_RUNS = (
    Run(label="text", settings=SDG(steps=6, text_weight=100.0, image_weight=0.0)),
    Run(label="structure", settings=SDG(steps=6, text_weight=0.0, image_loss="structure")),
    Run(label="style, as in the code", settings=SDG(steps=6, image_weight=1e-4, image_loss="style", official=True)),
)


def _recipe(name: str, what: str, weights: Weights, remarks: tuple[str, ...] = ()) -> Recipe:
    noisy_clip = f"noisy-clip-{name}.safetensors"
    return Recipe(
        name=name,
        title=f"{what} that follow a text, a reference image, or both",
        weights=weights,
        data=Data(
            name=f"{what} at 256 pixels",
            images="references, one for each result (the runs by text do not look at them)",
            prompts=True,
            reference=f"{what} of the training set, for FID (optional)",
        ),
        runs=_runs(noisy_clip),
        metrics=("lpips", "fid"),
        protocol="FID against the training set, LPIPS between samples of one condition (variety), how often another "
        "CLIP retrieves the text or the reference of a sample, and votes of users against ILVR and StyleGAN with CLIP",
        missing="No number could be verified. Reported instead: LPIPS to the reference, which image guidance should "
        "lower, and FID where there is a reference set.",
        remarks=(
            f"`clip` is OpenAI's RN50x16, the file {_CLIP}; `noisy_clip` is tuned from it on the same images by "
            f"`steerdiff train noisy-clip`, in the file {noisy_clip}. The authors have one for each data set, in files "
            "of their own code, which this library does not read.",
            "Weights are those of the README's commands, which says that they need tuning for each prompt.",
            "The authors run the guidance in half precision, which takes most digits from the Gram matrices; here they "
            "are float32.",
            *remarks,
        ),
        toy=Toy(runs=_TOY_RUNS, task="style", remark="the shipped noisy CLIP takes the place of the RN50x16"),
    )


SDG_RECIPES = (
    _recipe(
        "ffhq",
        "faces",
        Weights(preset="ilvr-ffhq", remark="the model that the authors link, which is ILVR's"),
    ),
    _recipe("bedroom", "bedrooms (LSUN)", Weights(preset="adm-lsun-bedroom")),
    _recipe("cat", "cats (LSUN)", Weights(preset="adm-lsun-cat")),
    _recipe("horse", "horses (LSUN)", Weights(preset="adm-lsun-horse")),
)

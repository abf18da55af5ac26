"""DiffusionCLIP on faces, dogs, churches and bedrooms."""

from __future__ import annotations

from steerdiff.methods import DiffusionCLIP

from .recipe import Data, Recipe, Run, Toy, Weights

__all__ = ["DIFFUSIONCLIP_RECIPES"]

_CLIP = "ViT-B-16.pt"
_TOY = Toy(
    runs=(
        Run(label="degree 0: the reconstruction", settings=DiffusionCLIP(degree=0.0, n_inv=8, n_test=8)),
        Run(label="noise, twice", settings=DiffusionCLIP(degree=0.0, n_test=6, start="noise", repeats=2)),
    ),
    task="reconstruct",
    n=2,
    remark="without tuning, which takes minutes: the reconstruction that every edit is compared with",
)


def _run(source: str, target: str, t0: float, variant: str = "quick") -> Run:
    settings = DiffusionCLIP(
        source_text=source,
        target_text=target,
        t0=t0,
        variant="efficient" if variant == "efficient" else "quick",
        clip=_CLIP,
    )
    label = f"{source} to {target}, t0 = {round(1000 * t0)}"
    return Run(label=label if variant == "quick" else f"{label}, GPU-efficient", settings=settings)


def _recipe(name: str, what: str, weights: Weights, runs: tuple[Run, ...], remarks: tuple[str, ...] = ()) -> Recipe:
    return Recipe(
        name=name,
        title=f"{what}, each edited by a model that is tuned to one pair of texts",
        weights=weights,
        data=Data(name=f"{what} at 256 pixels", images="test images; faces aligned as in FFHQ"),
        runs=runs,
        metrics=("lpips", "rms"),
        protocol="reconstruction against inverted GANs (MAE, LPIPS, SSIM); of edits the directional CLIP similarity, "
        "the consistency of a segmentation, the identity of faces, and votes of users",
        missing="No number could be verified. Reported instead: LPIPS and root mean square difference from the image, "
        "which say how much an edit changes.",
        remarks=(
            f"`clip` is OpenAI's ViT-B/16, the file {_CLIP}. Tuning is the README's: 50 images, 5 epochs, Adam from "
            "8e-6 with a factor of 1.3 an epoch, 40 steps up, 6 in tuning, 40 down; here the images are drawn by the "
            "model, which the paper allows. `images=FOLDER` takes photographs.",
            "t0 is read off the names of the released checkpoints; the paper's table of settings was not re-read.",
            "The identity loss has weight 0, as in the README's command. The paper's tables use it for faces.",
            "Users report that some published edits come out weaker when tuned anew (issues 17 and 39).",
            *remarks,
        ),
        toy=_TOY,
    )


DIFFUSIONCLIP_RECIPES = (
    _recipe(
        "celebahq",
        "faces (CelebA-HQ)",
        Weights(preset="ddpm-celebahq", remark="SDEdit's checkpoint in the paper"),
        (
            _run("face", "tanned face", 0.201),
            _run("person", "person with makeup", 0.301),
            _run("Human", "Neanderthal", 0.5),
            _run("Human", "3D render in the style of Pixar", 0.601),
            _run("Human", "Neanderthal", 0.5, "efficient"),
        ),
        ("Images are edited well only where the face is aligned.",),
    ),
    _recipe(
        "dog",
        "dogs (AFHQ)",
        Weights(preset="ilvr-afhq-dog"),
        (_run("Dog", "Bear", 0.5), _run("Dog", "Hamster", 0.601)),
    ),
    _recipe(
        "church",
        "churches (LSUN)",
        Weights(preset="ddpm-church", remark="SDEdit's checkpoint in the paper"),
        (_run("church", "department store", 0.5),),
    ),
    _recipe(
        "bedroom",
        "bedrooms (LSUN)",
        Weights(preset="ddpm-bedroom", remark="SDEdit's checkpoint in the paper"),
        (_run("bedroom", "princess bedroom", 0.5),),
    ),
)

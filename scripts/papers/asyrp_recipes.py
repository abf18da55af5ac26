"""Asyrp on faces, dogs, churches and bedrooms."""

from __future__ import annotations

from steerdiff.methods import Asyrp

from .recipe import Data, Recipe, Run, Toy, Weights

__all__ = ["ASYRP_RECIPES"]

_CLIP = "ViT-B-16.pt"
_TOY = Toy(
    runs=(
        Run(label="degree 0: the reconstruction", settings=Asyrp(degree=0.0, n_inv=8, n_test=8)),
        Run(label="degree 0, boosted", settings=Asyrp(degree=0.0, n_inv=8, n_test=8, t_boost=200.0)),
    ),
    task="reconstruct",
    n=2,
    remark="without tuning, which takes minutes: the reconstruction that every edit is compared with",
)


def _run(source: str, target: str, n_test: int = 1000) -> Run:
    label = f"{source} to {target}"
    settings = Asyrp(source_text=source, target_text=target, n_test=n_test, clip=_CLIP)
    return Run(label=label if n_test == 1000 else f"{label}, {n_test} moves", settings=settings)


def _recipe(name: str, what: str, weights: Weights, runs: tuple[Run, ...], remarks: tuple[str, ...] = ()) -> Recipe:
    return Recipe(
        name=name,
        title=f"{what}, each edited by a shift of the bottleneck that is tuned to one attribute",
        weights=weights,
        data=Data(name=f"{what} at 256 pixels", images="test images; faces aligned as in FFHQ"),
        runs=runs,
        metrics=("lpips", "rms"),
        protocol="directional CLIP similarity and the consistency of a segmentation against DiffusionCLIP, and votes "
        "of users",
        missing="No number could be verified, and the authors' repository computes none. Reported instead: LPIPS and "
        "root mean square difference from the image, which say how much an edit changes.",
        remarks=(
            f"`clip` is OpenAI's ViT-B/16, the file {_CLIP}. Tuning is the README's: 100 images, 5 epochs, batches of "
            "one, 40 moves, gradient descent at 0.5; here the images are drawn by the model. `images=FOLDER` takes "
            "photographs. The released shifts were tuned for one epoch.",
            "The phases are measured by LPIPS (AlexNet), whose trunk has to be at hand: see docs/methods/asyrp.md. "
            "With the curves that were published, faces have t_edit 538 to 494 (for a cosine of 1 to 0.82) and t_boost "
            "167, churches 396 to 341 and 293, bedrooms 384 to 349 and 221, dogs 482 to 393 and 167.",
            "1,000 moves are best, as the README says; 40 to 50 are quick.",
            *remarks,
        ),
        toy=_TOY,
    )


ASYRP_RECIPES = (
    _recipe(
        "celebahq",
        "faces (CelebA-HQ)",
        Weights(preset="ddpm-celebahq", remark="SDEdit's checkpoint; the authors recommend the P2 weights for faces"),
        (
            _run("face", "smiling face"),
            _run("face", "smiling face", 40),
            _run("person", "young person"),
            _run("Human", "Neanderthal"),
            _run("Person", "Person in the style of Pixar"),
        ),
    ),
    _recipe(
        "dog",
        "dogs (AFHQ)",
        Weights(preset="ilvr-afhq-dog"),
        (_run("Dog", "Happy dog"), _run("Dog", "Sleepy dog")),
    ),
    _recipe(
        "church",
        "churches (LSUN)",
        Weights(preset="ddpm-church", remark="SDEdit's checkpoint in the paper"),
        (_run("church", "gothic church"), _run("church", "wooden house")),
    ),
    _recipe(
        "bedroom",
        "bedrooms (LSUN)",
        Weights(preset="ddpm-bedroom", remark="SDEdit's checkpoint in the paper"),
        (_run("bedroom", "princess bedroom"), _run("bedroom", "hotel bedroom")),
    ),
)

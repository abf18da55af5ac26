"""RePaint on CelebA-HQ, ImageNet and Places2 with six kinds of masks."""

from __future__ import annotations

from steerdiff.methods import RePaint

from .recipe import Data, Published, Recipe, Run, Toy, Weights

__all__ = ["REPAINT_RECIPES"]

_DRAWN = "drawn by the recipe where the folder is absent"
#: Kinds of masks by the name of the official configuration.
_MASKS = {
    "thick": "wide strokes of LaMa's generator; the official download has them",
    "thin": "narrow strokes of LaMa's generator; the official download has them",
    "nn2": f"of every second row every second pixel is known, a quarter of all; {_DRAWN}",
    "ev2li": f"every second line is known; {_DRAWN}",
    "genhalf": f"one half is known (which one is not stated; the left one if drawn); {_DRAWN}",
    "ex64": f"only the 64 x 64 pixels in the middle are known; {_DRAWN}",
}
_TITLES = ("wide", "narrow", "super-resolve 2x", "alternating lines", "half", "expand")
_PUBLISHED = RePaint(steps=250, jump_length=10, jump_n_sample=10, merge="official")

_TOY_RUN = RePaint(steps=10, jump_length=2, jump_n_sample=2, guidance=1.0)
_TOY = Toy(
    runs=(
        Run(label="thick", settings=_TOY_RUN, masks="thick"),
        Run(label="nn2", settings=RePaint(steps=8, jump_n_sample=1, guidance=1.0), masks="nn2"),
        Run(
            label="genhalf, as in the code",
            settings=RePaint(steps=8, jump_n_sample=1, guidance=1.0, merge="official"),
            masks="genhalf",
        ),
    ),
    task="hole",
    remark="the boxes of the benchmark take the place of the wide strokes",
)


def _label(kind: str) -> str:
    return f"{kind} ({_TITLES[list(_MASKS).index(kind)]})"


def _recipe(
    name: str,
    weights: Weights,
    data: str,
    lpips: tuple[float, ...] = (),
    remarks: tuple[str, ...] = (),
    classifier: Weights | None = None,
) -> Recipe:
    """A recipe on one data set; ``lpips`` in the order of the masks."""
    return Recipe(
        name=name,
        title=f"holes of six kinds filled in {data}",
        weights=weights,
        classifier=classifier,
        data=Data(
            name=f"100 test images of {data} at 256 pixels",
            images="100 test images",
            masks=_MASKS,
            preparation="ADM's centre crop to 256; masks must be pure black and white, of the images' shape",
        ),
        runs=tuple(Run(label=_label(kind), settings=_PUBLISHED, masks=kind) for kind in _MASKS),
        metrics=("lpips", "kept"),
        protocol="LPIPS (AlexNet, as we recall) of the whole image against the original, and votes of users",
        n=100,
        published=tuple(
            Published(value=value, metric="lpips", setting=_label(kind), source="paper", read=False, n=100)
            for kind, value in zip(_MASKS, lpips, strict=False)
        ),
        missing="" if lpips else "No LPIPS could be verified for this data set; ours stands alone.",
        remarks=(
            "`merge=official` does as the released code, whose results are what the network predicts in the known "
            "region as well: `kept` is small there but not 0. `merge=paper` (Algorithm 1) is the library's default.",
            "Images and masks are paired in the order of their paths, as in the released code.",
            "The README says that not all experiments were run again after the code was cleaned up.",
            *remarks,
        ),
        toy=_TOY,
    )


REPAINT_RECIPES = (
    _recipe(
        "celebahq",
        Weights(preset="repaint-celeba256"),
        "CelebA-HQ",
        (0.059, 0.028, 0.029, 0.009, 0.165, 0.435),
    ),
    _recipe(
        "imagenet",
        Weights(preset="adm-256"),
        "ImageNet",
        (0.134, 0.064, 0.183, 0.089, 0.304, 0.629),
        (
            "As the released configuration, this uses the class-conditional model and its classifier (scale 1.0) with "
            "a random label for each image, although the paper calls the model unconditional.",
        ),
        Weights(preset="adm-256-classifier"),
    ),
    _recipe("places", Weights(preset="repaint-places256"), "Places2"),
)

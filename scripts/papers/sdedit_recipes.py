"""SDEdit on LSUN: strokes to images, and strokes inside a mask."""

from __future__ import annotations

from steerdiff.methods import SDEdit

from .recipe import Data, Recipe, Run, Toy, Weights

__all__ = ["SDEDIT_RECIPES"]

_REPOSITORY = "the checkpoint of github.com/ermongroup/SDEdit; its host may be gone, the same network is "
_PROTOCOL = (
    "realism: KID against the data set; faithfulness: L2 between guide and result (its scale is not stated), LPIPS "
    "outside of edits; user studies"
)
_MISSING = (
    "The values of KID and L2 for each task could not be verified. Reported instead: KID where the data hold a "
    "reference set, and the root mean square difference from the guide, in images scaled to [0, 1]."
)
_SLIP = (
    "The repository walks all levels of the 1000 (500 evaluations a repeat, 1500 in all), without clipping, with the "
    "smaller of the two fixed variances."
)
_TOY_RUN = SDEdit(t0=0.5, repeats=2, steps=16, guidance=1.0)


def _strokes(category: str, preset: str, conversion: str) -> Recipe:
    return Recipe(
        name=category,
        title=f"stroke paintings become LSUN {category} images",
        weights=Weights(preset=preset, remark=_REPOSITORY + f"pytorch_diffusion's `{conversion}`"),
        data=Data(
            name=f"stroke paintings of {category} images",
            images="stroke paintings: the repository's examples exported as PNG, or your own",
            reference=f"LSUN {category} images, for KID (optional)",
        ),
        runs=(
            Run(label="t0 = 0.5, K = 3", settings=SDEdit(t0=0.5, repeats=3, steps=1000)),
            Run(label="t0 = 0.5, K = 1", settings=SDEdit(t0=0.5, repeats=1, steps=1000)),
        ),
        metrics=("rms", "kid"),
        protocol=_PROTOCOL,
        missing=_MISSING,
        remarks=(
            "K = 3 is the command of the README; K = 1 is the setting of the paper's tables on LSUN, as we recall it.",
            "The example files hold a mask too, which for strokes to images we take to be all free.",
            "For the tables, strokes were simulated from photographs: a median filter of 23 pixels, then 6 colours "
            "(as we recall).",
            _SLIP,
        ),
        toy=Toy(runs=(Run(label="t0 = 0.5, K = 2", settings=_TOY_RUN),), task="strokes"),
    )


_EDIT = Recipe(
    name="church-edit",
    title="strokes inside a mask become part of an LSUN church image",
    weights=Weights(preset="ddpm-church", remark=_REPOSITORY + "pytorch_diffusion's `ema_lsun_church`"),
    data=Data(
        name="church images with strokes, and where they may change",
        images="pictures with strokes painted in: the repository's example `lsun_edit` exported as PNG, or your own",
        masks={"edit": "where the picture is kept, white for kept as in the repository's files"},
        reference="LSUN church images, for KID (optional)",
    ),
    runs=(
        Run(label="t0 = 0.5, K = 3", settings=SDEdit(t0=0.5, repeats=3, steps=1000), masks="edit"),
        Run(
            label="t0 = 0.5, K = 3, as in the code",
            settings=SDEdit(t0=0.5, repeats=3, steps=1000, official=True),
            masks="edit",
        ),
    ),
    metrics=("kept", "rms", "lpips", "kid"),
    protocol=_PROTOCOL,
    missing=_MISSING,
    remarks=(
        "In the repository's saved image the kept region has noise of standard deviation 0.01, about 1.3 grey levels; "
        "the first run keeps it exactly.",
        _SLIP,
    ),
    toy=Toy(
        runs=(
            Run(label="t0 = 0.5, K = 2", settings=_TOY_RUN, masks="edit"),
            Run(
                label="as in the code",
                settings=SDEdit(t0=0.5, repeats=1, steps=16, guidance=1.0, official=True),
                masks="edit",
            ),
        ),
        task="hole",
    ),
)

SDEDIT_RECIPES = (
    _strokes("bedroom", "ddpm-bedroom", "ema_lsun_bedroom"),
    _strokes("church", "ddpm-church", "ema_lsun_church"),
    _EDIT,
)

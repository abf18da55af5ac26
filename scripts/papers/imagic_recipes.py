"""Imagic on photographs with the texts of TEdBench."""

from __future__ import annotations

from dataclasses import replace

from steerdiff.methods.imagic import PRESETS

from .recipe import Data, Recipe, Run, Toy, Weights

__all__ = ["IMAGIC_RECIPES"]

_PUBLISHED = PRESETS["published"]
_TOY = replace(PRESETS["emoji64"], embedding_steps=2, network_steps=2, batch_size=1, steps=4)

_TEDBENCH = Recipe(
    name="tedbench",
    title="photographs and texts of what they should show instead, against the weight of the text",
    weights=Weights(preset="sd-1.4", remark="the paper does not say which; its main results are Imagen's, not public"),
    data=Data(
        name="TEdBench: 100 photographs, each with a target text",
        images="the photographs, one for each result",
        preparation="the centre square, resized to 512 with ADM's filters",
        prompts=True,
    ),
    runs=(
        Run(label="eta 0.7", settings=_PUBLISHED),
        *(Run(label=f"eta {eta}", settings=replace(_PUBLISHED, eta=eta)) for eta in (0.0, 0.6, 0.8, 1.0)),
        Run(label="the notebook's port, eta 0.9", settings=PRESETS["notebook"]),
        Run(label="the community port, eta 1.2", settings=PRESETS["community"]),
    ),
    metrics=("lpips", "rms"),
    protocol="9,213 answers of people who saw two edits of a photograph, of 8 seeds the best one with its own eta; on "
    "150 other inputs CLIP score and 1 - LPIPS against eta",
    missing="More than 70 % of the answers preferred Imagic to each of SDEdit, DDIB and Text2LIVE, which no program "
    "measures, and the curves against eta are not printed as numbers. Reported instead: LPIPS and root mean square "
    "difference from the photograph, which should stay low below eta 0.4 and rise from 0.6 to 0.8.",
    remarks=(
        "All rows of the published settings share one tuning of each photograph through the cache, 2,500 updates, "
        "which the paper gives as 7 minutes on an A100. Each port tunes anew.",
        "The paper picks the best of 8 seeds and an eta for each picture, and calls these metrics unfit to choose eta "
        "or to rank methods; a row here has one eta and one seed.",
        "The guidance on Stable Diffusion is not stated: published settings have the model's own, 7.5.",
        "The paper's super-resolution network is tuned too, on the target text; a latent model has none.",
    ),
    toy=Toy(
        runs=(
            Run(label="eta 0.8", settings=_TOY),
            Run(label="eta 0", settings=replace(_TOY, eta=0.0)),
        ),
        task="object",
        n=2,
        remark="two updates of each stage instead of thousands: nothing is learned, all of the way is walked",
    ),
)

IMAGIC_RECIPES = (_TEDBENCH,)

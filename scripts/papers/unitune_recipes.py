"""UniTune on photographs, against SDEdit."""

from __future__ import annotations

from dataclasses import replace

from steerdiff.methods.unitune import PRESETS

from .recipe import Data, Recipe, Run, Toy, Weights

__all__ = ["UNITUNE_RECIPES"]

_PUBLISHED = PRESETS["published"]
_TOY = replace(PRESETS["emoji64"], tune_steps=2, batch_size=1, steps=5)

_PHOTOGRAPHS = Recipe(
    name="photographs",
    title="photographs edited by a text, with a network tuned to each of them or not (SDEdit)",
    weights=Weights(preset="sd-1.4", remark="the paper's network is Imagen's, which is not public"),
    data=Data(
        name="photographs, and texts of what they should show instead",
        images="the photographs, one for each result",
        preparation="the centre square, resized to 512 with ADM's filters",
        prompts=True,
    ),
    runs=(
        Run(label="128 updates, t0 = 0.9", settings=_PUBLISHED),
        Run(label="no updates, t0 = 0.9: SDEdit", settings=replace(_PUBLISHED, tune_steps=0)),
        Run(label="128 updates, t0 = 0.8", settings=replace(_PUBLISHED, t0=0.8)),
        Run(label="128 updates, t0 = 0.98", settings=replace(_PUBLISHED, t0=0.98)),
        Run(label="128 updates, from noise, guidance 32", settings=PRESETS["strong"]),
        Run(label="64 updates, t0 = 0.9", settings=replace(_PUBLISHED, tune_steps=64)),
    ),
    metrics=("lpips", "rms"),
    protocol="votes of people on 93 pairs of a picture and a text, against SDEdit",
    missing="72 % of the votes preferred UniTune (83 % where the edit moves much, 60 % where it does not), as a "
    "summary of the paper says; no program measures that. Reported instead: LPIPS and root mean square difference from "
    "the photograph, which tuning should lower.",
    remarks=(
        "Numbers of updates, rate and batch are the paper's on Imagen. Guidance and t0 are recalled as ranges, and the "
        "figures are picked by hand from grids of them; on Stable Diffusion no setting is published.",
        "Rows with as many updates share one tuning of each photograph through the cache.",
        "How the paper interpolates pixels with the photograph was not found, so no row does it.",
        "The port xuduo35/UniTune is another method: see docs/methods/unitune.md.",
    ),
    toy=Toy(
        runs=(
            Run(label="two updates", settings=_TOY),
            Run(label="no updates: SDEdit", settings=replace(_TOY, tune_steps=0)),
        ),
        task="object",
        n=2,
        remark="two updates instead of 128: nothing is learned, all of the way is walked",
    ),
)

UNITUNE_RECIPES = (_PHOTOGRAPHS,)

"""DreamBooth on the subjects of its data set, and what is left of their classes."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from steerdiff.methods.dreambooth import PRESETS

from .recipe import Data, MetricName, Published, Recipe, Run, Toy, Weights

__all__ = ["DREAMBOOTH_RECIPES"]

_PAPER = PRESETS["paper"]
_TOY = replace(PRESETS["emoji64"], n_class=2, class_steps=2, tune_steps=2, batch_size=1, steps=4)
_TOY_RUNS = (
    Run(label="lambda 1", settings=_TOY),
    Run(label="lambda 0", settings=replace(_TOY, prior_weight=0.0)),
)
_RUNS = (
    Run(label="lambda 1", settings=_PAPER),
    Run(label="lambda 0", settings=replace(_PAPER, prior_weight=0.0)),
)
_WEIGHTS = Weights(preset="sd-1.4", remark="the paper does not say which")
_SUBJECT = "its 4 to 6 pictures; CLASS is the word for what it is, as the data set's list has it"
_MAIN = "the table of subject and prompt fidelity"
_PRIOR = "the ablation of prior preservation"
_REMARKS = (
    "The table is of 30 subjects: run this once for each, and take the mean of the reports.",
    "DINO's weights are dino_deitsmall16_pretrain.pth of its authors, CLIP's OpenAI's ViT-B-32.pt, both looked for in "
    "the folder that STEERDIFF_WEIGHTS names; LPIPS' are in PyTorch's cache.",
)


def _published(setting: str, source: str, n: int | None = None, **values: float) -> tuple[Published, ...]:
    """Return numbers that were read in a stored copy of the paper, by the name of their metric."""
    return tuple(
        Published(value=value, metric=cast(MetricName, name), setting=setting, source=source, read=True, n=n)
        for name, value in values.items()
    )


_SUBJECTS = Recipe(
    name="subjects",
    title="a subject of the data set in other surroundings, against its pictures and the text",
    weights=_WEIGHTS,
    data=Data(
        name="one of the data set's 30 subjects, and its 25 prompts, each four times",
        subject=_SUBJECT,
        preparation="the centre square, resized to 512 with ADM's filters",
        prompts=True,
    ),
    runs=(
        *_RUNS,
        Run(label="port of diffusers", settings=PRESETS["diffusers"]),
        Run(label="port of XavierXiao", settings=PRESETS["xavierxiao"]),
    ),
    metrics=("dino", "clip_i", "clip_t", "div"),
    protocol="30 subjects of 15 classes with 25 prompts each, 4 results of a prompt, 3,000 in all; DINO and CLIP-I "
    "over all pairs of a result and a picture of the subject, CLIP-T over results and prompts",
    published=(
        *_published("the subjects' own pictures", _MAIN, dino=0.774, clip_i=0.885),
        *_published("lambda 1", _MAIN, n=3000, dino=0.668, clip_i=0.803, clip_t=0.305),
        *_published("DreamBooth on Imagen", _MAIN, n=3000, dino=0.696, clip_i=0.812, clip_t=0.306),
        *_published("Textual Inversion on Stable Diffusion", _MAIN, n=3000, dino=0.569, clip_i=0.780, clip_t=0.255),
        *_published("lambda 1 on Imagen, 15 subjects", _PRIOR, dino=0.684, clip_i=0.815, clip_t=0.308, div=0.391),
        *_published("lambda 0 on Imagen, 15 subjects", _PRIOR, dino=0.712, clip_i=0.828, clip_t=0.306, div=0.371),
    ),
    remarks=(
        *_REMARKS,
        "Prompts hold the identifier: `a sks dog in the snow`. It is left out for CLIP-T; the paper does not say "
        "whether it does so, nor the size of its CLIP, which ports take as ViT-B/32.",
        "The identifier is the ports' `sks`, which Stable Diffusion knows as a rifle; the paper takes rare tokens.",
        "1,000 class pictures are drawn first, once for each class, and cached. 200 are usual: `n_class` of the "
        "ports' rows.",
        "DINO above 0.774, the real pictures among themselves, says that results copy them.",
        "With a text encoder that is tuned too, 200 to 400 updates overfit at 5e-6, as users of a port report.",
    ),
    toy=Toy(
        runs=_TOY_RUNS,
        task="subject",
        n=2,
        remark="two updates instead of 1,000: nothing is learned, all of the way is walked",
    ),
)

_CLASS = Recipe(
    name="class",
    title="the class of a subject, drawn by the model that was tuned to the subject, with the prior's term or without",
    weights=_WEIGHTS,
    data=Data(
        name="one of the data set's 30 subjects, and its class as the only prompt, such as `a dog`, many times",
        subject=_SUBJECT,
        preparation="the centre square, resized to 512 with ADM's filters",
        prompts=True,
    ),
    runs=_RUNS,
    metrics=("dino", "div"),
    protocol="PRES: DINO over all pairs of a picture of the class, which the tuned model draws, and one of the "
    "subject, for 15 subjects; lower is better",
    published=(
        *_published("lambda 1 on Imagen, 15 subjects", f"{_PRIOR}, PRES", dino=0.493),
        *_published("lambda 0 on Imagen, 15 subjects", f"{_PRIOR}, PRES", dino=0.664),
    ),
    missing="On Stable Diffusion no number is published.",
    remarks=(
        *_REMARKS,
        "Here DINO is the paper's PRES: the prompts hold no identifier, and what resembles the subject has drifted.",
        "Both rows share their tuning with those of the recipe `subjects` through the cache.",
        "DIV is the paper's measure of the subject's pictures; of the class it prints none.",
    ),
    toy=Toy(
        runs=_TOY_RUNS,
        task="class beside subject",
        n=2,
        remark="two updates instead of 1,000: nothing drifts, all of the way is walked",
    ),
)

DREAMBOOTH_RECIPES = (_SUBJECTS, _CLASS)

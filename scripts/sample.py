"""``steerdiff sample``: draw images from text, from labels or from nothing, and enlarge them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from steerdiff.errors import require

from .arguments import parse, restore
from .outputs import Batch, Inputs, save_batch
from .runtime import ModelFlags
from .sample_parts import Parts

if TYPE_CHECKING:
    from torch import Tensor

    from steerdiff.guidance import Model

__all__ = ["Sample", "main", "replay", "sample_with"]

#: ``steerdiff.guidance.settings.Spacing``, here again because the help of this command must not import PyTorch.
Spacing = Literal[
    "respaced",
    "leading",
    "trailing",
    "linspace",
    "quad",
    "uniform_ddim",
    "karras",
    "exponential",
    "polyexponential",
    "log_snr",
    "ve",
    "vp",
    "compvis",
    "diffusers-ddim",
    "diffusers-ddim-alpha-one",
    "diffusers-ddim-default",
    "diffusers-ddim-trailing",
    "diffusers-ddim-linspace",
    "diffusers-pndm",
    "diffusers-euler",
    "diffusers-euler-karras",
    "diffusers-euler-trailing",
    "diffusers-dpm++",
    "diffusers-dpm++-karras",
    "diffusers-dpm++-trailing",
]


@dataclass(frozen=True, kw_only=True)
class Sample(ModelFlags):
    """Draw images from text, or without text where the model has none.

    What is left out is as it was published with the model. An upsampler makes a second stage.
    """

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()  #: what to draw, one text or several
    n: int = 1  #: images for each prompt
    steps: int | str | None = None  #: moves from noise to image, or guided-diffusion's string such as ddim25
    guidance: float | None = None  #: strength of classifier-free guidance; 1 is plain conditional sampling
    negative: str = ""  #: what the images should not show
    #: class, by number for a class-conditional model and by number or name for a classifier
    label: Annotated[int | str | None, tyro.conf.arg(aliases=("--y",))] = None
    seed: int | tuple[int, ...] = 0  #: image k uses seed + k; or one seed for each image
    solver: str | None = None  #: ddpm, ddim, dpm++2m, ...; ddim:eta=0.5 sets a field
    spacing: Spacing | None = None  #: how the steps are spread over the noise levels
    image: Path | None = None  #: the picture, for an inpainting model or an upsampler as the model
    mask: Path | None = None  #: white where an inpainting model fills the picture
    classifier: str | None = None  #: a noisy classifier that pulls towards the label
    classifier_config: str | None = None  #: its preset, as --weights-config
    classifier_scale: float | None = None  #: strength of the pull
    upsampler: str | None = None  #: a model that enlarges the images, as a second stage
    upsampler_config: str | None = None  #: its preset, as --weights-config
    upsampler_steps: int | str | None = None  #: moves of the second stage
    batch: int = 32  #: images computed at once
    out: Path = Path("out/sample")  #: folder for the images


def main(arguments: Sequence[str], prog: str) -> int:
    """Draw images and say where they are."""
    options = parse(Sample, arguments, prog=prog)
    require(options.n >= 1, f"n is {options.n}; ask for at least one image")
    require(options.batch >= 1, f"batch is {options.batch}; it must be at least 1")
    for name in ("image", "mask"):
        path = getattr(options, name)
        require(path is None or path.is_file(), f"{name} is {path}, which is no file; give the path of a picture")
    from steerdiff.io import ensure_writable, grid, load_image, save_image

    ensure_writable(options.out)
    paths = sample_with(options, options.load())
    if len(paths) > 1:
        save_image(grid([load_image(path) for path in paths]), options.out / "grid.png")
    print(f"{len(paths)} image{'s' * (len(paths) > 1)} in {options.out}")
    return 0


def sample_with(options: Sample, model: Model) -> list[Path]:
    """Draw the images, save them as they are ready, each with its settings, and return their paths."""
    from steerdiff.samplers import resolve_seeds

    options = _settled(options, model)
    parts = Parts.of(options, model)
    rows = [prompt for prompt in options.prompts or ("",) for _ in range(options.n)]
    seeds = resolve_seeds(options.seed, len(rows))
    saved = []
    for first in range(0, len(rows), options.batch):
        part = slice(first, first + options.batch)
        batch = Batch(prompts=rows[part] if options.prompts else None, seeds=seeds[part])
        images = _draw(model, parts, options, batch, progress="sample")
        paths = [options.out / f"{first + i:04d}-seed{seed}.png" for i, seed in enumerate(batch.seeds)]
        save_batch(images, paths, command="sample", options=options, model=model, batch=batch, extra=parts.record())
        saved += paths
    return saved


def replay(settings: Mapping[str, Any], model: Model, pictures: Mapping[str, Tensor]) -> Tensor:
    """Return the image [3, H, W] that the settings describe, computed with the same neighbours."""
    options = restore(Sample, settings["options"], "the stored settings")
    options = _settled(options, model)
    parts = Parts.of(options, model, Inputs(images=pictures))
    parts.compare(settings)
    return _draw(model, parts, options, Batch(**settings["batch"]), progress=None)[settings["index"]]


def _settled(options: Sample, model: Model) -> Sample:
    """Return the options with the model's own in the place of None."""
    from .solver_text import solver_to_text

    given = {name: getattr(options, name) for name in ("steps", "guidance", "solver", "spacing", "classifier_scale")}
    settled = model.sampling.or_given(**given)
    if not isinstance(settled["solver"], str):
        settled["solver"] = solver_to_text(settled["solver"])
    return dataclasses.replace(options, **settled)


def _draw(model: Model, parts: Parts, options: Sample, batch: Batch, progress: str | None) -> Tensor:
    from .solver_text import solver_from_text

    images = model.sample(
        batch.prompts,
        1 if batch.prompts is not None else len(batch.seeds),
        steps=options.steps,
        guidance=options.guidance,
        negative=options.negative,
        y=options.label,
        extra=parts.extra,
        classifier=parts.classifier,
        classifier_scale=options.classifier_scale,
        seed=batch.seeds,
        solver=solver_from_text(str(options.solver)),
        spacing=options.spacing,
        batch=len(batch.seeds),
        progress=progress,
    )
    return parts.enlarged(images, options, batch.seeds, progress)

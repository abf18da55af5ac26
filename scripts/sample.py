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

    from steerdiff.guidance import Guidance, Model

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
#: ``steerdiff.guidance.scales.ScaleSchedule`` and ``steerdiff.samplers.ClipPolicy``, here again for the same reason.
Schedule = Literal["constant", "linear", "cosine", "sigma", "early", "late"]
Clip = Literal["none", "clip", "dynamic"]


@dataclass(frozen=True, kw_only=True)
class Sample(ModelFlags):
    """Draw images from text, or without text where the model has none.

    What is left out is as it was published with the model. An upsampler makes a second stage.
    """

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()  #: what to draw, one text or several
    n: int = 1  #: images for each prompt
    steps: int | str | None = None  #: moves from noise to image, or guided-diffusion's string such as ddim25
    #: strength of classifier-free guidance; 1 is plain conditional sampling; or one strength for each image
    guidance: float | tuple[float, ...] | None = None
    guidance_w: float | None = None  #: the strength as Ho & Salimans count it, guidance - 1; in the place of guidance
    guidance_rescale: float = 0.0  #: phi in [0, 1]: how far guided outputs get back the spread of unguided ones
    guidance_interval: tuple[float, float] = (0.0, 1.0)  #: shares of the times, 1 is noise, between which it guides
    guidance_schedule: Schedule = "constant"  #: how much of it at each time
    guidance_split: bool = False  #: one branch after the other, for low memory
    negative: str = ""  #: what the images should not show
    also: tuple[tuple[str, float], ...] = ()  #: further prompts, each followed by its weight; below 0 leads away
    clip: Clip | None = None  #: of each predicted image, after guidance; dynamic is Imagen's thresholding
    quantile: float | None = None  #: of --clip dynamic, in (0, 1]; None is 0.995
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
    one = options.guidance is None or options.guidance_w is None
    require(one, "guidance and guidance-w are the same strength, counted differently; give one of them")
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
    strengths = _strengths(options, len(rows))
    saved = []
    for first in range(0, len(rows), options.batch):
        part = slice(first, first + options.batch)
        batch = Batch(prompts=rows[part] if options.prompts else None, seeds=seeds[part])
        mine = options if strengths is None else dataclasses.replace(options, guidance=strengths[part])
        images = _draw(model, parts, mine, batch, progress="sample")
        paths = [options.out / f"{first + i:04d}-seed{seed}.png" for i, seed in enumerate(batch.seeds)]
        save_batch(images, paths, command="sample", options=mine, model=model, batch=batch, extra=parts.record())
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

    names = ("steps", "guidance", "solver", "spacing", "clip", "classifier_scale")
    given = {name: getattr(options, name) for name in names}
    if options.guidance_w is not None:
        from steerdiff.guidance import scale_of

        given["guidance"] = scale_of(options.guidance_w)
    settled = model.sampling.or_given(**given) | {"guidance_w": None}
    if not isinstance(settled["solver"], str):
        settled["solver"] = solver_to_text(settled["solver"])
    return dataclasses.replace(options, **settled)


def _strengths(options: Sample, images: int) -> tuple[float, ...] | None:
    """Return the strength for each image where there are several."""
    given = options.guidance
    if not isinstance(given, tuple):
        return None
    fits = len(given) in (1, images)
    require(fits, f"{len(given)} strengths of guidance were given for {images} images; give one, or one for each")
    return given if len(given) == images else given * images


def _guidance(options: Sample) -> Guidance:
    from steerdiff.guidance import Guidance, Weighted

    return dataclasses.replace(
        Guidance.of(options.guidance),
        also=tuple(Weighted(text, weight) for text, weight in options.also),
        rescale=options.guidance_rescale,
        interval=options.guidance_interval,
        schedule=options.guidance_schedule,
        split=options.guidance_split,
    )


def _draw(model: Model, parts: Parts, options: Sample, batch: Batch, progress: str | None) -> Tensor:
    from .solver_text import solver_from_text

    images = model.sample(
        batch.prompts,
        1 if batch.prompts is not None else len(batch.seeds),
        steps=options.steps,
        guidance=_guidance(options),
        negative=options.negative,
        y=options.label,
        extra=parts.extra,
        classifier=parts.classifier,
        classifier_scale=options.classifier_scale,
        seed=batch.seeds,
        solver=solver_from_text(str(options.solver)),
        spacing=options.spacing,
        clip=options.clip,
        quantile=options.quantile,
        batch=len(batch.seeds),
        progress=progress,
    )
    return parts.enlarged(images, options, batch.seeds, progress)

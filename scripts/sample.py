"""``steerdiff sample``: draw images from text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from steerdiff.errors import require

from .arguments import parse, restore
from .outputs import Batch, save_batch
from .runtime import ModelFlags

if TYPE_CHECKING:
    from torch import Tensor

    from steerdiff.guidance import Model

__all__ = ["Sample", "main", "replay", "sample_with"]

Spacing = Literal[
    "respaced", "leading", "trailing", "linspace", "quad", "uniform_ddim", "karras", "exponential", "log_snr"
]


@dataclass(frozen=True, kw_only=True)
class Sample(ModelFlags):
    """Draw images from text, or without text where the model has none."""

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()  #: what to draw, one text or several
    n: int = 1  #: images for each prompt
    steps: int = 25  #: moves from noise to image
    guidance: float = 3.0  #: strength of classifier-free guidance; 1 is plain conditional sampling
    negative: str = ""  #: what the images should not show
    label: int | None = None  #: class label, for a class-conditional model
    seed: int | tuple[int, ...] = 0  #: image k uses seed + k; or one seed for each image
    solver: str = "dpm++2m"  #: ddpm, ddim, dpm++2m, ...; ddim:eta=0.5 sets a field
    spacing: Spacing = "log_snr"  #: how the steps are spread over the noise levels
    batch: int = 32  #: images computed at once
    out: Path = Path("out/sample")  #: folder for the images


def main(arguments: Sequence[str], prog: str) -> int:
    """Draw images and say where they are."""
    options = parse(Sample, arguments, prog=prog)
    require(options.n >= 1, f"n is {options.n}; ask for at least one image")
    require(options.batch >= 1, f"batch is {options.batch}; it must be at least 1")
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

    rows = [prompt for prompt in options.prompts or ("",) for _ in range(options.n)]
    seeds = resolve_seeds(options.seed, len(rows))
    saved = []
    for first in range(0, len(rows), options.batch):
        part = slice(first, first + options.batch)
        batch = Batch(prompts=rows[part] if options.prompts else None, seeds=seeds[part])
        images = _draw(model, options, batch, progress="sample")
        paths = [options.out / f"{first + i:04d}-seed{seed}.png" for i, seed in enumerate(batch.seeds)]
        save_batch(images, paths, command="sample", options=options, model=model, batch=batch, extra={})
        saved += paths
    return saved


def replay(settings: Mapping[str, Any], model: Model, pictures: Mapping[str, Tensor]) -> Tensor:
    """Return the image [3, H, W] that the settings describe, computed with the same neighbours."""
    options = restore(Sample, settings["options"], "the stored settings")
    return _draw(model, options, Batch(**settings["batch"]), progress=None)[settings["index"]]


def _draw(model: Model, options: Sample, batch: Batch, progress: str | None) -> Tensor:
    from .solver_text import solver_from_text

    return model.sample(
        batch.prompts,
        1 if batch.prompts is not None else len(batch.seeds),
        steps=options.steps,
        guidance=options.guidance,
        negative=options.negative,
        y=options.label,
        seed=batch.seeds,
        solver=solver_from_text(options.solver),
        spacing=options.spacing,
        batch=len(batch.seeds),
        progress=progress,
    )

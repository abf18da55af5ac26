"""Images that a model draws for an evaluation: what it is asked for, and the record of how."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from steerdiff.errors import require
from steerdiff.io import to_uint8
from steerdiff.models import WordEncoder
from steerdiff.scripts.solver_text import solver_from_text, solver_to_text
from steerdiff.train.scenes import WORDS

from .sample_flags import Samples
from .sample_sources import Source, scene_source

if TYPE_CHECKING:
    from steerdiff.guidance import Model

__all__ = ["CAPTION_SEED", "knows_scenes", "model_source"]

#: Added to the seed for the scenes whose captions a model draws: no training run and no reference has it.
CAPTION_SEED = 1_000_000


def knows_scenes(model: Model) -> bool:
    """Say whether a model reads the captions of emoji scenes and nothing else."""
    return isinstance(model.text, WordEncoder) and set(WORDS) <= set(model.text.token_number)


def model_source(flags: Samples, captions: Mapping[str, str] | None) -> Source:
    """Return ``flags.n`` samples of the model, which are drawn when the first of them is read.

    A model of emoji scenes draws the captions of scenes, any other model with text those of a file, a class-conditional
    one its classes in turn, and the rest draws what it likes.

    Args:
        flags: Model, sampler, seed and number.
        captions: Of a file, in its order.

    Raises:
        UserError: There is no such model, a setting does not fit it, or captions are missing or too few.
    """
    model = flags.load()
    texts = _texts(flags, model, captions)
    given = {name: getattr(flags, name) for name in ("steps", "guidance", "solver", "spacing")}
    settings = model.sampling.or_given(**given)
    if not isinstance(settings["solver"], str):
        settings["solver"] = solver_to_text(settings["solver"])
    solver_from_text(settings["solver"])
    model.path(settings["steps"], settings["spacing"])
    labels = [k % model.num_classes for k in range(flags.n)] if model.num_classes is not None else None
    drawn = functools.cache(lambda: _drawn(flags, model, settings, texts, labels))
    asked = "captions of true scenes" if captions is None and texts is not None else "captions of the file"
    facts = {
        "model": {"name": model.name, "sha256": model.weights_hash, "precision": flags.precision},
        "sampler": settings,
        "seeds": f"{flags.seed} to {flags.seed + flags.n - 1}",
        "batch": flags.batch,
        "asked for": asked if texts is not None else "every class in turn" if labels is not None else "nothing",
    }
    if captions is None and texts is not None:
        facts["caption scenes"] = CAPTION_SEED + flags.seed
    return Source(
        title=f"{flags.n} samples of {model.name}",
        n=flags.n,
        size=model.size,
        read=lambda part: drawn()[part],
        captions=None if texts is None else tuple(texts),
        facts=facts,
    )


def _texts(flags: Samples, model: Model, captions: Mapping[str, str] | None) -> list[str] | None:
    """Return a caption for each sample; None for a model without text."""
    if model.text is None:
        require(captions is None, f"{model.name} reads no text; leave captions out")
        return None
    if captions is None:
        reads = f"{model.name} draws what captions say; give --captions FILE with {flags.n} of them"
        require(knows_scenes(model), reads)
        return list(scene_source(CAPTION_SEED + flags.seed, flags.n).captions or ())
    few = f"{flags.captions} has {len(captions)} captions for n = {flags.n}; give as many, or a smaller n"
    require(len(captions) >= flags.n, few)
    return list(captions.values())[: flags.n]


def _drawn(
    flags: Samples, model: Model, settings: Mapping[str, Any], texts: list[str] | None, labels: list[int] | None
) -> Tensor:
    """Return the samples, uint8 [n, 3, H, W]."""
    parts = []
    solver = solver_from_text(settings["solver"])
    for first in tqdm(range(0, flags.n, flags.batch), desc="sample", unit="batch"):
        part = slice(first, min(first + flags.batch, flags.n))
        rows = range(flags.n)[part]
        images = model.sample(
            None if texts is None else texts[part],
            len(rows) if texts is None and labels is None else 1,
            steps=settings["steps"],
            guidance=settings["guidance"],
            y=None if labels is None else labels[part],
            seed=[flags.seed + k for k in rows],
            solver=solver,
            spacing=settings["spacing"],
            batch=len(rows),
        )
        parts.append(to_uint8(images))
    return torch.cat(parts)

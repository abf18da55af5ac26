"""Find weights by name or path and turn them into a model, whatever wrote them."""

from __future__ import annotations

import functools
import os
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from steerdiff.errors import require
from steerdiff.models.clip import Clip
from steerdiff.models.published.assembly import open_published

from .model import Model
from .noisy_classifier import NoisyClassifier
from .noisy_encoder import NoisyEncoder
from .own_format import read_own
from .published import Place, read_published

__all__ = ["SHIPPED", "load", "load_cached", "load_classifier", "load_model", "locate"]

#: Weights that come with the library, by name: files in ``steerdiff.assets``.
SHIPPED = {
    "emoji64": "weights/emoji64.safetensors",
    "emoji64-classifier": "weights/emoji64-classifier.safetensors",
    "emoji64-clip": "weights/emoji64-clip.safetensors",
    "emoji64-noisy-clip": "weights/emoji64-noisy-clip.safetensors",
    "diffusionclip-blue-red": "weights/diffusionclip-blue-red.safetensors",
    "asyrp-flat-3d": "weights/asyrp-flat-3d.safetensors",
}

#: Where the weights of a training run are.
RUN_FILES = ("weights.safetensors",)

Source = str | os.PathLike[str]

#: What weights are called, by what `load` makes of them.
_WHAT: dict[type, str] = {NoisyClassifier: "a classifier", Clip: "a CLIP", NoisyEncoder: "a noisy CLIP"}
#: Kinds of networks that methods look up by name, and how to speak of them.
_AUXILIARY: dict[str, tuple[tuple[type, ...], str]] = {
    "clip": ((Clip,), "a CLIP"),
    "noisy-clip": ((NoisyEncoder,), "a noisy CLIP"),
    "encoder": ((NoisyEncoder, Clip), "a noisy CLIP or a CLIP"),
    "classifier": ((NoisyClassifier,), "a noisy classifier"),
}


def locate(source: Source) -> Path:
    """Return the file or folder that ``source`` names: shipped weights, a file, or a folder; of a run, its weights.

    Raises:
        UserError: No shipped weights have that name and no file or folder has that path.
    """
    name = os.fspath(source)
    if name in SHIPPED:
        path = Path(str(resources.files("steerdiff.assets").joinpath(SHIPPED[name])))
        require(path.is_file(), f"the weights '{name}' are not in this installation ({path} is missing); reinstall it")
        return path
    path = Path(name)
    known = ", ".join(f"'{known}'" for known in SHIPPED)
    require(
        path.exists(), f"'{name}' is neither a file or folder nor the name of shipped weights; known names: {known}"
    )
    return next((path / run for run in RUN_FILES if (path / run).is_file()), path)


def load(
    source: Source,
    config: Any = None,
    *,
    ema: bool | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Any:
    """Load weights, ready to use: in eval mode and without gradients. No code in a file is run.

    Args:
        source: The name of shipped weights (``"emoji64"``); a file or folder of this library, or a training run's
            folder; or weights as they were published: a file of guided-diffusion, improved-diffusion, ermongroup's
            DDPM, CompVis or Stability, a folder of diffusers, or a CLIP (``docs/weights.md``).
        config: What published weights do not say of themselves: a preset's name (``steerdiff info --presets``), the
            published flags as a mapping or as one command line, the path of a published YAML or JSON configuration, or
            a `PublishedModel`.
        ema: Read the averaged weights of a CompVis file that holds both; None is what its authors sample with.
        device: Where to put it.
        dtype: Floating type of the weights; None is float32, whatever they are stored in.

    Returns:
        A `Model`; of a noisy classifier a `NoisyClassifier`; of a CLIP a `steerdiff.models.clip.Clip`; of a noisy
        CLIP a `NoisyEncoder`.

    Raises:
        UserError: Nothing is there, the file is damaged or of an unknown layout, something is left open, or it holds
            another architecture; the message says which keys and shapes, or which presets fit.
    """
    path = locate(source)
    file = open_published(path)
    place = Place(device=device, dtype=torch.float32 if dtype is None else dtype)
    if "steerdiff" not in file.metadata:
        return read_published(file, config, place, ema=ema)
    require(config is None, f"'{path}' holds its own configuration; leave config out")
    require(ema is None, f"'{path}' holds one set of weights; leave ema out")
    return read_own(file, place)


def load_model(source: Source, config: Any = None, **options: Any) -> Model:
    """Load a diffusion model; as `load`, but anything else is a ``UserError``."""
    model = load(source, config, **options)
    what = _WHAT.get(type(model), "something else")
    require(isinstance(model, Model), f"'{source}' is {what}; give the weights of a diffusion model")
    result: Model = model
    return result


def load_classifier(source: Source, config: Any = None, **options: Any) -> NoisyClassifier:
    """Load a noisy classifier; as `load`, but anything else is a ``UserError``."""
    classifier = load(source, config, **options)
    require(isinstance(classifier, NoisyClassifier), f"'{source}' is no noisy classifier; give the weights of one")
    result: NoisyClassifier = classifier
    return result


def load_cached(source: Any, kind: str, device: str | torch.device = "cpu") -> Any:
    """Return a network that guidance needs beside the model; the same weights are loaded once.

    Args:
        source: A name of shipped weights or a path, or the loaded network itself, which is returned as it is.
        kind: What it must be: "clip", "noisy-clip", "encoder" (either of the two) or "classifier".
        device: Where to put it, as a rule where the model is.

    Returns:
        A `steerdiff.models.clip.Clip`, `NoisyEncoder` or `NoisyClassifier`. It is shared: do not change it.

    Raises:
        UserError: As `load`, or the weights are of another kind.
    """
    types, what = _AUXILIARY[kind]
    if isinstance(source, types):
        return source
    path = locate(source)
    is_file = path.is_file()
    loaded = _loaded(str(path), str(device), path.stat().st_mtime_ns if is_file else 0)
    found = _WHAT.get(type(loaded), "a diffusion model")
    require(isinstance(loaded, types), f"'{source}' is {found}; give the weights of {what}")
    return loaded


@functools.lru_cache(maxsize=8)
def _loaded(path: str, device: str, changed: int) -> Any:
    """Load what lies at ``path``; ``changed`` makes a file that was written again another one."""
    return load(path, device=device)

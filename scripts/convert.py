"""``steerdiff convert``: store a published model in another way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from .arguments import parse

__all__ = ["Convert", "main"]


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Store a published model as one file under its published names, as a folder of diffusers, or as steerdiff does.

    Tensors keep their numbers; what the new form has no place for is said.
    """

    source: tyro.conf.Positional[Path]  #: the file or folder of weights
    target: tyro.conf.Positional[Path]  #: the file or folder to write; a file is safetensors, whatever its name
    to: Literal["single-file", "folder", "steerdiff"] = "steerdiff"  #: how it is stored
    weights_config: str | None = None  #: preset (info --presets), flags or YAML of a source that needs it
    ema: bool | None = None  #: of a file with two sets of weights, take the averaged; None as its authors do
    dtype: Literal["float32", "float16", "bfloat16"] | None = None  #: type of the numbers; None keeps it
    force: bool = False  #: replace what is at the target


def main(arguments: Sequence[str], prog: str) -> int:
    """Convert, and say what was written."""
    options = parse(Convert, arguments, prog=prog)
    import torch

    from steerdiff.models.published.convert import Target, convert

    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    target = Target(to=options.to, dtype=dtype, overwrites=options.force)
    model = convert(options.source, options.target, target, config=options.weights_config, ema=options.ema)
    parts = [name for name in ("unet", "classifier", "autoencoder", "text", "clip") if getattr(model, name) is not None]
    print(f"{options.target}: {', '.join(parts)} ({options.to})")
    return 0

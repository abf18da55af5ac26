"""``steerdiff info``: what is installed, and what a file of weights or an image holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from .arguments import parse

if TYPE_CHECKING:
    from steerdiff.models.weights import WeightFile

__all__ = ["Info", "main"]


@dataclass(frozen=True, kw_only=True)
class Info:
    """Say what is installed, and what a file of weights (or an image that steerdiff made) holds."""

    source: tyro.conf.Positional[str | None] = None  #: weights by name or path, or a PNG with its settings
    all: bool = False  #: also list every tensor with its shape
    presets: bool = False  #: list the published weights that steerdiff.load knows by name
    markdown: bool = False  #: with presets: print the tables of docs/weights.md


def main(arguments: Sequence[str], prog: str) -> int:
    """Print the tables."""
    flags = parse(Info, arguments, prog=prog)
    if flags.presets or flags.markdown:
        _presets(flags.markdown)
    elif flags.source is None:
        _table(_installed())
    elif flags.source.lower().endswith(".png"):
        _table(_image(Path(flags.source)))
    else:
        _table(_weights(flags.source))
        if flags.all:
            _tensors(flags.source)
    return 0


def _presets(markdown: bool) -> None:
    from .weights_page import rows, tables

    if markdown:
        print(tables(), end="")
    else:
        _table({name: f"{description} ({files})" for name, description, files in rows()})


def _installed() -> dict[str, Any]:
    import platform

    import torch

    from steerdiff._version import __version__
    from steerdiff.guidance.loading import SHIPPED
    from steerdiff.methods import METHODS
    from steerdiff.models import kernels
    from steerdiff.samplers import SOLVERS

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "steerdiff": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "cuda": ", ".join(devices) or "none",
        "kernels": kernels.status(cuda=bool(devices)),
        "weights": ", ".join(SHIPPED),
        "methods": ", ".join(METHODS),
        "solvers": ", ".join(SOLVERS),
    }


def _weights(source: str) -> dict[str, Any]:
    from steerdiff.guidance.loading import locate
    from steerdiff.guidance.noisy_classifier import hash_of
    from steerdiff.models.checkpoint import read_header
    from steerdiff.models.published.assembly import open_published, weight_files

    path = locate(source)
    file = open_published(path)
    files = weight_files(file.path)
    split = ", ".join(f"{part} {count:,}" for part, count in _parts(file).items())
    own = "steerdiff" in file.metadata
    return {
        "file": str(path),
        "size": f"{sum(item.stat().st_size for item in files) / 2**20:.1f} MiB",
        "sha256": hash_of(files),
        "tensors": f"{len(file.entries):,}, of {', '.join(sorted({str(e.dtype)[6:] for e in file.entries.values()}))}",
        "parameters": split,
        **({key: _short(value) for key, value in read_header(path).items()} if own else _layout(file)),
    }


def _parts(file: WeightFile) -> dict[str, int]:
    """Return how many numbers each part has: by the layout, or in our own files by the first name."""
    from steerdiff.models.published.layouts import recognise

    if "steerdiff" not in file.metadata:
        views = {name: part.view(file).entries for name, part in recognise(file).parts.items()}
        return {name: sum(math.prod(entry.shape) for entry in entries.values()) for name, entries in views.items()}
    parts: dict[str, int] = {}
    for name, entry in file.entries.items():
        part = name.split(".")[0]
        parts[part] = parts.get(part, 0) + math.prod(entry.shape)
    return parts if len(parts) < 5 else {"all": sum(parts.values())}


def _layout(file: WeightFile) -> dict[str, Any]:
    """Return what the names of published tensors tell."""
    from steerdiff.models.published.guess import fitting
    from steerdiff.models.published.layouts import recognise

    layout = recognise(file)
    numbers = {name: value for name, value in file.values.items() if "." not in name}
    return {
        "layout": f"{layout.kind}, with {', '.join(layout.parts)}",
        "presets of its shape": ", ".join(fitting(file, layout)) or "none; give its configuration as config",
        **({"beside the tensors": _short(numbers)} if numbers else {}),
    }


def _image(path: Path) -> dict[str, Any]:
    from steerdiff.io import read_settings

    settings = read_settings(path)
    settings.pop("batch", None)
    inputs = {name: item.get("path") for name, item in settings.pop("inputs", {}).items()}
    flat = {key: _short(value) for key, value in settings.items()}
    return {"file": str(path), **flat, **({"inputs": _short(inputs)} if inputs else {})}


def _tensors(source: str) -> None:
    from steerdiff.guidance.loading import locate
    from steerdiff.models.published.assembly import open_published

    for name, entry in open_published(locate(source)).entries.items():
        print(f"{name}  {list(entry.shape)}  {str(entry.dtype).removeprefix('torch.')}")


def _short(value: Any, longest: int = 1200) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_short(item, 200)}" for key, item in value.items())
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= longest else f"{text[:longest]}..."


def _table(rows: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, str(value))
    Console(markup=False, highlight=False).print(table)

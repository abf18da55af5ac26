"""``steerdiff info``: what is installed, and what a file of weights or an image holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from .arguments import parse

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
    from steerdiff.samplers import SOLVERS

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "steerdiff": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "cuda": ", ".join(devices) or "none",
        "weights": ", ".join(SHIPPED),
        "methods": ", ".join(METHODS),
        "solvers": ", ".join(SOLVERS),
    }


def _weights(source: str) -> dict[str, Any]:
    from steerdiff.guidance.loading import locate
    from steerdiff.models.checkpoint import file_hash, read_header

    path = _file(locate(source))
    header = read_header(path)
    shapes = _shapes(path)
    parts: dict[str, int] = {}
    for name, shape in shapes.items():
        part = name.split(".")[0]
        parts[part] = parts.get(part, 0) + _count(shape)
    split = ", ".join(f"{part} {count:,}" for part, count in parts.items())
    facts = {
        "file": str(path),
        "size": f"{path.stat().st_size / 2**20:.1f} MiB",
        "sha256": file_hash(path),
        "parameters": f"{sum(parts.values()):,}" + (f" ({split})" if len(parts) < 5 else ""),
    }
    return {**facts, **{key: _short(value) for key, value in header.items()}}


def _image(path: Path) -> dict[str, Any]:
    from steerdiff.io import read_settings

    settings = read_settings(path)
    settings.pop("batch", None)
    inputs = {name: item.get("path") for name, item in settings.pop("inputs", {}).items()}
    flat = {key: _short(value) for key, value in settings.items()}
    return {"file": str(path), **flat, **({"inputs": _short(inputs)} if inputs else {})}


def _file(path: Path) -> Path:
    from steerdiff.guidance.loading import RUN_FILES

    return next((path / name for name in RUN_FILES if (path / name).is_file()), path) if path.is_dir() else path


def _shapes(path: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _tensors(source: str) -> None:
    from steerdiff.guidance.loading import locate

    for name, shape in _shapes(_file(locate(source))).items():
        print(f"{name}  {shape}")


def _count(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


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

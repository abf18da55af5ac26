"""Find weights by name or path and read them: one row of a table for each format."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from steerdiff.errors import UserError, require
from steerdiff.models.checkpoint import file_hash, load_into, read_header, read_safetensors
from steerdiff.models.config import UNetConfig, config_from_dict
from steerdiff.models.text import TextConfig
from steerdiff.models.text_to_image import TextToImage
from steerdiff.models.unet import UNet
from steerdiff.samplers import NoiseSchedule

__all__ = ["FORMATS", "KINDS", "SHIPPED", "Format", "locate", "read_fields"]

#: Weights that come with the library, by name: files in ``steerdiff.assets``.
SHIPPED = {"emoji64": "weights/emoji64.safetensors"}

#: Where the weights of a training run are.
RUN_FILES = ("weights.safetensors",)

Fields = dict[str, Any]


def locate(source: str | os.PathLike[str]) -> Path:
    """Return the file or folder that ``source`` names: shipped weights, a file, or a folder.

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
    return path


def read_fields(source: str | os.PathLike[str], config: Any = None) -> Fields:
    """Return the fields of a `Model` read from ``source`` by the first format that recognises it.

    Raises:
        UserError: Nothing is there, no format fits, or the weights are damaged or of another architecture.
    """
    path = locate(source)
    for form in FORMATS:
        if form.recognises(path):
            return form.read(path, config)
    formats = "; ".join(form.description for form in FORMATS)
    raise UserError(f"'{path}' is in no format that steerdiff reads ({formats})")


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one kind of weights is recognised and read."""

    description: str  #: what a user calls it
    recognises: Callable[[Path], bool]  #: looks at the name only, or at the first bytes
    read: Callable[[Path, Any], Fields]  #: gives the fields of a `Model`


def _is_safetensors(path: Path) -> bool:
    return path.is_file() and path.suffix == ".safetensors"


def _read_own(path: Path, config: Any) -> Fields:
    require(config is None, f"'{path}' holds its own configuration; leave config out")
    header = read_header(path)
    kind = str(header.get("kind"))
    require(kind in KINDS, f"'{path}' holds a model of kind '{kind}'; steerdiff.load reads {', '.join(KINDS)}")
    missing = [name for name in ("unet", "schedule", "parameterization", "image_size") if name not in header]
    require(not missing, f"the header of '{path}' lacks {', '.join(missing)}; fetch or save the file again")
    unet = config_from_dict(UNetConfig, header["unet"], f"the header of '{path}'")
    parts = KINDS[kind](path, header, unet)
    learned = unet.out_channels == 2 * unet.in_channels
    return {
        **parts,
        "schedule": NoiseSchedule.from_dict(header["schedule"]),
        "parameterization": header["parameterization"],
        "learns_variance": header.get("learns_variance", learned),
        "image_size": header["image_size"],
        "channels": unet.in_channels,
        "num_classes": unet.num_classes,
        "time_scale": header.get("time_scale", 1.0),
        "name": header.get("name", path.stem),
        "weights_hash": file_hash(path),
    }


def _text_to_image(path: Path, header: Mapping[str, Any], unet: UNetConfig) -> Fields:
    require("text" in header, f"the header of '{path}' lacks text; fetch or save the file again")
    text = config_from_dict(TextConfig, header["text"], f"the header of '{path}'")
    bundle = TextToImage(unet, text)
    load_into(bundle, read_safetensors(path), f"'{path}'")
    return {"network": bundle.unet, "text": bundle.text}


def _unconditional(path: Path, header: Mapping[str, Any], unet: UNetConfig) -> Fields:
    network = UNet(unet)
    load_into(network, read_safetensors(path), f"'{path}'")
    return {"network": network}


#: What a file of our own format may hold: the ``kind`` of its header.
KINDS: dict[str, Callable[[Path, Mapping[str, Any], UNetConfig], Fields]] = {
    "text-to-image": _text_to_image,
    "unet": _unconditional,
}


def _run_file(path: Path) -> Path | None:
    if not path.is_dir():
        return None
    return next((path / name for name in RUN_FILES if (path / name).is_file()), None)


def _read_run(path: Path, config: Any) -> Fields:
    file = _run_file(path)
    require(file is not None, f"'{path}' holds none of {', '.join(RUN_FILES)}; give a run of steerdiff train")
    return _read_own(Path(str(file)), config)


#: Tried in this order; the formats of other projects are further rows.
FORMATS: tuple[Format, ...] = (
    Format(description="a .safetensors file of steerdiff", recognises=_is_safetensors, read=_read_own),
    Format(description="a folder of `steerdiff train`", recognises=Path.is_dir, read=_read_run),
)

"""Every way to say what a published model is, turned into a `PublishedModel`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerdiff.errors import UserError, require
from steerdiff.models.weights import WeightFile

from .flags import from_flags, parse_command_line
from .guess import as_stored, fitting, guess
from .json_files import beside, from_folder, from_json
from .layouts import Layout, own_header, recognise
from .presets import preset
from .spec import PublishedModel
from .yaml_files import from_yaml

__all__ = ["published_model"]

#: Families by the layout of their files. A CompVis file may also hold a UNet only.
_FAMILIES = {
    "adm": ("adm", "classifier"),
    "classifier": ("adm", "classifier"),
    "ddpm": ("ddpm",),
    "compvis": ("latent",),
    "diffusers": ("latent",),
    "openclip": ("clip",),
    "hf-clip": ("clip",),
    "openai-clip": ("clip",),
}


def published_model(config: Any = None, file: WeightFile | None = None, layout: Layout | None = None) -> PublishedModel:
    """Return what a published model is made of.

    Args:
        config: A preset's name; a `PublishedModel`; the published flags as a mapping or as one command line; the path
            of a CompVis or ermongroup YAML, of a ``config.json`` or of a folder of diffusers; None where the file (or
            the ``config.json`` beside it) says everything.
        file: The weights, opened by `open_published`; what they hold of the model decides about its parts.
        layout: What `recognise` says of the file; it is called where this is None.

    Raises:
        UserError: The configuration is unknown or does not belong to the file, or something is left open.
    """
    if file is None:
        require(config is not None, "config is None and there is no file; name a preset, or give a configuration")
        return _described(config, None)
    layout = recognise(file) if layout is None else layout
    header = own_header(file)
    if header is not None:
        require(config is None, f"{file.path} holds its own configuration; leave config out")
        return PublishedModel.from_dict(header["model"])
    description = beside(file.path) if layout.kind in ("diffusers", "hf-clip") else None
    if config is None and description is None:
        return as_stored(guess(file, layout), file, layout)
    model = _described(description if config is None else config, _classes(file, layout))
    if model.family in _FAMILIES[layout.kind]:
        stored = as_stored(model, file, layout)
        if any(getattr(stored, name) is not None for name in layout.parts):
            return stored
    names = fitting(file, layout)
    advice = f"presets of its shape are {', '.join(names)}" if names else "give the configuration it was made with"
    holds = ", ".join(layout.parts)
    raise UserError(
        f"{file.path} is of the layout {layout.kind} (it holds {holds}), but config describes a model of the family "
        f"{model.family}; {advice}"
    )


def _described(config: Any, classes: int | None) -> PublishedModel:
    if isinstance(config, PublishedModel):
        return config
    if isinstance(config, Mapping):
        is_model = "family" in config
        return PublishedModel.from_dict(config) if is_model else from_flags(config, classes=classes)
    if isinstance(config, str) and "--" in config:
        return from_flags(parse_command_line(config), classes=classes)
    if isinstance(config, (str, os.PathLike)):
        return _of_path(Path(config)) if _is_path(config) else preset(str(config)).model
    raise UserError(
        f"config is a {type(config).__name__}; give a preset's name, flags as a mapping or one string, or the path of "
        "a configuration"
    )


def _is_path(config: str | os.PathLike[str]) -> bool:
    name = os.fspath(config)
    return name.lower().endswith((".yaml", ".yml", ".json")) or os.sep in name or Path(name).exists()


def _of_path(path: Path) -> PublishedModel:
    require(path.exists(), f"config names {path}, which does not exist; check the path, or name a preset")
    if path.is_dir():
        own = path / "config.json"
        return from_json(own) if own.is_file() else from_folder(path)
    return from_json(path) if path.suffix.lower() == ".json" else from_yaml(path)


def _classes(file: WeightFile, layout: Layout) -> int | None:
    """Return the number of labels that an ADM network or a classifier has, which no flag says."""
    for name, key in (("unet", "label_emb.weight"), ("classifier", "out.2.c_proj.weight")):
        entries = layout.parts[name].view(file).entries if name in layout.parts else {}
        if key in entries:
            return entries[key].shape[0]
    return None

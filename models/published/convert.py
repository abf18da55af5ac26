"""Published models from one way of storing them to another: single file, folder of diffusers, steerdiff's own."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from steerdiff.errors import UserError, require, warn
from steerdiff.models.checkpoint import FORMAT
from steerdiff.models.text_config import BertTextConfig, ClipTextConfig
from steerdiff.models.weights import (
    Entry,
    Group,
    KeyMap,
    Origin,
    WeightFile,
    check_fit,
    read_ours,
    write_safetensors,
)

from .assembly import blank, keymap_of, open_published, parts, preset_name, reads_averaged
from .configs import published_model
from .folder_files import check_folder, write_text_files
from .guess import MEANING_KEY
from .layouts import OWN_KIND, Layout, Names, Part, recognise
from .spec import PublishedModel

__all__ = ["Form", "Target", "convert"]

#: How a model is stored: in one file under its published names, as a folder of diffusers, or as steerdiff does.
Form = Literal["single-file", "folder", "steerdiff"]

_FOLDER = {"unet": "unet", "autoencoder": "vae", "text": "text_encoder"}
_STEMS = {"unet": "diffusion_pytorch_model", "autoencoder": "diffusion_pytorch_model", "text": "model"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """What `convert` writes."""

    to: Form = "steerdiff"  #: how the model is stored
    dtype: torch.dtype | None = None  #: floating-point type of the tensors; None keeps each as it is
    overwrites: bool = False  #: replace what is there


def convert(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    target: Target | None = None,
    *,
    config: Any = None,
    ema: bool | None = None,
) -> PublishedModel:
    """Store a published model in another way, reading and writing one tensor after another.

    What the new form has no place for is left out with a warning: of Stable Diffusion 2.x a folder holds neither the
    last text block nor the projection, and a single file made of a folder lacks them. Everything else comes back equal.

    Args:
        source: A published file or folder, or one of steerdiff's.
        path: The file or folder to write.
        target: How; None is steerdiff's own format.
        config: What the source is, as for `published_model`, where it does not say so.
        ema: Take the averaged weights where a file holds both; None is what the authors of a preset sample with.

    Returns:
        What was written.

    Raises:
        UserError: The source is unknown or does not fit, the form has no place for the model, something is at ``path``
            already, or the disk is full.
    """
    target, path = target or Target(), Path(path)
    require(target.to in get_args(Form), f"to is {target.to!r}; known are {', '.join(get_args(Form))}")
    there = path.exists() and not target.overwrites
    require(not there, f"{path} exists already; choose another name, or allow it to be replaced (--force)")
    file = open_published(source)
    layout = recognise(file)
    model = published_model(config, file, layout)
    averaged = reads_averaged(config, file, layout, ema)
    sources = parts(model, file, layout, ema=averaged)
    for module, keymap, view in sources.values():
        check_fit(module.state_dict(), view, keymap, source=str(source))
    stored = _stored(model, target.to)
    _warn(model, stored, layout, target, ema=averaged)
    groups = {name: _groups(stored, name, sources[name], target) for name in sources}
    if target.to == "folder":
        _write_folder(path, stored, groups)
    else:
        _write_file(path, stored, target.to, groups, preset_name(config, file))
    return stored


Sources = tuple[nn.Module, KeyMap, WeightFile]


def _stored(model: PublishedModel, to: Form) -> PublishedModel:
    """Return what ``to`` has a place for of ``model``."""
    if to != "folder":
        return model
    check_folder(model)
    text = model.text
    if not isinstance(text, ClipTextConfig):
        return model
    read = text.layers - (1 if text.reads == "penultimate" else 0)
    kept = dataclasses.replace(text, layers=read, reads="last", projection=None, undoes_html=False)
    return dataclasses.replace(model, text=kept)


def _warn(model: PublishedModel, stored: PublishedModel, layout: Layout, target: Target, *, ema: bool) -> None:
    """Say what is left out, and what the new file does not say about itself."""
    old, new = model.text, stored.text
    lost = []
    if isinstance(old, ClipTextConfig) and isinstance(new, ClipTextConfig) and old != new:
        lost += [f"text block {old.layers - 1}, which is never read,"] if old.layers != new.layers else []
        lost += ["the text projection"] if old.projection != new.projection else []
    if lost:
        warn(f"a folder has no place for {' and '.join(lost)}; they are left out")
    shortened = isinstance(old, ClipTextConfig) and old.activation == "gelu" and old.reads == "last"
    if target.to == "single-file" and layout.kind == "diffusers" and shortened:
        warn(
            "the folder holds no text block after those that are read and no projection, so the single file has none "
            "either; steerdiff reads it, other programs may not"
        )
    if layout.parts.get("unet", Part("")).ema is not None:
        kept = "averaged" if ema else "plain, not the averaged,"
        warn(f"the source holds two sets of weights of the UNet; the {kept} ones are kept")
    if model.inputs == "depth" and target.to != "steerdiff":
        warn("the network that estimates depth is not part of the model and is left out")


def _part(model: PublishedModel, name: str, to: Form) -> Part:
    """Return where a part lies in the new form, and how it is named there."""
    if to == "steerdiff":
        return Part(f"{name}.")
    if to == "folder":
        return Part("", "hf" if name == "text" else "diffusers")
    if model.family == "latent":
        prefix, names = _single(model) if name == "text" else ("", "ours")
        start = {"unet": "model.diffusion_model.", "autoencoder": "first_stage_model.", "text": "cond_stage_model."}
        return Part(start[name] + prefix, names)
    return Part("", "ddpm" if model.family == "ddpm" else "ours")


def _single(model: PublishedModel) -> tuple[str, Names]:
    """Return what follows ``cond_stage_model.`` in a CompVis file, and how the names go on."""
    text = model.text
    if isinstance(text, ClipTextConfig):
        return ("model.", "ours") if text.activation == "gelu" else ("transformer.", "hf")
    return ("transformer.", "bert") if isinstance(text, BertTextConfig) else ("", "ours")


def _groups(model: PublishedModel, name: str, source: Sources, target: Target) -> list[Group]:
    """Return what is written for one part: for each of our tensors, the published ones it becomes."""
    _, origins, view = source
    part = _part(model, name, target.to)
    module = blank(model, name)
    places = keymap_of(model, name, part, module)
    groups = []
    for key, tensor in module.state_dict().items():
        shape, place = tuple(tensor.shape), places[key]
        types = [view.entries[old].dtype for old in origins[key].names]
        kept = functools.reduce(torch.promote_types, types)
        dtype = target.dtype if target.dtype is not None and kept.is_floating_point else kept
        named = zip(place.names, place.shapes(shape), strict=True)
        entries = {part.prefix + new: Entry(tuple(size), dtype) for new, size in named}
        make = functools.partial(_make, view, origins[key], place, shape, dtype)
        groups.append(Group(entries, make))
    return groups


def _make(view: WeightFile, origin: Origin, place: Origin, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    return list(place.backward(read_ours(view, origin, shape).to(dtype)))


def _write_file(
    path: Path, model: PublishedModel, to: Form, groups: Mapping[str, Sequence[Group]], preset: str | None
) -> None:
    require(not path.is_dir(), f"{path} is a folder; give the name of a file")
    metadata = {"format": "pt"}
    if to == "steerdiff":
        header = {"format": FORMAT, "kind": OWN_KIND, "model": model.to_dict(), "preset": preset}
        metadata["steerdiff"] = json.dumps(header, sort_keys=True)
    elif model.family == "latent" and model.parameterization != "x0":
        metadata[MEANING_KEY] = {"eps": "epsilon", "v": "v"}[model.parameterization]
    extra = _scale(model) if to == "single-file" else ()
    write_safetensors(path, [*(group for part in groups.values() for group in part), *extra], metadata)


def _scale(model: PublishedModel) -> Iterator[Group]:
    """Yield the scale of the latents, where a single file needs to say it."""
    usual = {"kl": 0.18215, "vq": 1.0}
    stage = model.autoencoder
    if stage is not None and stage.scale_factor != usual[stage.kind]:
        value = torch.tensor(stage.scale_factor, dtype=torch.float32)
        yield Group({"scale_factor": Entry((), torch.float32)}, lambda: [value])


def _write_folder(path: Path, model: PublishedModel, groups: Mapping[str, Sequence[Group]]) -> None:
    """Build the folder beside its place and move it there when it is whole."""
    require(path.is_dir() or not path.exists(), f"{path} is a file; give the name of a folder")
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    try:
        temporary.mkdir()
        for name, part in groups.items():
            folder = temporary / _FOLDER[name]
            folder.mkdir()
            write_safetensors(folder / f"{_STEMS[name]}.safetensors", part, {"format": "pt"})
        write_text_files(temporary, model)
        _replace(temporary, path)
    except UserError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written ({reason}); check that its folder exists and has space") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(new: Path, path: Path) -> None:
    """Put a folder in the place of another, which is kept until then."""
    if not path.exists():
        new.rename(path)
        return
    old = path.parent / f".{path.name}.{os.getpid()}.old"
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old)

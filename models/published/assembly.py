"""From a published file and a description of its model to networks without memory and the maps that fill them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steerdiff.errors import UserError, require
from steerdiff.models.autoencoder import Autoencoder
from steerdiff.models.bert_text import BertText
from steerdiff.models.class_context import ClassContext
from steerdiff.models.clip_text import ClipText
from steerdiff.models.encoder_unet import EncoderUNet
from steerdiff.models.text_config import BertTextConfig, ClipTextConfig
from steerdiff.models.unet import UNet
from steerdiff.models.weights import KeyMap, Origin, WeightFile, identity, joined, open_weights

from .layouts import Layout, Part, own_header, unused
from .part_names import diffusers_vae_keymap, hf_clip_keymap, hf_text_keymap
from .presets import PRESETS
from .spec import PublishedModel, TextConfigs
from .unet_names import ddpm_keymap, diffusers_unet_keymap

__all__ = [
    "FOLDER_PARTS",
    "blank",
    "keymap_of",
    "open_published",
    "parts",
    "preset_name",
    "reads_averaged",
    "weight_files",
]

#: Subfolders of diffusers that hold weights read here.
FOLDER_PARTS = ("unet", "vae", "text_encoder")
#: Names of weights in a folder, the first found is taken: whole precision before half, safe files before pickles.
_WEIGHTS = tuple(
    f"{stem}{variant}{suffix}"
    for variant, suffixes in (
        ("", (".safetensors", ".safetensors.index.json", ".bin")),
        (".fp16", (".safetensors", ".bin")),
    )
    for suffix in suffixes
    for stem in (("pytorch_model",) if suffix == ".bin" else ("model",)) + ("diffusion_pytorch_model",)
)


def open_published(path: str | os.PathLike[str]) -> WeightFile:
    """Open a published file, or a folder of diffusers as one file whose names begin with ``unet.``, ``vae.``, ...

    Raises:
        UserError: There are no weights, several that could be meant, or they are damaged.
    """
    path = Path(path)
    if not path.is_dir():
        return open_weights(path)
    found = {f"{file.parent.name}.": open_weights(file) for file in weight_files(path)}
    if found:
        return dataclasses.replace(joined(found), path=path)
    named = _weights_in(path)
    alone = [file for file in sorted(path.iterdir()) if file.suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin")]
    if named is None and len(alone) == 1:
        named = alone[0]
    if named is None:
        what = f"has {len(alone)} files of weights" if alone else "has no weights"
        raise UserError(
            f"the folder {path} {what}; give a file, or a folder of diffusers with unet/, vae/, text_encoder/"
        )
    return open_weights(named)


def weight_files(path: Path) -> tuple[Path, ...]:
    """Return the files that are read of ``path``: itself, or those of the parts of a folder of diffusers."""
    if not path.is_dir():
        return (path,)
    inside = [_weights_in(path / part) for part in FOLDER_PARTS]
    return tuple(file for file in inside if file is not None)


def preset_name(config: Any, file: WeightFile) -> str | None:
    """Return the preset that a configuration names, or that a file of our own was converted with; None without."""
    named = (own_header(file) or {}).get("preset") if config is None else config
    return named if isinstance(named, str) and named in PRESETS else None


def reads_averaged(config: Any, file: WeightFile, layout: Layout, ema: bool | None) -> bool:
    """Return whether to read averaged weights: as asked, or as the authors of a preset do where the file has both."""
    if ema is not None:
        return ema
    name, has_both = preset_name(config, file), "unet" in layout.parts and layout.parts["unet"].ema is not None
    return has_both and name is not None and bool(PRESETS[name].sampling.get("ema"))


def parts(
    model: PublishedModel, file: WeightFile, layout: Layout, *, ema: bool = False
) -> dict[str, tuple[nn.Module, KeyMap, WeightFile]]:
    """Return for each part that ``model`` has the network on the meta device, its map of names, and its tensors.

    Args:
        model: What the file holds, as `published_model` says it.
        file: The opened file or folder.
        layout: What `recognise` said of it.
        ema: Take the averaged weights of the UNet where a CompVis file holds both.

    Raises:
        UserError: The file has tensors that belong nowhere, lacks a part, or has no averaged weights.
    """
    names = unused(file, layout)
    more = ", ..." if len(names) > 3 else ""
    require(not names, f"{file.path} has {len(names)} tensors of no known use: {', '.join(names[:3])}{more}")
    result = {}
    for name in ("unet", "classifier", "autoencoder", "text", "clip"):
        if getattr(model, name) is None:
            continue
        require(name in layout.parts, f"{file.path} holds no {name}; it has {', '.join(layout.parts)}")
        part = layout.parts[name]
        averaged = ema and name == "unet"
        has_both = part.ema is not None
        require(has_both or not averaged, f"{file.path} holds no averaged weights beside its own; leave ema out")
        view = part.view(file, ema=averaged)
        module = _blank_for(model, name, view)
        result[name] = (module, keymap_of(model, name, part, module, ema=averaged), view)
    return result


def _blank_for(model: PublishedModel, name: str, view: WeightFile) -> nn.Module:
    """Return the network of a part; a description that no file of this size can have, or no network, is an error."""
    layers = _layers(dataclasses.asdict(getattr(model, name)))
    fits = layers <= len(view.entries)
    require(fits, f"the description of the {name} asks for {layers} layers, but {view.path} has fewer tensors for it")
    try:
        return blank(model, name)
    except (RuntimeError, TypeError, OverflowError, AssertionError, KeyError) as error:
        raise UserError(f"the description of the {name} for {view.path} makes no network: {error}") from error


def _layers(values: Mapping[str, Any]) -> int:
    """Return a lower bound of the number of layers that a configuration asks for."""
    count = 1
    for name, value in values.items():
        if isinstance(value, Mapping):
            count = max(count, _layers(value))
        elif name in ("num_res_blocks", "transformer_depth", "layers") and isinstance(value, int):
            count *= max(1, value)
        elif name in ("channel_mult", "layers") and isinstance(value, Sequence):
            count *= max(1, len(value))
    return count


def blank(model: PublishedModel, name: str) -> nn.Module:
    """Return the network of a part on the meta device, which takes no memory."""
    makers: dict[str, Callable[[Any], nn.Module]] = {
        "unet": UNet,
        "classifier": EncoderUNet,
        "autoencoder": Autoencoder,
        "text": _text,
        "clip": _clip,
    }
    with torch.device("meta"):
        return makers[name](getattr(model, name))


def keymap_of(model: PublishedModel, name: str, part: Part, module: nn.Module, *, ema: bool = False) -> KeyMap:
    """Return where the tensors of a part come from, by the names that the layout gives it.

    Args:
        model: What the part belongs to.
        name: "unet", "classifier", "autoencoder", "text" or "clip".
        part: How the layout names it.
        module: The network.
        ema: The names of averaged weights, which have no dots.
    """
    config: Any = getattr(model, name)
    keys: Iterable[str] = module.state_dict()
    if ema:
        return {key: Origin((key.replace(".", ""),)) for key in keys}
    if name == "unet" and part.names != "ours":
        return ddpm_keymap(config) if part.names == "ddpm" else diffusers_unet_keymap(config)
    if name == "autoencoder" and part.names != "ours":
        return diffusers_vae_keymap(config, old_names=part.names == "diffusers-old")
    if name == "text" and part.names in ("hf", "hf-bare"):
        return hf_text_keymap(config, prefix="text_model." if part.names == "hf" else "")
    if name == "clip" and part.names == "hf":
        return hf_clip_keymap(config)
    return identity(keys)


def _text(config: TextConfigs) -> nn.Module:
    if isinstance(config, ClipTextConfig):
        return ClipText(config)
    return BertText(config) if isinstance(config, BertTextConfig) else ClassContext(config)


def _clip(config: Any) -> nn.Module:
    from steerdiff.models.clip import build_clip  # it imports this folder, for the configuration

    clip: nn.Module = build_clip(config)
    return clip


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)

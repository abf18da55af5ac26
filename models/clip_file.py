"""Files of whole CLIPs: OpenAI's TorchScript archives, open_clip's state dicts and transformers' ``CLIPModel``."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch

from steerdiff.errors import require

from .checkpoint import read_header
from .clip import ASK_GELU, Clip, build_clip, clip_config
from .config import config_from_dict
from .published.layouts import Part, recognise
from .published.part_names import hf_clip_keymap
from .published.presets import PRESETS
from .published.shapes import clip_facts
from .published.spec import ClipConfig
from .weights import WeightFile, fill, open_weights

__all__ = ["load_clip", "read_own_clip"]

HEAD_WIDTH = 64  # of every tower but the vision transformers of H, g and bigG
WIDEST = 1280  # ViT-H, whose heads are known; those of wider vision transformers are not


def load_clip(
    path: str | os.PathLike[str],
    architecture: str | ClipConfig | None = None,
    *,
    quick_gelu: bool | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Clip:
    """Return the CLIP of a file; nothing in the file is run.

    Args:
        path: OpenAI's ``.pt``, a state dict of open_clip or a training checkpoint of it (``.pt``, ``.safetensors``),
            a ``CLIPModel`` of transformers, or one that was trained here.
        architecture: A name of open_clip's such as "ViT-H-14", a preset such as "clip-vit-h-14", or a configuration;
            None where the shapes tell.
        quick_gelu: The activation, which no shape tells: True for OpenAI's weights, mostly False for others. Not needed
            for OpenAI's own archives, nor where ``architecture`` says it.
        device: Where the weights go.
        dtype: Their floating-point type.

    Raises:
        UserError: The file is damaged or no CLIP, does not fit, or does not tell what has to be known.
    """
    file = open_weights(path)
    if "steerdiff" in file.metadata:
        require(architecture is None and quick_gelu is None, f"{path} holds its own configuration; give nothing else")
        return read_own_clip(file, read_header(path), device=device, dtype=dtype)
    layout = recognise(file)
    require("clip" in layout.parts, f"{path} is no CLIP but of the layout {layout.kind}; give the weights of a CLIP")
    if layout.kind == "openai-clip":
        require(quick_gelu is not False, f"{path} is OpenAI's, which has the quick GELU; leave quick_gelu out")
        quick_gelu = True
    part = layout.parts["clip"]
    file = part.view(file)
    config = _named(architecture, quick_gelu) if architecture is not None else _inferred(file, part, quick_gelu)
    with torch.device("meta"):
        clip = build_clip(config)
    keymap = hf_clip_keymap(config) if part.names == "hf" else None
    fill(clip, file, keymap, source=str(path), dtype=dtype, device=device)
    preset = architecture if isinstance(architecture, str) else file.path.stem
    return Clip(network=clip.to(device), config=config, name=preset, files=(file.path,))


def read_own_clip(
    file: WeightFile,
    header: Mapping[str, Any],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Clip:
    """Return the CLIP of a file that was written here.

    Args:
        file: The file.
        header: What its header says.
        device: Where the weights go.
        dtype: Their floating-point type.

    Raises:
        UserError: It holds something else, or weights that do not fit it.
    """
    kind = header.get("kind")
    require(kind == "clip", f"{file.path} holds a model of kind '{kind}', no CLIP; give the weights of a CLIP")
    missing = [name for name in ("clip", "words") if name not in header]
    require(not missing, f"the header of '{file.path}' lacks {', '.join(missing)}; fetch or save the file again")
    config: ClipConfig = config_from_dict(ClipConfig, header["clip"], f"the header of '{file.path}'")
    with torch.device("meta"):
        network = build_clip(config)
    fill(network, file, source=f"'{file.path}'", dtype=dtype, device=device)
    words = header["words"]
    return Clip(
        network=network.to(device).eval(),
        config=config,
        words=None if words is None else tuple(words),
        name=header.get("name", file.path.stem),
        files=(file.path,),
    )


def _named(architecture: str | ClipConfig, quick_gelu: bool | None) -> ClipConfig:
    """Return the configuration that the caller names, whose activation must not contradict ``quick_gelu``."""
    preset = PRESETS.get(architecture) if isinstance(architecture, str) else None
    config = architecture if isinstance(architecture, ClipConfig) else preset.model.clip if preset else None
    if config is None:
        return clip_config(str(architecture), quick_gelu=quick_gelu)
    fits = quick_gelu in (None, config.quick_gelu)
    require(fits, f"quick_gelu is {quick_gelu}, but the architecture has {config.quick_gelu}; leave one of them out")
    return config


def _inferred(file: WeightFile, part: Part, quick_gelu: bool | None) -> ClipConfig:
    """Return the configuration that the shapes tell."""
    is_hf = part.names == "hf"
    needed = (
        "text_projection.weight" if is_hf else "text_projection",
        "text_model.embeddings.token_embedding.weight" if is_hf else "token_embedding.weight",
        "vision_model.embeddings.patch_embedding.weight" if is_hf else "visual.conv1.weight",
    )
    missing = [name for name in needed if name not in file.entries]
    unknown = f"{file.path} is no CLIP that steerdiff knows: it has no {', '.join(missing)}; name its architecture"
    require(not missing, unknown)
    config = clip_facts(file.entries, part.names)
    vision, is_vit = config.vision_cfg, isinstance(config.vision_cfg["layers"], int)
    widths = [config.text_cfg["width"], *([vision["width"]] if is_vit else [])]
    require(
        not any(width % HEAD_WIDTH for width in widths) and not (is_vit and vision["width"] > WIDEST),
        f"{file.path} has towers of width {' and '.join(map(str, widths))}, which do not tell their number of heads; "
        "name its architecture, such as ViT-g-14, or give a ClipConfig",
    )
    require(quick_gelu is not None, f"{file.path} does not tell its activation; {ASK_GELU}")
    return dataclasses.replace(config, quick_gelu=bool(quick_gelu))

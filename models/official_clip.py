"""Configurations of CLIPs and their text towers from those of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steerdiff.errors import require

from .published.spec import ClipConfig
from .text_config import ClipTextConfig

__all__ = ["hf_clip_config", "hf_text_config"]

#: What the names of transformers are here, and what they are where they are not given.
TEXT = {
    "vocab_size": ("vocab_size", 49408),
    "max_position_embeddings": ("length", 77),
    "hidden_size": ("width", 512),
    "num_attention_heads": ("heads", 8),
    "num_hidden_layers": ("layers", 12),
    "hidden_act": ("activation", "quick_gelu"),
}
VISION = {"image_size": 224, "patch_size": 32, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}


def hf_text_config(config: Mapping[str, Any], *, projects: bool = False) -> ClipTextConfig:
    """Return the text tower of a ``CLIPTextConfig`` of transformers (``text_encoder/config.json``).

    Its other entries say nothing about the network in use, or nothing true (the ids of marks), and are passed over.

    Args:
        config: Entries under their published names.
        projects: Whether the tower ends in a projection, as ``CLIPTextModelWithProjection`` does.

    Raises:
        UserError: An entry asks for something that does not exist here.
    """
    _check_fixed(config)
    values = {ours: config.get(name, default) for name, (ours, default) in TEXT.items()}
    hidden = config.get("intermediate_size", 4 * values["width"])
    require(hidden == 4 * values["width"], f"intermediate_size is {hidden}; only 4 * hidden_size is supported")
    return ClipTextConfig(**values, projection=config.get("projection_dim", 512) if projects else None)


def hf_clip_config(text: Mapping[str, Any], vision: Mapping[str, Any], projection_dim: int = 512) -> ClipConfig:
    """Return the CLIP of a ``CLIPConfig`` of transformers, as open_clip builds it.

    Args:
        text: Its ``text_config``.
        vision: Its ``vision_config``.
        projection_dim: Width of the joint space.

    Raises:
        UserError: An entry asks for something that does not exist here.
    """
    _check_fixed(vision)
    tower = hf_text_config(text)
    activation = vision.get("hidden_act", "quick_gelu")
    require(
        activation == tower.activation,
        f"hidden_act is {activation!r} for images and {tower.activation!r} for texts; only one for both is supported",
    )
    size, patch, width, layers, heads = (vision.get(name, default) for name, default in VISION.items())
    require(width % heads == 0, f"hidden_size {width} does not divide into {heads} heads")
    hidden = vision.get("intermediate_size", 4 * width)
    seen = {"image_size": size, "patch_size": patch, "width": width, "layers": layers, "head_width": width // heads}
    read = {"vocab_size": tower.vocab_size, "context_length": tower.length, "width": tower.width}
    return ClipConfig(
        embed_dim=projection_dim,
        vision_cfg={**seen, "mlp_ratio": (hidden + 0.5) / width},  # open_clip rounds down
        text_cfg={**read, "heads": tower.heads, "layers": tower.layers},
        quick_gelu=activation == "quick_gelu",
    )


def _check_fixed(config: Mapping[str, Any]) -> None:
    eps = config.get("layer_norm_eps", 1e-5)
    require(eps == 1e-5, f"layer_norm_eps is {eps}; only 1e-05 is supported")

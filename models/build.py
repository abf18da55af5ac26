"""Make our networks from an official class's name and constructor arguments, as forks and golden files give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from steerdiff.errors import UserError, require

from .checkpoint import load_into
from .config import UNetConfig
from .unet import UNet

__all__ = ["build", "load_state"]

ADM_CLASS = "UNetModel"
LATENT_CLASSES = ("ldm UNetModel (latent-diffusion)", "ldm UNetModel v1", "ldm UNetModel v2")

RENAMED = {
    "attention_resolutions": "attention_at",
    "num_head_channels": "head_channels",
    "use_scale_shift_norm": "scale_shift_norm",
    "use_linear_in_transformer": "linear_projections",
}
SAME = (
    "in_channels",
    "out_channels",
    "model_channels",
    "channel_mult",
    "num_res_blocks",
    "num_heads",
    "num_heads_upsample",
    "resblock_updown",
    "conv_resample",
    "dropout",
    "num_classes",
    "context_dim",
    "transformer_depth",
)
WITHOUT_EFFECT = ("image_size", "use_checkpoint", "use_fp16", "legacy")  # "legacy" only renames what SD's False means
FIXED = {"dims": 2, "n_embed": None}


def build(official_class: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """Return our network for ``official_class(**kwargs)``, with freshly initialised weights.

    Args:
        official_class: "UNetModel" (guided-diffusion) or one of CompVis' "ldm UNetModel ..." classes.
        kwargs: The official constructor's arguments under their official names; -1 means unset there.

    Raises:
        UserError: The class is not known, or an argument is unknown or asks for something that does not exist here.
    """
    known = (ADM_CLASS, *LATENT_CLASSES)
    require(official_class in known, f"'{official_class}' is not a known network; known are {', '.join(known)}")
    return UNet(unet_config(kwargs))


def unet_config(kwargs: Mapping[str, Any]) -> UNetConfig:
    """Translate the constructor arguments of guided-diffusion's or CompVis' ``UNetModel`` into a ``UNetConfig``."""
    values: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name in FIXED:
            require(value == FIXED[name], f"{name}={value!r} is not supported; only {FIXED[name]!r} is")
        elif name == "use_new_attention_order":
            values["attention_order"] = "new" if value else "legacy"
        elif name == "use_spatial_transformer":
            require(
                bool(value) == (kwargs.get("context_dim") is not None),
                "use_spatial_transformer and context_dim belong together; give both or neither",
            )
        elif name in RENAMED or name in SAME:
            unset = name in ("num_head_channels", "num_heads_upsample", "num_heads") and value == -1
            if not unset:
                values[RENAMED.get(name, name)] = value
        elif name not in WITHOUT_EFFECT:
            raise UserError(f"{name} is not an argument of a known UNet; check the spelling")
    return UNetConfig(**values)


def load_state(network: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Fill ``network`` from a state dict in the layout of the official class; say what does not fit.

    Raises:
        UserError: Keys are missing, left over or of another shape.
    """
    load_into(network, state_dict, "the state dict")

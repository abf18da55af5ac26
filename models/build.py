"""Make our networks from an official class's name and constructor arguments, as forks and golden files give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from steerdiff.errors import require

from .checkpoint import load_into
from .official import unet_config
from .unet import UNet

__all__ = ["build", "load_state", "unet_config"]

ADM_CLASS = "UNetModel"
LATENT_CLASSES = ("ldm UNetModel (latent-diffusion)", "ldm UNetModel v1", "ldm UNetModel v2")


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


def load_state(network: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Fill ``network`` from a state dict in the layout of the official class; say what does not fit.

    Raises:
        UserError: Keys are missing, left over or of another shape.
    """
    load_into(network, state_dict, "the state dict")

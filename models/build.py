"""Make our networks from an official class's name and constructor arguments, as forks and golden files give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from steerdiff.errors import UserError, require

from .autoencoder import Autoencoder
from .clip import build_clip
from .clip_text import ClipText
from .config import config_from_dict
from .encoder_unet import EncoderUNet
from .official import (
    autoencoder_config,
    ddpm_config,
    diffusers_unet_config,
    diffusers_vae_config,
    encoder_config,
    unet_config,
)
from .official_clip import hf_clip_config, hf_text_config
from .published.spec import ClipConfig
from .state import load_state
from .unet import UNet

__all__ = ["build", "load_state", "unet_config"]

Kwargs = Mapping[str, Any]

#: Arguments of CompVis' autoencoders that matter in their training only.
STAGE_TRAINING = ("lossconfig", "ckpt_path", "ignore_keys", "image_key", "colorize_nlabels", "monitor", "use_ema")


def build(official_class: str, kwargs: Kwargs) -> nn.Module:
    """Return our network for ``official_class(**kwargs)``, with freshly initialised weights.

    Args:
        official_class: A key of `BUILDERS`: guided-diffusion's "UNetModel", "SuperResModel" (whose low-resolution image
            is given to `UNet.forward` as ``concat``) and "EncoderUNetModel", one of CompVis' "ldm ..." classes,
            "pytorch_diffusion Model", one of the "diffusers ..." classes, or a CLIP or its text tower.
        kwargs: The official constructor's arguments under their official names; -1 means unset there. For
            "pytorch_diffusion Model" the ``model`` section of its configuration and ``image_size``, for diffusers'
            classes and transformers' text towers what stands in config.json, for its CLIPModel ``text``, ``vision`` and
            ``projection_dim``.

    Raises:
        UserError: The class is not known, or an argument is unknown or asks for something that does not exist here.
    """
    known = ", ".join(BUILDERS)
    require(official_class in BUILDERS, f"'{official_class}' is not a known network; known are {known}")
    return BUILDERS[official_class](kwargs)


def _unet(kwargs: Kwargs) -> nn.Module:
    return UNet(unet_config(kwargs))


def _upsampler(kwargs: Kwargs) -> nn.Module:
    require("in_channels" in kwargs, "SuperResModel lacks in_channels; give the image's, which are doubled here")
    return UNet(unet_config({**kwargs, "in_channels": 2 * kwargs["in_channels"]}))


def _classifier(kwargs: Kwargs) -> nn.Module:
    return EncoderUNet(encoder_config(kwargs))


def _ddpm(kwargs: Kwargs) -> nn.Module:
    require("image_size" in kwargs, "pytorch_diffusion's Model lacks image_size; give it beside the model section")
    model = {name: value for name, value in kwargs.items() if name != "image_size"}
    return UNet(ddpm_config(model, kwargs["image_size"]))


def _first_stage(kwargs: Kwargs) -> nn.Module:
    given = {name: value for name, value in kwargs.items() if name not in STAGE_TRAINING}
    unknown = sorted(set(given) - {"ddconfig", "embed_dim", "n_embed"})
    if unknown or not {"ddconfig", "embed_dim"} <= set(given):
        raise UserError(
            f"an autoencoder was given {', '.join(kwargs) or 'nothing'}; "
            "it takes ddconfig and embed_dim, and n_embed for a codebook"
        )
    return Autoencoder(autoencoder_config(**given))


#: How each official class is made of its arguments.
BUILDERS: dict[str, Callable[[Kwargs], nn.Module]] = {
    "UNetModel": _unet,
    "SuperResModel": _upsampler,
    "EncoderUNetModel": _classifier,
    "ldm UNetModel (latent-diffusion)": _unet,
    "ldm UNetModel v1": _unet,
    "ldm UNetModel v2": _unet,
    "ldm AutoencoderKL": _first_stage,
    "ldm VQModelInterface": _first_stage,
    "pytorch_diffusion Model": _ddpm,
    "diffusers UNet2DConditionModel": lambda config: UNet(diffusers_unet_config(config)),
    "diffusers AutoencoderKL": lambda config: Autoencoder(diffusers_vae_config(config)),
    "CLIPTextModel": lambda config: ClipText(hf_text_config(config)),
    "CLIPTextModelWithProjection": lambda config: ClipText(hf_text_config(config, projects=True)),
    "transformers CLIPModel": lambda configs: build_clip(hf_clip_config(**configs)),
    "open_clip.model.CLIP": lambda config: build_clip(config_from_dict(ClipConfig, config, "open_clip's CLIP")),
}

"""What a published model is made of, said once for every way it may be stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from steerdiff.models.config import AutoencoderConfig, EncoderUNetConfig, UNetConfig
from steerdiff.models.text_config import BertTextConfig, ClassContextConfig, ClipTextConfig

__all__ = ["ClipConfig", "Inputs", "PublishedModel", "TextConfigs"]

TextConfigs = ClipTextConfig | BertTextConfig | ClassContextConfig

#: What a UNet sees beside the noisy image: nothing, a low-resolution image, a mask and the masked image, or depth.
Inputs = Literal["plain", "low_res", "inpainting", "depth"]


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Arguments of open_clip's ``CLIP``."""

    embed_dim: int  #: width of the joint space
    vision_cfg: Mapping[str, Any]  #: open_clip's vision configuration
    text_cfg: Mapping[str, Any]  #: open_clip's text configuration
    quick_gelu: bool = False  #: OpenAI's weights have the quick form


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """The parts of a published model with all that its files of weights do not say. Parts that are None are absent."""

    family: Literal["adm", "ddpm", "classifier", "latent", "clip"]  #: which layouts its files may have
    unet: UNetConfig | None = None  #: the diffusion network
    classifier: EncoderUNetConfig | None = None  #: a noisy classifier
    autoencoder: AutoencoderConfig | None = None  #: the first stage of a latent model
    text: TextConfigs | None = None  #: what makes the text states
    clip: ClipConfig | None = None  #: a whole CLIP
    schedule: Mapping[str, Any] = field(default_factory=lambda: {"name": "linear", "T": 1000})  #: as NoiseSchedule has it
    parameterization: Literal["eps", "x0", "v"] = "eps"  #: what the UNet's first output channels mean
    learns_variance: bool = False  #: the UNet's last output channels are for the variance
    image_size: int = 256  #: height and width of images in pixels
    low_res_size: int | None = None  #: height and width of an upsampler's input
    inputs: Inputs = "plain"  #: what the UNet sees beside the noisy image
    time_scale: float = 1.0  #: factor on t before the network sees it (1000 / T for "rescaled" times)
    null_class: int | None = None  #: label of the unconditional branch, where there is one
    clip_x0: bool = True  #: whether sampling clips x0 to [-1, 1] by default: pixel models of ADM do

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are not None as plain JSON values; ``from_dict`` gives an equal model."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

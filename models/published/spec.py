"""What a published model is made of, said once for every way it may be stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from steerdiff.errors import UserError, require
from steerdiff.models.config import AutoencoderConfig, EncoderUNetConfig, UNetConfig, config_from_dict
from steerdiff.models.text_config import BertTextConfig, ClassContextConfig, ClipTextConfig

__all__ = ["ClipConfig", "Inputs", "Preset", "PublishedModel", "TextConfigs"]

TextConfigs = ClipTextConfig | BertTextConfig | ClassContextConfig

#: What a UNet sees beside the noisy image: nothing, a low-resolution image, a mask and the masked image, or depth.
Inputs = Literal["plain", "low_res", "inpainting", "depth"]


def _usual_schedule() -> dict[str, Any]:
    return {"name": "linear", "T": 1000}


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
    schedule: Mapping[str, Any] = field(default_factory=_usual_schedule)  #: as NoiseSchedule has it
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

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> PublishedModel:
        """Return the model that ``to_dict`` described, also after a way through JSON.

        Raises:
            UserError: A name is unknown, or a value is none of its kind.
        """
        values = dict(data)
        try:
            for name, kind in _PARTS.items():
                if name in values:
                    values[name] = config_from_dict(kind, values[name], f"the {name} of a published model")
            if "classifier" in values:
                trunk = config_from_dict(UNetConfig, values["classifier"]["trunk"], "the trunk of a classifier")
                parts = {**values["classifier"], "trunk": trunk}
                values["classifier"] = config_from_dict(EncoderUNetConfig, parts, "a classifier")
            if "text" in values:
                values["text"] = _text(values["text"])
            model: PublishedModel = config_from_dict(PublishedModel, values, "a published model")
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"a published model is not described as to_dict does it ({error}); save it again"
            ) from error
        return model


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published checkpoint."""

    model: PublishedModel  #: what it is
    files: tuple[str, ...]  #: names under which its weights were published
    description: str  #: one line
    source: str  #: where its authors publish it, and what the facts here were read from
    licence: str | None = None  #: of the weights; None where it is not known here: look at the source
    sampling: Mapping[str, Any] = field(default_factory=dict)  #: what its authors sample it with


_PARTS: dict[str, type[Any]] = {"unet": UNetConfig, "autoencoder": AutoencoderConfig, "clip": ClipConfig}


def _text(values: Mapping[str, Any]) -> TextConfigs:
    """Return the text configuration whose fields these are; no two kinds have the same."""
    kinds: tuple[type[Any], ...] = (ClipTextConfig, BertTextConfig, ClassContextConfig)
    found = [kind for kind in kinds if {entry.name for entry in dataclasses.fields(kind)} == set(values)]
    require(len(found) == 1, f"the text of a published model has the settings {sorted(values)}; save the model again")
    config: TextConfigs = found[0](**values)
    return config

"""Models in the library's own format: safetensors whose header holds the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from steerdiff.errors import require
from steerdiff.models.checkpoint import read_header
from steerdiff.models.clip import Clip
from steerdiff.models.clip_file import read_own_clip
from steerdiff.models.config import EncoderUNetConfig, UNetConfig, config_from_dict
from steerdiff.models.encoder_unet import EncoderUNet
from steerdiff.models.noisy_clip import NoisyClipConfig, build_noisy_clip
from steerdiff.models.published.layouts import OWN_KIND
from steerdiff.models.published.spec import ClipConfig
from steerdiff.models.text import TextConfig
from steerdiff.models.text_to_image import TextToImage
from steerdiff.models.unet import UNet
from steerdiff.models.weights import WeightFile, fill
from steerdiff.samplers import NoiseSchedule

from .model import Model
from .noisy_classifier import NoisyClassifier
from .noisy_encoder import NoisyEncoder
from .published import Place, read_published

__all__ = ["KINDS", "read_own"]


def read_own(file: WeightFile, place: Place) -> Any:
    """Return the model that a file with a steerdiff header holds.

    Raises:
        UserError: The header is damaged or of an unknown kind, or the weights do not fit it.
    """
    header = read_header(file.path)
    kind = str(header.get("kind"))
    require(kind in KINDS, f"'{file.path}' holds a model of kind '{kind}'; steerdiff.load reads {', '.join(KINDS)}")
    return KINDS[kind](file, header, place)


def _bundle(file: WeightFile, header: Mapping[str, Any], place: Place) -> Model:
    """Return a model that was trained here: a UNet, with its text encoder if there is one."""
    where = f"the header of '{file.path}'"
    has_text = header["kind"] == "text-to-image"
    names = ("unet", "schedule", "parameterization", "image_size", *(("text",) if has_text else ()))
    missing = [name for name in names if name not in header]
    require(not missing, f"{where} lacks {', '.join(missing)}; fetch or save the file again")
    unet: UNetConfig = config_from_dict(UNetConfig, header["unet"], where)
    null, last = header.get("null_class"), None if unet.num_classes is None else unet.num_classes - 1
    require(null in (None, last), f"{where} has the null class {null!r}; it must be the network's last, {last}")
    with torch.device("meta"):
        network: nn.Module = (
            TextToImage(unet, config_from_dict(TextConfig, header["text"], where)) if has_text else UNet(unet)
        )
    fill(network, file, source=f"'{file.path}'", dtype=place.dtype, device=place.device)
    network.eval().requires_grad_(False)
    model = Model(
        network=network.unet if isinstance(network, TextToImage) else network,
        text=network.text if isinstance(network, TextToImage) else None,
        schedule=NoiseSchedule.from_dict(header["schedule"]),
        parameterization=header["parameterization"],
        learns_variance=header.get("learns_variance", unet.out_channels == 2 * unet.in_channels),
        image_size=header["image_size"],
        channels=unet.in_channels,
        num_classes=unet.num_classes if null is None else null,
        null_class=null,
        time_scale=header.get("time_scale", 1.0),
        name=header.get("name", file.path.stem),
        files=(file.path,),
    )
    _ = model.weights_hash  # taken now: a training run may replace its file before an image is saved
    return model


def _clip(file: WeightFile, header: Mapping[str, Any], place: Place) -> Clip:
    """Return a CLIP that was trained here."""
    return read_own_clip(file, header, device=place.device, dtype=place.dtype)


def _noisy_clip(file: WeightFile, header: Mapping[str, Any], place: Place) -> NoisyEncoder:
    """Return a noisy CLIP that was tuned here."""
    where = f"the header of '{file.path}'"
    missing = [name for name in ("clip", "noisy") if name not in header]
    require(not missing, f"{where} lacks {', '.join(missing)}; fetch or save the file again")
    clip: ClipConfig = config_from_dict(ClipConfig, header["clip"], where)
    with torch.device("meta"):
        network = build_noisy_clip(clip, config_from_dict(NoisyClipConfig, header["noisy"], where))
    fill(network, file, source=f"'{file.path}'", dtype=place.dtype, device=place.device)
    return NoisyEncoder(
        network=network.eval().requires_grad_(False),
        image_size=network.size,
        schedule=NoiseSchedule.from_dict(header["schedule"]) if "schedule" in header else None,
        clip_hash=header.get("clip_hash"),
        name=header.get("name", file.path.stem),
        files=(file.path,),
    )


def _classifier(file: WeightFile, header: Mapping[str, Any], place: Place) -> NoisyClassifier:
    """Return a noisy classifier that was trained here."""
    where = f"the header of '{file.path}'"
    missing = [name for name in ("trunk", "pool", "image_size", "labels", "schedule") if name not in header]
    require(not missing, f"{where} lacks {', '.join(missing)}; fetch or save the file again")
    trunk: UNetConfig = config_from_dict(UNetConfig, header["trunk"], where)
    with torch.device("meta"):
        network = EncoderUNet(EncoderUNetConfig(trunk=trunk, image_size=header["image_size"], pool=header["pool"]))
    fill(network, file, source=f"'{file.path}'", dtype=place.dtype, device=place.device)
    classifier = NoisyClassifier(
        network=network.eval().requires_grad_(False),
        num_classes=trunk.out_channels,
        image_size=header["image_size"],
        labels=tuple(header["labels"]),
        schedule=NoiseSchedule.from_dict(header["schedule"]),
        name=header.get("name", file.path.stem),
        files=(file.path,),
    )
    _ = classifier.weights_hash  # taken now, as a model's
    return classifier


#: What a file of our own format may hold: the ``kind`` of its header.
KINDS: dict[str, Callable[[WeightFile, Mapping[str, Any], Place], Any]] = {
    "text-to-image": _bundle,
    "unet": _bundle,
    "classifier": _classifier,
    "clip": _clip,
    "noisy-clip": _noisy_clip,
    OWN_KIND: lambda file, header, place: read_published(file, None, place),
}

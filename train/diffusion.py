"""Train a diffusion model: ``train_diffusion(TrainConfig(...))``."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from steerdiff.errors import require
from steerdiff.models import (
    TextConfig,
    TextToImage,
    UNet,
    UNetConfig,
    config_from_dict,
    load_into,
    read_header,
    read_safetensors,
)
from steerdiff.samplers import NoiseSchedule

from .checkpoints import Checkpoints
from .config import TrainConfig
from .data import Dataset, ImageFolder, Labels, made_dataset
from .distributed import World
from .loop import Trainer, TrainResult
from .losses import DiffusionLoss
from .places import teach_places
from .runs import exporter, laid_out, run_training
from .samples import SampleGrid
from .scenes import WORDS, EmojiScenes

__all__ = ["build_dataset", "build_model", "build_trainer", "train_diffusion"]

_log = logging.getLogger(__name__)


def build_dataset(config: TrainConfig) -> Dataset:
    """Return the data set that ``config`` names.

    Raises:
        UserError: Unknown options, or the folder does not fit.
    """
    makers: dict[str, Callable[..., Dataset]] = {"emoji-scenes": EmojiScenes, "folder": ImageFolder}
    return made_dataset(makers[config.data], config)


def build_model(config: TrainConfig) -> TextToImage | UNet:
    """Return the freshly initialised model that ``config`` describes.

    Left out, ``out_channels`` and ``context_dim`` of the UNet follow from the other settings, and the words of the text
    encoder from the emoji scenes.
    """
    torch.manual_seed(config.seed)
    fields = dict(config.unet)
    channels = fields.get("in_channels", 3)
    fields.setdefault("out_channels", channels * (2 if config.learns_variance else 1))
    if config.text is None:
        return UNet(config_from_dict(UNetConfig, fields, "unet"))
    words = {"words": WORDS} if config.data == "emoji-scenes" else {}
    text: TextConfig = config_from_dict(TextConfig, {**words, **config.text}, "text")
    fields.setdefault("context_dim", text.width)
    return TextToImage(config_from_dict(UNetConfig, fields, "unet"), text)


def _condition(model: TextToImage | UNet, labels: Labels, device: torch.device) -> Mapping[str, Tensor]:
    if isinstance(model, TextToImage):
        require(
            isinstance(labels, list), "the data has no captions, but the model has a text encoder; set text to none"
        )
        ids, mask = model.text.tokenize(list(labels or ()))
        return {"ids": ids.to(device), "mask": mask.to(device)}
    if model.config.num_classes is None:
        return {}
    require(isinstance(labels, Tensor), "the data has no class numbers; set labels to class in data_options")
    return {"y": labels} if isinstance(labels, Tensor) else {}


def _header(config: TrainConfig, model: TextToImage | UNet, schedule: NoiseSchedule) -> dict[str, Any]:
    unet = model.unet if isinstance(model, TextToImage) else model
    header = {
        "unet": unet.config.to_dict(),
        "schedule": schedule.to_dict(),
        "parameterization": config.parameterization,
        "learns_variance": config.learns_variance,
        "image_size": config.image_size,
    }
    if isinstance(model, TextToImage):
        return {"kind": "text-to-image", **header, "text": dataclasses.asdict(model.text.config)}
    return {"kind": "unet", **header, "null_class": config.null_class}


def _start_from(model: nn.Module, source: str) -> None:
    """Fill ``model`` with the averaged weights of another run, given by its folder or its weights file.

    What the model has beyond that run's stays at its start if that is zero, so that at first nothing changes.
    """
    path = Path(source) / "weights.safetensors" if Path(source).is_dir() else Path(source)
    read_header(path)
    added = {name: value for name, value in model.state_dict().items() if not value.any()}
    load_into(model, {**added, **read_safetensors(path)}, str(path))


def _prepare(config: TrainConfig, model: TextToImage | UNet) -> None:
    """Give the model of a new run the weights it starts from, and its text encoder its lesson."""
    if config.init_from is not None:
        _start_from(model, config.init_from)
    if config.place_steps:
        scenes = build_dataset(config)
        require(
            isinstance(model, TextToImage) and isinstance(scenes, EmojiScenes),
            "place_steps needs a text encoder and the emoji scenes; set it to 0",
        )
        share = teach_places(cast(TextToImage, model).text, cast(EmojiScenes, scenes), steps=config.place_steps)
        _log.info("the text encoder names the right side of %.1f %% of the things in two-object captions", 100 * share)


def _fitting_dataset(config: TrainConfig) -> Dataset:
    """Return the data set; UserError if the network's table has no room for its classes and the null class."""
    data, rows = build_dataset(config), config.unet.get("num_classes")
    if rows is None or not isinstance(data, ImageFolder):
        return data
    classes = len(data.classes)
    told = f"num_classes of unet is {rows}, but the data have {classes} classes"
    if config.null_class is None:
        require(rows >= classes, f"{told}; set it to {classes}")
    else:
        drops = f"class_dropout of {config.class_dropout} drops labels to a null class, the last of the table"
        require(rows > classes, f"{told} and {drops}; set num_classes to {classes + 1}, or class_dropout to 0")
    return data


def build_trainer(config: TrainConfig, device: torch.device, world: World) -> Trainer:
    """Return the loop over a fresh model, at step 0.

    Raises:
        UserError: Settings do not fit together, or the batch cannot be shared evenly.
    """
    model, schedule = build_model(config), NoiseSchedule.from_dict(config.schedule)
    if not Checkpoints(Path(config.folder) / "checkpoints", 1).paths():
        _prepare(config, model)
    if config.freezes_text and isinstance(model, TextToImage):
        model.text.requires_grad_(False)
    loss = DiffusionLoss(
        laid_out(model, config, device),
        schedule,
        lambda labels, where: _condition(model, labels, where),
        parameterization=config.parameterization,
        learns_variance=config.learns_variance,
        rescales_vlb=config.rescales_vlb,
        min_snr=config.min_snr,
        dropout=config.caption_dropout if config.null_class is None else config.class_dropout,
        null_class=config.null_class,
        strata=config.batch_size if config.times == "stratified" else 1,
    )
    export = exporter(config, _header(config, model, schedule))
    draw = SampleGrid(config, model, schedule) if config.sample_every else None
    return Trainer(config, model, loss, _fitting_dataset(config), world, on_sample=draw, on_export=export)


def train_diffusion(config: TrainConfig, *, resume: bool = False, progress: bool = True) -> TrainResult:
    """Train, or go on training, the run that ``config`` describes.

    Args:
        config: The settings. A resumed run may change all but those in ``config.fixed``.
        resume: Go on from the newest checkpoint in ``config.folder`` (from the start if there is none).
        progress: Show a progress bar.

    Raises:
        UserError: The folder holds a run and ``resume`` is False, or settings do not fit.
        NonFiniteLossError: The loss is not finite any more.
    """
    return run_training(config, build_trainer, resume=resume, progress=progress)

"""Train a diffusion model: ``train_diffusion(TrainConfig(...))``."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from steerdiff.errors import UserError, require
from steerdiff.io import atomic_write, ensure_writable
from steerdiff.models import (
    TextConfig,
    TextToImage,
    UNet,
    UNetConfig,
    config_from_dict,
    load_into,
    read_header,
    read_safetensors,
    save_safetensors,
)
from steerdiff.samplers import NoiseSchedule

from .checkpoints import Checkpoints
from .config import TrainConfig
from .data import Dataset, ImageFolder, Labels
from .distributed import World, join_world
from .loop import Trainer, TrainResult
from .losses import DiffusionLoss
from .places import teach_places
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
    options = {"image_size": config.image_size, "seed": config.seed, **config.data_options}
    try:
        return makers[config.data](**options)
    except TypeError as error:
        raise UserError(f"data_options {sorted(config.data_options)} do not fit {config.data}: {error}") from error


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
        "training": {k: v for k, v in config.to_dict().items() if k not in ("folder", "init_from", "data_options")},
    }
    if isinstance(model, TextToImage):
        return {"kind": "text-to-image", **header, "text": dataclasses.asdict(model.text.config)}
    return {"kind": "unet", **header}


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


def _check_resumed(config: TrainConfig, folder: Path) -> None:
    """Raise UserError if the run in ``folder`` was started with settings that may not change."""
    path = folder / "config.json"
    if not path.is_file():
        return
    old, new = json.loads(path.read_text(encoding="utf-8")), config.to_dict()
    changed = [name for name in config.fixed if old.get(name, new[name]) != new[name]]
    require(
        not changed,
        f"the run in {folder} was started with other {', '.join(changed)}; keep them, or choose another folder",
    )


def _device(name: str) -> torch.device:
    """Return the device of this process; under ``torchrun`` each process of a machine has its own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(name)
    return torch.device(name)


def build_trainer(config: TrainConfig, device: torch.device, world: World) -> Trainer:
    """Return the loop over a fresh model, at step 0.

    Raises:
        UserError: Settings do not fit together, or the batch cannot be shared evenly.
    """
    require(
        config.batch_size % (world.size * config.accumulate) == 0,
        f"batch_size {config.batch_size} cannot be cut into {world.size} processes x {config.accumulate} parts",
    )
    model, schedule = build_model(config), NoiseSchedule.from_dict(config.schedule)
    if not Checkpoints(Path(config.folder) / "checkpoints", 1).paths():
        _prepare(config, model)
    if config.freezes_text and isinstance(model, TextToImage):
        model.text.requires_grad_(False)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(device)
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    forward = torch.compile(model) if config.compile else model

    def network(x: Tensor, t: Tensor, **kwargs: Tensor) -> Tensor:
        out: Tensor = forward(x.contiguous(memory_format=layout), t, **kwargs)
        return out

    loss = DiffusionLoss(
        network,
        schedule,
        lambda labels, where: _condition(model, labels, where),
        parameterization=config.parameterization,
        learns_variance=config.learns_variance,
        rescales_vlb=config.rescales_vlb,
        min_snr=config.min_snr,
        dropout=config.caption_dropout,
        strata=config.batch_size if config.times == "stratified" else 1,
    )
    header = _header(config, model, schedule)

    def export(step: int, weights: dict[str, Tensor]) -> None:
        save_safetensors(Path(config.folder) / "weights.safetensors", weights, {**header, "step": step})

    draw = SampleGrid(config, model, schedule) if config.sample_every else None
    return Trainer(config, model, loss, build_dataset(config), world, on_sample=draw, on_export=export)


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
    folder, device = Path(config.folder), _device(config.device)
    world = join_world(device)
    trainer = build_trainer(config, device, world)
    if resume:
        _check_resumed(config, folder)
        trainer.resume()
    else:
        require(
            not trainer.checkpoints.paths(),
            f"{folder} already holds a training run; resume it, or choose another folder",
        )
    if world.leads:
        ensure_writable(folder)
        text = json.dumps(config.to_dict(), indent=2) + "\n"
        atomic_write(folder / "config.json", lambda file: file.write(text.encode()))
    world.barrier()
    try:
        return trainer.run(progress=progress)
    finally:
        world.leave()

"""What every trainer does around its loop: device, memory layout, settings on disk, new or resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from steerdiff.errors import require
from steerdiff.io import atomic_write, ensure_writable
from steerdiff.models import save_safetensors

from .config import LoopConfig
from .distributed import World, join_world
from .loop import Trainer, TrainResult

__all__ = ["begin", "exporter", "laid_out", "lay_out", "pick_device", "run_training"]

Config = TypeVar("Config", bound=LoopConfig)


def pick_device(name: str) -> torch.device:
    """Return the device of this process; under ``torchrun`` each process of a machine has its own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(name)
    return torch.device(name)


def lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    """Store the kernels of a model's convolutions in a memory format."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def laid_out(model: nn.Module, config: LoopConfig, device: torch.device) -> Callable[..., Tensor]:
    """Put ``model`` on its device in the memory format of ``config``; return what to call in its place."""
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    lay_out(model.to(device), layout)
    forward = torch.compile(model) if config.compile else model

    def network(x: Tensor, t: Tensor, **kwargs: Tensor) -> Tensor:
        out: Tensor = forward(x.contiguous(memory_format=layout), t, **kwargs)
        return out

    return network


def run_training(
    config: Config,
    build: Callable[[Config, torch.device, World], Trainer],
    *,
    resume: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train, or go on training, the run that ``config`` describes.

    Args:
        config: The settings. A resumed run may change all but those in ``config.fixed``.
        build: Returns the loop over a fresh model, at step 0.
        resume: Go on from the newest checkpoint in ``config.folder`` (from the start if there is none).
        progress: Show a progress bar.

    Raises:
        UserError: The folder holds a run and ``resume`` is False, or settings do not fit.
        NonFiniteLossError: The loss is not finite any more.
    """
    device = pick_device(config.device)
    world = join_world(device)
    require(
        config.batch_size % (world.size * config.accumulate) == 0,
        f"batch_size {config.batch_size} cannot be cut into {world.size} processes x {config.accumulate} parts",
    )
    trainer = build(config, device, world)
    begin(trainer, resume=resume)
    try:
        return trainer.run(progress=progress)
    finally:
        world.leave()


def begin(trainer: Trainer, *, resume: bool, what: str = "training run") -> None:
    """Take up the run in the trainer's folder, or begin one there, and write its settings.

    Raises:
        UserError: The folder holds a run and ``resume`` is False, or it was started with others of the fixed settings.
    """
    config, folder = trainer.config, trainer.folder
    if resume:
        _check_resumed(config, folder)
        trainer.resume()
    else:
        free = not trainer.checkpoints.paths()
        require(free, f"{folder} already holds a {what}; resume it, or choose another folder")
    if trainer.world.leads:
        ensure_writable(folder)
        text = json.dumps(config.to_dict(), indent=2) + "\n"
        atomic_write(folder / "config.json", lambda file: file.write(text.encode()))
    trainer.world.barrier()


def exporter(config: LoopConfig, header: Mapping[str, Any]) -> Callable[[int, dict[str, Tensor]], None]:
    """Return what writes averaged weights into the run's folder, with ``header`` and how they were trained.

    Fields that hold paths of the machine (the folder, where weights came from, the data's) are left out.
    """
    kept = {k: v for k, v in config.to_dict().items() if k not in ("folder", "init_from", "data_options")}

    def export(step: int, weights: dict[str, Tensor]) -> None:
        path = Path(config.folder) / "weights.safetensors"
        save_safetensors(path, weights, {**header, "training": kept, "step": step})

    return export


def _check_resumed(config: LoopConfig, folder: Path) -> None:
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

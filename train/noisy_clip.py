"""Tune a CLIP's image tower to noisy images: its vector of a noised image shall tell which clean image it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from steerdiff.errors import require
from steerdiff.guidance.loading import load
from steerdiff.models.clip import Clip
from steerdiff.models.clip_towers import is_resnet
from steerdiff.models.config import config_from_dict
from steerdiff.models.noisy_clip import NoisyCLIP, NoisyClipConfig, from_clip
from steerdiff.samplers import NoiseSchedule

from .both_splits import BothSplits
from .clip import check_contrastive, matching_loss
from .config import LoopConfig
from .data import Dataset, ImageFolder, made_dataset
from .distributed import World
from .loop import Trainer, TrainResult
from .losses import Batch
from .noising import Noising
from .runs import exporter, laid_out, run_training

__all__ = ["NoisyClipLoss", "NoisyClipTrainConfig", "train_noisy_clip"]

Layers = Literal["all", "last", "time"]


@dataclass(frozen=True, kw_only=True)
class NoisyClipTrainConfig(LoopConfig):
    """How a noisy CLIP is tuned, without any text: the clean CLIP is the teacher, on the clean images.

    Source: Liu et al. 2023, "More Control for Free! Image Synthesis with Semantic Diffusion Guidance", section 3.2;
    the values are the defaults of the published code. ``norm: train``, ``init: published`` and ``positions: fresh`` in
    ``noisy`` are what that code does; the defaults here start as the clean CLIP.
    """

    fixed: ClassVar[tuple[str, ...]] = (
        *LoopConfig.fixed,
        *("clip", "noisy", "layers", "schedule", "temperature", "anchor", "data", "data_options", "image_size"),
    )

    clip: str  #: weights of the clean CLIP: a file, a run's folder, or "emoji64-clip"
    clip_config: str | None = None  #: preset (info --presets) of published weights that do not say what they are
    noisy: dict[str, Any] = field(default_factory=dict)  #: fields of models.noisy_clip.NoisyClipConfig
    #: what is tuned beside the time: the whole image tower; its last stage (a transformer's last block) and what
    #: follows; or the position grid alone
    layers: Layers = "all"
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "linear"})  #: samplers.NoiseSchedule.to_dict()
    temperature: float = 100.0  #: factor on the cosines, fixed
    #: weight of ``1 - cosine`` to the clean twin's vector, beside the matching; 0 as published. Matching alone lets a
    #: tower that is tuned fast put most of each vector where no clean vector points, and its cosines shrink
    anchor: float = 0.0
    batch_size: int = 32  #: images of one step, each the wrong answer to all others
    learning_rate: float = 1e-4  #: of AdamW
    steps: int = 500_000  #: optimiser steps of the whole run
    warmup_steps: int = 0  #: the learning rate rises linearly over these
    data: Literal["emoji-scenes", "folder"] = "emoji-scenes"  #: where the images come from
    data_options: dict[str, Any] = field(default_factory=dict)  #: arguments of the data set (``path`` of a folder, ...)
    image_size: int = 64  #: height and width in pixels of the noisy images; the teacher sees them at its own size

    def __post_init__(self) -> None:
        """Raise UserError for values that are not allowed."""
        super().__post_init__()
        require(self.temperature > 0, f"temperature is {self.temperature}; it must be positive")
        require(self.anchor >= 0, f"anchor is {self.anchor}; it must be at least 0")
        check_contrastive(self)


class NoisyClipLoss:
    """Noise the images at uniform times and match the student's vectors with the teacher's of the clean ones.

    The cross-entropies of both directions are summed, not averaged, as in the published code.

    Args:
        student: ``student(x, t) -> ClipFeatures``.
        teacher: The clean CLIP.
        schedule: The noise.
        temperature: Factor on the cosines.
        anchor: Weight of ``1 - cosine`` to the clean twin.
    """

    def __init__(
        self, student: Any, teacher: Clip, schedule: NoiseSchedule, *, temperature: float = 100.0, anchor: float = 0.0
    ) -> None:
        self.student, self.teacher, self.noising = student, teacher, Noising(schedule)
        self.temperature, self.anchor = temperature, anchor

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and the share of noisy images whose clean twin is the nearest of the batch."""
        images, device = batch.images, batch.images.device
        t = self.noising.times(batch.random)
        noised = self.noising.noised(images, t, batch.random)
        with torch.no_grad():
            truth = self.teacher.image_features(images)
        vector = functional.normalize(self.student(noised, t.to(device)).vector.float(), dim=1)
        logits = self.temperature * vector @ truth.T
        right = (logits.argmax(1) == torch.arange(len(logits), device=device)).float().mean()
        cosine = (vector * truth).sum(1).mean()
        loss = torch.stack(matching_loss(logits)).sum()
        loss = loss + self.anchor * (1 - cosine) if self.anchor else loss
        return loss, {"right": right, "cosine": cosine.detach()}


def train_noisy_clip(config: NoisyClipTrainConfig, *, resume: bool = False, progress: bool = True) -> TrainResult:
    """Tune, or go on tuning, a noisy CLIP; ``weights.safetensors`` in the folder holds the averaged weights.

    Args:
        config: The settings. A resumed run may change all but those in ``config.fixed``.
        resume: Go on from the newest checkpoint in ``config.folder`` (from the start if there is none).
        progress: Show a progress bar.

    Raises:
        UserError: The folder holds a run and ``resume`` is False, or settings do not fit.
        NonFiniteLossError: The loss is not finite any more.
    """
    return run_training(config, _trainer, resume=resume, progress=progress)


def _trainer(config: NoisyClipTrainConfig, device: torch.device, world: World) -> Trainer:
    require(world.size == 1, "a contrastive loss compares the images of a batch; run it in one process")
    torch.manual_seed(config.seed)
    teacher = load(config.clip, config.clip_config, device=device)
    require(isinstance(teacher, Clip), f"clip is {config.clip!r}, which is no CLIP; give the weights of one")
    schedule = NoiseSchedule.from_dict(config.schedule)
    noisy: NoisyClipConfig = config_from_dict(NoisyClipConfig, {"T": schedule.T, **config.noisy}, "noisy")
    student = from_clip(teacher.network, noisy, size=config.image_size)
    _free(student, config.layers)
    forward = laid_out(student, config, device)
    laid_out(teacher.network, config, device)
    loss = NoisyClipLoss(forward, teacher, schedule, temperature=config.temperature, anchor=config.anchor)
    export = exporter(config, _header(config, student, teacher))
    return Trainer(config, student, loss, _dataset(config), world, on_export=export)


def _dataset(config: NoisyClipTrainConfig) -> Dataset:
    makers: dict[str, Callable[..., Dataset]] = {"emoji-scenes": BothSplits, "folder": ImageFolder}
    return made_dataset(makers[config.data], config)


def _header(config: NoisyClipTrainConfig, student: NoisyCLIP, teacher: Clip) -> dict[str, Any]:
    """Return what a file says of a noisy CLIP: its tower, how it is told the time, and whom it agrees with."""
    clip = {**vars(teacher.config), "vision_cfg": {**teacher.config.vision_cfg, "image_size": student.size}}
    return {
        "kind": "noisy-clip",
        "clip": clip,
        "noisy": student.config.to_dict(),
        "clip_hash": teacher.weights_hash,
        "schedule": config.schedule,
    }


def _free(student: NoisyCLIP, layers: Layers) -> None:
    """Let the chosen layers learn; the time and the position grid always do.

    ``time`` is the published code's "anything else" mode.
    """
    tower: Any = student.visual
    if layers == "all":
        return
    tower.requires_grad_(False)
    resnet = is_resnet(tower)
    (tower.attnpool if resnet else tower).positional_embedding.requires_grad_(True)
    if layers == "last":
        last: Sequence[nn.Module] = (
            (tower.layer4, tower.attnpool) if resnet else (tower.transformer.resblocks[-1], tower.ln_post)
        )
        for module in last:
            module.requires_grad_(True)
        if not resnet:
            tower.proj.requires_grad_(True)

"""Train a classifier of noised images, whose gradient guides a diffusion model: ``train_classifier(...)``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import UserError, require
from steerdiff.models import UNetConfig, config_from_dict
from steerdiff.models.config import EncoderUNetConfig, Pool
from steerdiff.models.encoder_unet import EncoderUNet
from steerdiff.samplers import NoiseSchedule

from .config import LoopConfig
from .data import ImageFolder, made_dataset
from .distributed import World
from .labelled_scenes import LabelledScenes
from .loop import Trainer, TrainResult
from .losses import Batch
from .noising import Noising
from .randomness import SampleRandom
from .runs import exporter, laid_out, run_training

__all__ = ["ClassifierConfig", "ClassifierLoss", "build_classifier", "train_classifier"]

TIME_BINS = ("low", "middle", "high")  #: thirds of the times, by whose noise the accuracy is told apart


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(LoopConfig):
    """Everything that decides the training of a noisy classifier. Saved as ``config.json`` in the run's folder.

    The defaults are those of the published classifier of 128 pixel images. The schedule must be that of the diffusion
    model which the classifier is to guide.

    Source: Dhariwal & Nichol 2021, section 4 and appendix; guided-diffusion's ``classifier_train.py``, whose own
    defaults are ``weight_decay`` 0, 150 000 ``steps``, ``decay`` none and a linear schedule, and which exports the
    weights themselves where this exports their average (``ema_decay`` 0 is the weights themselves).
    """

    fixed: ClassVar[tuple[str, ...]] = (
        *LoopConfig.fixed,
        *("trunk", "pool", "schedule", "data", "data_options", "image_size"),
    )

    steps: int = 300_000  #: optimiser steps of the whole run
    batch_size: int = 256  #: images of one optimiser step, over all processes and accumulated parts together
    learning_rate: float = 3e-4  #: of AdamW
    weight_decay: float = 0.05  #: decoupled, per unit of learning rate; on matrices only
    warmup_steps: int = 0  #: the learning rate rises linearly over these
    decay: Literal["none", "linear", "cosine"] = "linear"  #: how the learning rate falls at the end
    decay_steps: int | None = None  #: length of that fall, which ends at ``steps`` with a rate of 0; None: all of them

    trunk: dict[str, Any] = field(default_factory=dict)  #: fields of models.UNetConfig but for the number of classes
    pool: Pool = "attention"  #: what turns features into logits
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "cosine"})  #: samplers.NoiseSchedule.to_dict()
    times: Literal["uniform", "stratified"] = "uniform"  #: independent times, or one in each 1/batch_size of [0, T)

    data: Literal["emoji-scenes", "folder"] = "emoji-scenes"  #: single objects as classes, or an image folder's classes
    data_options: dict[str, Any] = field(default_factory=dict)  #: arguments of the data set (``path`` of a folder, ...)
    image_size: int = 64  #: height and width in pixels

    def __post_init__(self) -> None:
        """Raise UserError for values that are not allowed."""
        super().__post_init__()
        require(self.image_size >= 1, f"image_size is {self.image_size}; it must be at least 1")


def classes_of(config: ClassifierConfig) -> tuple[LabelledScenes | ImageFolder, tuple[str, ...]]:
    """Return the data set that ``config`` names and the names of its classes, by number.

    Raises:
        UserError: Unknown options, or the folder does not fit.
    """
    makers: dict[str, Callable[..., LabelledScenes | ImageFolder]] = {
        "emoji-scenes": LabelledScenes,
        "folder": ImageFolder,
    }
    labels = {"labels": "class"} if config.data == "folder" else {}
    dataset = made_dataset(makers[config.data], config, **labels)
    require(bool(dataset.classes), "a classifier learns classes; leave labels out of data_options")
    return dataset, tuple(dataset.classes)


def build_classifier(config: ClassifierConfig, classes: int) -> EncoderUNet:
    """Return the freshly initialised network that ``config`` describes."""
    torch.manual_seed(config.seed)
    trunk: UNetConfig = config_from_dict(UNetConfig, {**config.trunk, "out_channels": classes}, "trunk")
    return EncoderUNet(EncoderUNetConfig(trunk=trunk, image_size=config.image_size, pool=config.pool))


class ClassifierLoss:
    """Draw times and noise, classify the noised images, compare with the truth by cross-entropy.

    Args:
        network: ``network(x [B, C, H, W], t [B]) -> logits [B, classes]``.
        schedule: The noise schedule.
        strata: Sample i draws its time from part ``i mod strata`` of [0, T); 1: anywhere.
    """

    def __init__(self, network: Callable[..., Tensor], schedule: NoiseSchedule, strata: int = 1) -> None:
        self.network, self.noising = network, Noising(schedule, strata)

    def times(self, random: SampleRandom) -> Tensor:
        """Return the samples' times, int64 [B] in [0, T)."""
        return self.noising.times(random)

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss (float32 scalar) and detached metrics: the share of right answers, by noise too."""
        x0, y = batch.images, batch.labels
        if not isinstance(y, Tensor):
            raise UserError("the data has no class numbers; a classifier learns from images with classes")
        t = self.times(batch.random)
        logits = self.network(self.noising.noised(x0, t, batch.random), t.float().to(x0.device)).float()
        right = (logits.detach().argmax(1) == y).float()
        metrics = {"accuracy": right.mean()}
        third = (t * len(TIME_BINS) // self.noising.T).to(right.device)
        for i, name in enumerate(TIME_BINS):
            inside = (third == i).float()
            metrics[f"accuracy_{name}"] = (right * inside).sum() / inside.sum().clamp(min=1)
        return functional.cross_entropy(logits, y), metrics


def _build(config: ClassifierConfig, device: torch.device, world: World) -> Trainer:
    dataset, classes = classes_of(config)
    model, schedule = build_classifier(config, len(classes)), NoiseSchedule.from_dict(config.schedule)
    strata = config.batch_size if config.times == "stratified" else 1
    loss = ClassifierLoss(laid_out(model, config, device), schedule, strata)
    header = {
        "kind": "classifier",
        "trunk": model.config.trunk.to_dict(),
        "pool": config.pool,
        "image_size": config.image_size,
        "labels": list(classes),
        "schedule": schedule.to_dict(),
    }
    return Trainer(config, model, loss, dataset, world, on_export=exporter(config, header))


def train_classifier(config: ClassifierConfig, *, resume: bool = False, progress: bool = True) -> TrainResult:
    """Train, or go on training, the classifier that ``config`` describes.

    Args:
        config: The settings. A resumed run may change all but those in ``config.fixed``.
        resume: Go on from the newest checkpoint in ``config.folder`` (from the start if there is none).
        progress: Show a progress bar.

    Raises:
        UserError: The folder holds a run and ``resume`` is False, or settings do not fit.
        NonFiniteLossError: The loss is not finite any more.
    """
    return run_training(config, _build, resume=resume, progress=progress)

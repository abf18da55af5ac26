"""The settings of training runs, as data that is saved beside the run: what every loop needs, and diffusion's own."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

import yaml

from steerdiff.errors import UserError, require

from .optimizers import rate_factor

__all__ = ["LoopConfig", "TrainConfig", "read_config"]

Config = TypeVar("Config", bound="LoopConfig")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What the training loop needs to know, whatever it trains."""

    #: Fields that a resumed run may not change: they decide what the saved state means.
    fixed: ClassVar[tuple[str, ...]] = ("optimizer", "seed", "batch_size", "ema_decay")

    folder: str  #: where the run lives: config.json, metrics.csv, checkpoints/, samples/, weights.safetensors
    workers: int = 0  #: processes that prepare batches; 0 prepares them in this one

    steps: int = 100_000  #: optimiser steps of the whole run
    batch_size: int = 64  #: images of one optimiser step, over all processes and accumulated parts together
    accumulate: int = 1  #: parts that each process computes its share of the batch in; saves memory
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"  #: muon: Muon for matrices, AdamW for the rest; sgd: plain
    learning_rate: float = 1e-4  #: of AdamW or of plain gradient descent
    muon_learning_rate: float | None = None  #: of Muon, whose updates have AdamW's size; None: as AdamW
    betas: tuple[float, float] = (0.9, 0.999)  #: AdamW's moment decays
    weight_decay: float = 0.0  #: decoupled, per unit of learning rate; on matrices only
    warmup_steps: int = 1000  #: the learning rate rises linearly over these
    decay: Literal["none", "linear", "cosine"] = "none"  #: how the learning rate falls at the end
    decay_steps: int | None = 0  #: length of that fall, which ends at ``steps`` with a rate of 0; None: all of them
    clip_norm: float | None = 1.0  #: longest allowed gradient (2-norm over all parameters); None: no clipping
    ema_decay: float = 0.9999  #: decay of the averaged weights; warmed up as (1 + step) / (10 + step)

    device: str = "auto"  #: "cpu", "cuda", ...; auto: CUDA if there is one
    precision: Literal["fp32", "bf16"] = "fp32"  #: bf16: autocast; weights, optimiser and loss stay in float32
    channels_last: bool = True  #: memory format of the convolutions; measured 1.9 times faster on a CPU
    compile: bool = False  #: torch.compile the model
    seed: int = 0  #: decides the initial weights, the order of the data, times, noise and dropped labels

    log_every: int = 50  #: steps between rows of metrics.csv
    checkpoint_every: int = 1000  #: steps between checkpoints
    keep_checkpoints: int = 3  #: newest checkpoints that stay
    tensorboard: bool = False  #: also write TensorBoard events to ``folder``/tensorboard

    def __post_init__(self) -> None:
        """Raise UserError for values that are not allowed."""
        for name, hint in get_type_hints(type(self)).items():
            choices = get_args(hint) if getattr(hint, "__origin__", None) is Literal else ()
            value = getattr(self, name)
            if choices and value not in choices:
                raise UserError(f"{name} is {value!r}; choose {', '.join(choices[:-1])} or {choices[-1]}")
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("warmup_steps", "decay_steps", "workers", "seed"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"{name} is {value}; it must be at least 0")
        for name in ("learning_rate", "muon_learning_rate", "clip_norm"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} is {value}; it must be positive")
        require(
            self.batch_size % self.accumulate == 0,
            f"batch_size {self.batch_size} cannot be cut into {self.accumulate} parts; choose a multiple",
        )
        require(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}; it must be in [0, 1)")
        most = f"it must be at most steps = {self.steps}"
        require((self.decay_steps or 0) <= self.steps, f"decay_steps is {self.decay_steps}; {most}")

    def rate_at(self, step: int) -> float:
        """Return the factor on the learning rate of optimiser step ``step`` (from 0)."""
        return rate_factor(
            step,
            steps=self.steps,
            warmup_steps=self.warmup_steps,
            decay=self.decay,
            decay_steps=self.steps if self.decay_steps is None else self.decay_steps,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    @classmethod
    def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
        """Build from ``to_dict``'s mapping. Raises UserError for unknown fields."""
        fields = dataclasses.fields(cls)
        known = sorted(f.name for f in fields)
        unknown = sorted(set(values) - set(known))
        require(not unknown, f"unknown training settings {unknown}; the known ones are {known}")
        require("folder" in values, "the training settings name no folder; add folder: where the run shall live")
        values = dict(values)
        for f in fields:
            value = values.get(f.name)
            if isinstance(value, list) and isinstance(f.default, tuple):
                values[f.name] = tuple(value)
            elif isinstance(value, str) and "float" in str(f.type):
                values[f.name] = float(value)  # YAML 1.1 reads 1e-4 as text
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopConfig):
    """Everything that decides a diffusion training run. Saved as ``config.json`` in the run's folder."""

    fixed: ClassVar[tuple[str, ...]] = (
        *LoopConfig.fixed,
        *("unet", "text", "schedule", "parameterization", "learns_variance", "class_dropout"),
        *("data", "data_options", "image_size"),
    )

    unet: dict[str, Any] = field(default_factory=dict)  #: fields of models.UNetConfig
    text: dict[str, Any] | None = field(default_factory=dict)  #: fields of models.TextConfig; None: no text
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "cosine"})  #: samplers.NoiseSchedule.to_dict()
    parameterization: Literal["eps", "x0", "v"] = "v"  #: what the network predicts
    learns_variance: bool = False  #: learned-range variance: twice the output channels, hybrid loss (ADM)
    rescales_vlb: bool = False  #: variational term times T/1000 (improved-diffusion's default), else as it is (ADM)
    min_snr: float | None = 5.0  #: gamma of the min-SNR loss weights; None: plain mean squared error
    times: Literal["uniform", "stratified"] = "stratified"  #: independent times, or one in each 1/batch_size of [0, T)
    place_steps: int = 0  #: steps that first teach the text encoder, from captions alone, where captions put things
    freezes_text: bool = False  #: the text encoder keeps the weights it starts from, or that its lesson gives it
    init_from: str | None = None  #: folder or weights.safetensors of a run whose averaged weights this one starts from
    caption_dropout: float = 0.1  #: chance that a caption is dropped, for classifier-free guidance
    class_dropout: float = 0.0  #: the same for a class label; then the last of unet's num_classes stands for none

    data: Literal["emoji-scenes", "folder"] = "emoji-scenes"  #: where the images come from
    data_options: dict[str, Any] = field(default_factory=dict)  #: arguments of the data set (``path`` of a folder, ...)
    image_size: int = 64  #: height and width in pixels

    sample_every: int = 0  #: steps between grids of samples; 0: none
    sample_prompts: tuple[str, ...] = ()  #: captions of the grids (or class numbers as text)
    sample_guidance: float = 3.0  #: classifier-free guidance scale of the grids
    sample_steps: int = 25  #: denoising steps of the grids

    def __post_init__(self) -> None:
        """Raise UserError for values that are not allowed."""
        super().__post_init__()
        for name in ("caption_dropout", "class_dropout"):
            require(0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}; it must be in [0, 1]")
        require(
            not self.class_dropout or (self.text is None and self.unet.get("num_classes") is not None),
            f"class_dropout is {self.class_dropout}, but the network is told no class labels; set text to none and "
            "num_classes of unet to one more than the data have classes, or class_dropout to 0",
        )
        require(self.min_snr is None or self.min_snr > 0, f"min_snr is {self.min_snr}; it must be positive or none")
        for name in ("place_steps", "sample_every"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("image_size", "sample_steps"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def null_class(self) -> int | None:
        """Label that stands for no class: the last of the network's, where any are dropped, else None.

        Source: latent diffusion's ``cin256-v2``, whose table has 1001 rows for 1000 classes.
        """
        return int(self.unet["num_classes"]) - 1 if self.class_dropout else None


def read_config(path: str | Path) -> TrainConfig:
    """Read a TrainConfig from a ``.json``, ``.yaml`` or ``.yml`` file. Raises UserError if it is not one."""
    path = Path(path)
    require(path.is_file(), f"{path} is not a file; give the JSON or YAML file of a training run")
    text = path.read_text(encoding="utf-8")
    try:
        values = yaml.safe_load(text) if path.suffix in (".yaml", ".yml") else json.loads(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    require(isinstance(values, dict), f"{path} holds no mapping; write one 'field: value' a line")
    return TrainConfig.from_dict(values)

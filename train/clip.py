"""Train a CLIP on emoji scenes: images and texts that belong together get vectors that point the same way."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from steerdiff.errors import require
from steerdiff.models.clip import build_clip, prepare
from steerdiff.models.clip_words import own_vocabulary, word_table
from steerdiff.models.published.spec import ClipConfig

from .both_splits import BothSplits, augment, check_blemishes
from .config import LoopConfig
from .distributed import World
from .loop import Trainer, TrainResult
from .losses import Batch
from .phrases import phrases, true_of
from .randomness import mix
from .runs import exporter, laid_out, run_training
from .scenes import WORDS, parse_caption

__all__ = ["ClipLoss", "ClipTrainConfig", "check_contrastive", "clip_architecture", "matching_loss", "train_clip"]

MOST_SCALE = math.log(100)  #: the logit scale is clipped here, as in CLIP


def check_contrastive(config: LoopConfig) -> None:
    """Raise UserError unless the images of a batch, which are compared with each other, are computed together."""
    require(
        config.accumulate == 1 and config.batch_size >= 2,
        "a contrastive loss compares the images of a batch; set accumulate to 1 and batch_size to at least 2",
    )


@dataclass(frozen=True, kw_only=True)
class ClipTrainConfig(LoopConfig):
    """How a CLIP of the embedded domain is trained.

    Source: Radford et al. 2021, section 2.3 and table 18 (rate, decays, weight decay, clipped logit scale); the batch
    of 32768 is theirs alone.
    """

    fixed: ClassVar[tuple[str, ...]] = (
        *LoopConfig.fixed,
        *("embed_dim", "vision", "text", "pairs", "held_out", "short", "jitter", "blur", "noise", "tint"),
    )

    batch_size: int = 128  #: scenes of one step, each the wrong answer to all others
    learning_rate: float = 5e-4  #: highest rate of AdamW
    betas: tuple[float, float] = (0.9, 0.98)  #: AdamW's moment decays
    weight_decay: float = 0.2  #: decoupled, per unit of learning rate; on matrices only
    ema_decay: float = 0.999  #: decay of the averaged weights

    embed_dim: int = 128  #: width of the joint space
    vision: dict[str, Any] = field(default_factory=dict)  #: open_clip's vision configuration beyond the defaults here
    text: dict[str, Any] = field(default_factory=dict)  #: open_clip's text configuration beyond the defaults here
    pairs: float = 0.3  #: share of scenes with two objects
    held_out: float = 0.125  #: share of scenes from held-out combinations, as frequent as if nothing were held out
    short: float = 0.3  #: share of captions that a shorter text replaces: "a cat", "flat", "a blue background"
    skips_true: bool = True  #: a text is no wrong answer where it is true of another image; False: as published
    jitter: int = 2  #: scenes are moved by up to this many pixels each way
    blur: float = 1.0  #: up to this share of a 3 x 3 binomial blur is mixed in
    noise: float = 0.1  #: highest standard deviation of Gaussian noise, in image units
    tint: float = 0.08  #: highest change of each channel's gain and offset

    def __post_init__(self) -> None:
        """Raise UserError for values that are not allowed."""
        super().__post_init__()
        check_blemishes(self)
        require(0 <= self.short <= 1, f"short is {self.short}; it is a share between 0 and 1")
        check_contrastive(self)


def clip_architecture(config: ClipTrainConfig) -> ClipConfig:
    """Return what open_clip's ``CLIP`` is built from: by default a small ResNet, for 64 x 64 pixels, and 3 layers."""
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 20, "head_width": 64, "patch_size": None}
    text = {"context_length": 24, "width": 128, "heads": 4, "layers": 3}
    return ClipConfig(
        embed_dim=config.embed_dim,
        vision_cfg={**vision, **config.vision},
        text_cfg={**text, **config.text, "vocab_size": own_vocabulary(WORDS)},
    )


def matching_loss(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropies of telling which column belongs to a row, and which row to a column.

    Args:
        logits: [B, B]; those that belong together lie on the diagonal; -inf is no answer at all.

    Source: Radford et al. 2021, figure 3, which takes the mean of the two.
    """
    truth = torch.arange(len(logits), device=logits.device)
    return functional.cross_entropy(logits, truth), functional.cross_entropy(logits.T, truth)


class ClipLoss:
    """Blemish the images, shorten some captions, and compare every image with every text.

    Args:
        clip: open_clip's ``CLIP``, in training.
        config: The run's settings.
    """

    def __init__(self, clip: Any, config: ClipTrainConfig) -> None:
        self.clip, self.config = clip, config

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, the share of images that find their text, and the logit scale."""
        config, clip, device = self.config, self.clip, batch.images.device
        generator = torch.Generator().manual_seed(int(mix(config.seed, "blemishes", batch.random.indices[:1])[0]))
        images = augment(batch.images.cpu(), config, generator).to(device)
        descriptions = [parse_caption(caption) for caption in batch.labels or ()]
        texts = phrases(descriptions, config.short, batch.random)
        ids = word_table([phrase.text for phrase in texts], WORDS, clip.context_length).to(device)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        seen = prepare(images, images.shape[-1]).contiguous(memory_format=layout)
        image = functional.normalize(clip.encode_image(seen).float(), dim=-1)
        text = functional.normalize(clip.encode_text(ids).float(), dim=-1)
        scale = clip.logit_scale.float().clamp(max=MOST_SCALE).exp()
        logits = scale * image @ text.T
        if config.skips_true:
            others = true_of(texts, descriptions).T & ~torch.eye(len(logits), dtype=torch.bool)
            logits = logits.masked_fill(others.to(device), float("-inf"))
        right = (logits.argmax(1) == torch.arange(len(logits), device=device)).float().mean()
        return torch.stack(matching_loss(logits)).mean(), {"right": right, "logit_scale": scale.detach()}


def train_clip(config: ClipTrainConfig, *, resume: bool = False, progress: bool = True) -> TrainResult:
    """Train, or go on training, a CLIP on emoji scenes; ``weights.safetensors`` in the folder holds the average.

    Args:
        config: The settings. A resumed run may change all but those in ``config.fixed``.
        resume: Go on from the newest checkpoint in ``config.folder`` (from the start if there is none).
        progress: Show a progress bar.

    Raises:
        UserError: The folder holds a run and ``resume`` is False, or settings do not fit.
        NonFiniteLossError: The loss is not finite any more.
    """
    return run_training(config, _trainer, resume=resume, progress=progress)


def _trainer(config: ClipTrainConfig, device: torch.device, world: World) -> Trainer:
    require(world.size == 1, "a contrastive loss compares the images of a batch; run it in one process")
    torch.manual_seed(config.seed)
    architecture = clip_architecture(config)
    clip: nn.Module = build_clip(architecture).requires_grad_(True)
    laid_out(clip, config, device)
    dataset = BothSplits(seed=config.seed, pairs=config.pairs, held_out=config.held_out)
    export = exporter(config, {"kind": "clip", "clip": vars(architecture), "words": list(WORDS)})
    return Trainer(config, clip, ClipLoss(clip, config), dataset, world, on_export=export)

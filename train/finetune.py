"""The one fine-tuning loop: any module, any loss of some samples, resumable, on top of the training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, ParamSpec, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from steerdiff.errors import require

from .config import LoopConfig
from .data import Dataset
from .distributed import World
from .loop import LossFn, Trainer, TrainResult
from .runs import begin, lay_out

__all__ = ["FinetuneConfig", "finetune", "recomputed"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(LoopConfig):
    """What the fine-tuning loop needs to know, whatever it tunes: `LoopConfig` with the defaults of short runs."""

    #: Fields that a resumed run may not change.
    fixed: ClassVar[tuple[str, ...]] = (*LoopConfig.fixed, "about", "precision", "rate_gamma", "rate_every")

    about: dict[str, Any] = field(default_factory=dict)  #: what is tuned (settings, hashes); JSON-able
    steps: int = 250  #: optimiser steps of the whole run
    batch_size: int = 1  #: images of one optimiser step
    learning_rate: float = 1e-5  #: of AdamW or of plain gradient descent; without weight decay AdamW is Adam
    warmup_steps: int = 0  #: the learning rate rises linearly over these
    rate_gamma: float = 1.0  #: factor on the learning rate after every ``rate_every`` steps; above 1 it grows
    rate_every: int = 0  #: steps of an epoch for ``rate_gamma``; 0: the rate stays
    clip_norm: float | None = None  #: longest allowed gradient (2-norm over all parameters); None: no clipping
    ema_decay: float = 0.0  #: decay of the averaged weights; 0: none, the result is the weights of the last step
    precision: Literal["fp32", "bf16"] = "fp32"  #: bf16: autocast; weights, optimiser and loss stay in float32
    log_every: int = 10  #: steps between rows of metrics.csv
    checkpoint_every: int = 100  #: steps between checkpoints
    keep_checkpoints: int = 1  #: newest checkpoints that stay

    def __post_init__(self) -> None:
        """Raise UserError for values that are not allowed."""
        super().__post_init__()
        require(self.rate_gamma > 0, f"rate_gamma is {self.rate_gamma}; it must be positive, 1 for a constant rate")
        require(self.rate_every >= 0, f"rate_every is {self.rate_every}; it must be at least 0")

    def rate_at(self, step: int) -> float:
        """Return the factor on the learning rate of optimiser step ``step`` (from 0)."""
        epoch = step // self.rate_every if self.rate_every else 0
        return super().rate_at(step) * self.rate_gamma**epoch


def finetune(
    config: FinetuneConfig,
    module: nn.Module,
    loss_fn: LossFn,
    dataset: Dataset,
    *,
    resume: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Tune those parameters of ``module`` that require gradients, in this process, or go on with it.

    Sample number i of a step comes from ``dataset.batch``, and all randomness of the loss from ``batch.random``: both
    are functions of the number alone, so a run that was killed and resumed ends with the weights of one that was not.
    A loss that carries something from step to step must be `Stateful`.

    Args:
        config: The settings. A resumed run may change all but those in ``config.fixed``.
        module: What is tuned, on its device, in train mode; afterwards it holds the result, in eval mode and without
            gradients.
        loss_fn: ``loss_fn(batch) -> (mean loss, metrics)``.
        dataset: Samples by number.
        resume: Go on from the newest checkpoint in ``config.folder`` (from the start if there is none).
        progress: Show a progress bar.

    Returns:
        How the run ended; ``completed`` is False if Ctrl-C or SIGTERM stopped it, with a checkpoint.

    Raises:
        UserError: Nothing is trainable, the folder holds a run and ``resume`` is False, or it was started with others
            of the ``fixed`` settings.
        NonFiniteLossError: The loss is not finite any more.
    """
    require(any(p.requires_grad for p in module.parameters()), "nothing of the module requires gradients to be tuned")
    if config.channels_last:
        lay_out(module, torch.channels_last)
    with torch.random.fork_rng():  # the loop seeds PyTorch's own generator for dropout
        trainer = Trainer(config, module, loss_fn, dataset, World())
        begin(trainer, resume=resume, what="fine-tuning run")
        result = trainer.run(progress=progress)
    if config.ema_decay:
        module.load_state_dict(trainer.ema.state_dict())
    module.zero_grad(set_to_none=True)
    module.eval()
    return result


def recomputed(function: Callable[P, R], *, enabled: bool = True) -> Callable[P, R]:
    """Return ``function`` with gradient checkpointing: its activations are computed again in the backward pass.

    Memory then grows with the number of calls by their inputs and outputs alone; each call costs one forward more. The
    gradients are the same. With ``enabled=False`` it is the function itself.
    """
    if not enabled:
        return function

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        result: R = checkpoint(lambda: function(*args, **kwargs), use_reentrant=False)
        return result

    return call

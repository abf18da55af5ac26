"""The training loop: batches, gradients, optimisers, averages, checkpoints, numbers and clean stops."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from steerdiff.errors import UserError, require
from steerdiff.models import load_into

from .checkpoints import Checkpoints
from .config import LoopConfig
from .data import Dataset, batches
from .distributed import World
from .ema import EMA
from .losses import Batch
from .metrics import Metrics
from .optimizers import load_optimizers, make_optimizers
from .randomness import SampleRandom, mix

__all__ = ["LossFn", "NonFiniteLossError", "Stateful", "Trainer", "TrainResult"]


class NonFiniteLossError(UserError):
    """Training met a loss or gradient that is not finite; checkpoints from before it are untouched."""


class LossFn(Protocol):
    """The loss of some samples."""

    def __call__(self, batch: Batch, /) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss and detached metrics, all scalars."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A loss that carries something from one step to the next, which a checkpoint has to keep."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the next step needs."""
        ...

    def load_state_dict(self, state: dict[str, Tensor], /) -> None:
        """Go on from what ``state_dict`` gave."""
        ...


class Sampler(Protocol):
    """What draws pictures with the averaged weights now and then."""

    @property
    def every(self) -> int:
        """Steps between pictures."""
        ...

    def __call__(self, step: int, /) -> Tensor:
        """Save a picture and return it, uint8 [3, H, W]."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    folder: Path  #: the run's folder
    step: int  #: optimiser steps done
    completed: bool  #: whether all steps are done (False: stopped by Ctrl-C or SIGTERM, with a checkpoint)


class _Rows(Sequence[Sequence[int]]):
    """Sample numbers of the steps from ``first`` to ``last``, made when asked for."""

    def __init__(self, world: World, batch_size: int, first: int, last: int) -> None:
        self.world, self.batch_size, self.first, self.last = world, batch_size, first, last

    def __len__(self) -> int:
        return max(0, self.last - self.first)

    def __getitem__(self, i: Any) -> Any:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.world.rows(self.first + i, self.batch_size)


class Trainer:
    """One run of any model: what is learned lies in ``loss_fn``.

    Args:
        config: Settings.
        model: The trained model, on its device.
        loss_fn: Loss of a batch; runs under autocast if the precision says so. One that is `Stateful` is saved too.
        dataset: Samples by number.
        world: This process among the others.
        on_sample: Called with the step as often as it says, on the leading process, while the model has the averaged
            weights and is in eval mode.
        on_export: Called with the step and the averaged weights at each checkpoint on the leading process.
    """

    def __init__(
        self,
        config: LoopConfig,
        model: nn.Module,
        loss_fn: LossFn,
        dataset: Dataset,
        world: World,
        *,
        on_sample: Sampler | None = None,
        on_export: Callable[[int, dict[str, Tensor]], None] | None = None,
    ) -> None:
        self.config, self.model, self.loss_fn, self.dataset, self.world = config, model, loss_fn, dataset, world
        self.on_sample, self.on_export = on_sample, on_export
        self.device = next(model.parameters()).device
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.ema = EMA(model, config.ema_decay)
        self.optimizers = make_optimizers(
            model,
            kind=config.optimizer,
            learning_rate=config.learning_rate,
            muon_learning_rate=config.muon_learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
        self.folder = Path(config.folder)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", config.keep_checkpoints)
        self.step = 0
        self.totals: dict[str, float] = {}
        self.asked_to_stop = False  # this process, by a signal
        self.stopping = False  # all processes, after the current step

    def resume(self) -> bool:
        """Load the newest checkpoint; return whether there was one. Every process reads it for itself."""
        state = self.checkpoints.latest()
        if state is None:
            return False
        load_into(self.model, state["model"], f"the checkpoint of step {state['step']}")
        self.ema.load_state_dict(state["ema"])
        load_optimizers(self.optimizers, state["optimizers"])
        if isinstance(self.loss_fn, Stateful):
            self.loss_fn.load_state_dict(state["loss"])
        self.step, self.totals = state["step"], dict(state["totals"])
        mean = float(self.world.sum(torch.tensor(float(self.step), device=self.device))) / self.world.size
        require(
            mean == self.step,
            f"this process found step {self.step} and the others {mean} on average; put {self.folder} on a shared disk",
        )
        return True

    def save(self) -> None:
        """Write a checkpoint and export the averaged weights (leading process)."""
        if self.world.leads:
            state = {
                "model": self.model.state_dict(),
                "ema": self.ema.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "totals": self.totals,
                "config": self.config.to_dict(),
                "loss": self.loss_fn.state_dict() if isinstance(self.loss_fn, Stateful) else {},
            }
            self.checkpoints.save(self.step, state)
            if self.on_export is not None:
                self.on_export(self.step, self.ema.state_dict())
        self.world.barrier()

    def run(self, *, progress: bool = True) -> TrainResult:
        """Train up to ``config.steps``, from where the run stands.

        Raises:
            NonFiniteLossError: A loss or a gradient is not finite.
        """
        config = self.config
        rows = _Rows(self.world, config.batch_size, self.step, config.steps)
        metrics = None
        if self.world.leads:
            metrics = Metrics(self.folder, resumed_at=self.step, tensorboard=config.tensorboard)
        self.model.train()
        with (
            self._stop_on_signals(),
            self._bar(progress and self.world.leads) as bar,
            closing(metrics) if metrics else nullcontext(),
        ):
            loader = iter(batches(self.dataset, rows, config.workers))
            while self.step < config.steps and not self.stopping:
                began = time.perf_counter()
                images, labels = next(loader)
                waited = time.perf_counter() - began
                self._train_step(Batch(images, labels, SampleRandom(config.seed, rows[self.step - rows.first])))
                self._add("data_wait", waited)
                self._add("seconds", time.perf_counter() - began)
                bar.update(1)
                self._after_step(metrics, bar)
        return TrainResult(self.folder, self.step, self.step >= config.steps)

    def _after_step(self, metrics: Metrics | None, bar: Any) -> None:
        """Do what is due after a step: numbers, checkpoint, samples. The state saved is the state reported."""
        config = self.config
        if self.step % config.log_every == 0:
            self._report(metrics, bar)
        if self.step % config.checkpoint_every == 0 or self.stopping or self.step == config.steps:
            self.save()
        if self.on_sample is not None and self.step % self.on_sample.every == 0:
            self._sample(self.on_sample, metrics)

    def _train_step(self, batch: Batch) -> None:
        config = self.config
        torch.manual_seed(int(mix(config.seed, f"rank {self.world.rank}", [self.step])[0]))  # the model's own dropout
        factor = config.rate_at(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
        numbers = self.backward(batch)
        self.world.average_gradients(self.parameters)
        limit = float("inf") if config.clip_norm is None else config.clip_norm
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        self._count(numbers, norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.step)
        self.step += 1

    def backward(self, batch: Batch) -> dict[str, Tensor]:
        """Add the gradients of this process's samples, part by part; return the loss and the metrics."""
        parts = self.config.accumulate
        share = len(batch.images) // parts
        sums: dict[str, Tensor] = {}
        bf16 = self.config.precision == "bf16"
        for k in range(parts):
            part = batch.part(slice(k * share, (k + 1) * share), self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                loss, metrics = self.loss_fn(part)
            (loss / parts).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss.detach(), **metrics}.items():
                sums[name] = sums[name] + value / parts if name in sums else value / parts
        return sums

    def _count(self, numbers: dict[str, Tensor], norm: Tensor) -> None:
        """Add a step's numbers, averaged over the processes, to the totals; agree on stopping."""
        stop = torch.tensor(float(self.asked_to_stop), device=self.device)
        own = torch.stack([*(value.float() for value in numbers.values()), norm.float(), stop])
        *values, stopping = (self.world.sum(own) / self.world.size).tolist()
        self.stopping = stopping > 0
        for name, value in zip([*numbers, "grad_norm"], values, strict=True):
            if not math.isfinite(value):
                raise NonFiniteLossError(
                    f"{name} is {value} at step {self.step}; the checkpoints in {self.checkpoints.folder} are from "
                    "before it: resume with a lower learning_rate or a smaller clip_norm"
                )
            self._add(name, value)
        self._add("count", 1)

    def _add(self, name: str, value: float) -> None:
        self.totals[name] = self.totals.get(name, 0.0) + value

    def _report(self, metrics: Metrics | None, bar: Any) -> None:
        totals, self.totals = self.totals, {}
        count, seconds, wait = totals.pop("count"), totals.pop("seconds"), totals.pop("data_wait")
        row = {name: total / count for name, total in totals.items()}
        row["learning_rate"] = self.optimizers[0].param_groups[0]["lr"]
        row["images_per_second"] = count * self.config.batch_size / seconds
        row["data_wait"] = wait / seconds
        bar.set_postfix_str(
            f"loss {row['loss']:.4f}, {row['images_per_second']:.1f} images/s, waits for data {row['data_wait']:.0%}",
            refresh=False,
        )
        if metrics is not None:
            metrics.write(self.step, row)

    def _sample(self, draw: Sampler, metrics: Metrics | None) -> None:
        if metrics is not None:
            self.model.eval()
            with self.ema.swapped_into(self.model), torch.no_grad():
                metrics.image("samples", self.step, draw(self.step))
            self.model.train()
        self.world.barrier()

    def _bar(self, shown: bool) -> Any:
        from tqdm import tqdm

        pause = 0.1 if sys.stderr.isatty() else 30.0  # seconds between updates; few in a log file
        return tqdm(
            total=self.config.steps,
            initial=self.step,
            disable=not shown,
            unit="step",
            desc="training",
            mininterval=pause,
            maxinterval=pause,
        )

    @contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM end the run after the current step; a second Ctrl-C ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: object) -> None:
            if self.asked_to_stop and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.asked_to_stop = True

        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

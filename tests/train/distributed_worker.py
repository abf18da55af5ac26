"""One process of a data parallel run, started by torchrun: first the gradients of step 0, then a short training."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from steerdiff.train.config import TrainConfig, read_config
from steerdiff.train.diffusion import build_trainer, train_diffusion
from steerdiff.train.distributed import join_world
from steerdiff.train.losses import Batch
from steerdiff.train.randomness import SampleRandom


def work(config: TrainConfig) -> None:
    """Save the averaged gradients of step 0 as gradients-SIZE-RANK.pt beside the run's folder, then train."""
    world = join_world(torch.device("cpu"))
    trainer = build_trainer(config, torch.device("cpu"), world)
    rows = world.rows(0, config.batch_size)
    trainer.backward(Batch(*trainer.dataset.batch(rows), SampleRandom(config.seed, rows)))
    world.average_gradients(trainer.parameters)
    gradients = {name: p.grad for name, p in trainer.model.named_parameters()}
    torch.save(gradients, Path(config.folder).parent / f"gradients-{world.size}-{world.rank}.pt")
    result = train_diffusion(config, progress=False)
    assert result.completed and not dist.is_initialized()


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(read_config(sys.argv[1]))

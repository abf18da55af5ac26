"""A data parallel run of two processes: first the gradients of step 0, then a short training.

torchrun's own launcher starts the processes, but by forking this one, so that they share its import of torch, which is
most of the time. Argument: a file of settings.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch._dynamo  # what PyTorch imports at the first step of an optimiser: here once for both
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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
    standalone = {"run_id": "test", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}  # as torchrun has it
    two = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, start_method="fork", max_restarts=0, **standalone)
    elastic_launch(two, work)(read_config(sys.argv[1]))

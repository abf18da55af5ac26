"""Train runs in forked processes that are killed at random moments, as often as it takes to finish each.

Forks share one import of torch, which would otherwise be most of the time. Arguments: a file of settings and the most
deaths, for each run. Prints the number of deaths of each.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # what PyTorch imports at the first step of an optimiser: here once, and not in every fork

from steerdiff.train.config import read_config
from steerdiff.train.diffusion import train_diffusion


def reported(folder: str) -> int:
    path = Path(folder) / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def survive(file: str, most: int) -> int:
    """Train the run that a file describes to its end; return how often it was killed."""
    config, draw, deaths = read_config(file), random.Random(0), 0
    while True:
        goal = reported(config.folder) + draw.randint(2, 9) if deaths < most else config.steps + 1
        child = os.fork()
        if child == 0:
            result = train_diffusion(config, resume=True, progress=False)
            os._exit(0 if result.completed else 1)
        while reported(config.folder) < goal:
            finished, status = os.waitpid(child, os.WNOHANG)
            if finished:
                if status:
                    raise SystemExit(os.waitstatus_to_exitcode(status))
                return deaths
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        deaths += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def main() -> None:
    torch.set_num_threads(1)
    for file, most in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        print(survive(file, int(most)))


if __name__ == "__main__":
    main()

"""Train a run in forked processes that are killed at random moments, as often as it takes to finish it.

Forks share one import of torch, which would otherwise be most of the time. Prints the number of deaths.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from steerdiff.train.config import read_config
from steerdiff.train.diffusion import train_diffusion


def reported(folder: str) -> int:
    path = Path(folder) / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def main() -> None:
    config, most = read_config(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    draw, deaths = random.Random(0), 0
    while True:
        goal = reported(config.folder) + draw.randint(2, 9) if deaths < most else config.steps + 1
        child = os.fork()
        if child == 0:
            result = train_diffusion(config, resume=True, progress=False)
            os._exit(0 if result.completed else 1)
        while reported(config.folder) < goal:
            finished, status = os.waitpid(child, os.WNOHANG)
            if finished:
                print(deaths)
                raise SystemExit(os.waitstatus_to_exitcode(status))
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        deaths += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


if __name__ == "__main__":
    main()

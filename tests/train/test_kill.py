"""A run that is killed at random moments ends like one that is not."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from steerdiff.train.config import TrainConfig

from .runs import UNET, curve, same, state_of, tiny_config

WORKER = Path(__file__).with_name("kill_worker.py")


def finish(folder: Path, *runs: tuple[TrainConfig, int]) -> list[int]:
    """Train to the end in other processes, killing up to so many of each run; return how many were killed."""
    words = []
    for number, (config, most_deaths) in enumerate(runs):
        file = folder / f"{number}.json"
        file.write_text(json.dumps(config.to_dict()))
        words += [str(file), str(most_deaths)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [int(deaths) for deaths in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_run_killed_at_random_moments_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    # A row every step and a checkpoint every other, so that kills also meet files that are being written.
    unet = {**UNET, "dropout": 0.3}
    whole = tiny_config(tmp_path, "whole", unet=unet, steps=30, checkpoint_every=2, keep_checkpoints=2, batch_size=2)
    killed = dataclasses.replace(whole, folder=str(tmp_path / "killed"))
    undisturbed, deaths = finish(tmp_path, (whole, 0), (killed, 5))
    assert undisturbed == 0 and deaths >= 3
    expected, actual = state_of(whole), state_of(killed)
    assert same(actual["model"], expected["model"]) and same(actual["ema"], expected["ema"])
    assert curve(killed) == curve(whole) and len(curve(whole)) == 31

"""Two gloo processes under torchrun's launcher against one process with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from steerdiff.errors import UserError
from steerdiff.train.config import TrainConfig
from steerdiff.train.distributed import World

from .distributed_worker import work
from .runs import curve, same, state_of, tiny_config

WORKER = Path(__file__).with_name("distributed_worker.py")


def launch(config: TrainConfig, file: Path) -> None:
    file.write_text(json.dumps(config.to_dict()))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER), str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainConfig, TrainConfig]:
    folder = tmp_path_factory.mktemp("distributed")
    one, two = (tiny_config(folder, name, steps=3, batch_size=8, accumulate=2) for name in ("one", "two"))
    work(one)
    launch(two, folder / "two.json")
    return folder, one, two


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_with_the_double_batch(
    runs: tuple[Path, TrainConfig, TrainConfig],
) -> None:
    folder = runs[0]
    one, first, second = (torch.load(folder / f"gradients-{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert same(first, second)
    for name, gradient in one.items():
        scale = gradient.abs().max()
        # Both are means over the same 8 samples; only the order of the float32 sums differs.
        assert (gradient - first[name]).abs().max() <= 1e-5 * scale + 1e-8, name


@pytest.mark.slow
def test_two_processes_train_like_one(runs: tuple[Path, TrainConfig, TrainConfig]) -> None:
    _, one, two = runs
    for row, other in zip(curve(one)[1:], curve(two)[1:], strict=True):
        assert [float(x) for x in row] == pytest.approx([float(x) for x in other], rel=1e-3)
    weights, others = state_of(one)["model"], state_of(two)["model"]
    # Normalised updates amplify the rounding of gradients that are nearly zero, so only the whole is compared.
    distance = sum(float((weight - others[name]).square().sum()) for name, weight in weights.items())
    assert distance < 1e-5 * sum(float(weight.square().sum()) for weight in weights.values())
    assert (Path(two.folder) / "weights.safetensors").is_file()


def test_every_sample_belongs_to_one_process() -> None:
    worlds = [World(rank, 3) for rank in range(3)]
    rows = [list(world.rows(step, 6)) for step in range(2) for world in worlds]
    assert sum(rows, []) == list(range(12)) and all(len(row) == 2 for row in rows)
    with pytest.raises(UserError, match="batch_size 7 cannot be shared by 3 processes"):
        worlds[0].rows(0, 7)

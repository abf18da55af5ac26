"""Reading streams: filling a network takes about the memory of the network, whatever the format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .makers import SAVERS

APART = Path(__file__).with_name("apart.py")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory as Linux tells it")
@pytest.mark.parametrize("form", SAVERS)
def test_filling_a_network_takes_at_most_a_fifth_more_memory_than_the_file(tmp_path: Path, form: str) -> None:
    tensors = {f"w{i}": torch.full((1024, 1024 * (1 + i % 4)), float(i)) for i in range(19)}
    tensors["turned"] = torch.ones(1024, 2048).T
    SAVERS[form](tensors, tmp_path / "w")
    size = (tmp_path / "w").stat().st_size
    assert 150_000_000 < size < 250_000_000
    command = [sys.executable, str(APART), "fill", str(tmp_path / "w")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    (tmp_path / "w").unlink()
    report = json.loads(run.stdout)
    assert report["result"] is True and size * 0.9 < report["growth"] < size * 1.2

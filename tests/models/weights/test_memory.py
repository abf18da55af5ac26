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
def test_filling_a_network_takes_at_most_a_fifth_more_memory_than_the_file(tmp_path: Path) -> None:
    tensors = {f"w{i}": torch.full((1024, 1024 * (1 + i % 4)), float(i)) for i in range(19)}
    tensors["turned"] = torch.ones(1024, 2048).T
    for form, save in SAVERS.items():
        save(tensors, tmp_path / form)
    command = [sys.executable, str(APART), "fill", *(str(tmp_path / form) for form in SAVERS)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    for form, line in zip(SAVERS, run.stdout.splitlines(), strict=True):
        size = (tmp_path / form).stat().st_size
        (tmp_path / form).unlink()
        assert 150_000_000 < size < 250_000_000
        report = json.loads(line)
        assert report["result"] is True and size * 0.9 < report["growth"] < size * 1.2, form

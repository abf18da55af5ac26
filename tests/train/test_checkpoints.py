from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from steerdiff.errors import UserError
from steerdiff.train.checkpoints import Checkpoints
from steerdiff.train.metrics import Metrics


def test_the_newest_few_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.latest() is None
    for step in (5, 10, 15):
        checkpoints.save(step, {"weights": torch.full((2,), float(step))})
    assert [path.name for path in checkpoints.paths()] == ["step-00000010.pt", "step-00000015.pt"]
    state = checkpoints.latest()
    assert state is not None and state["step"] == 15 and (state["weights"] == 15).all()


def test_a_damaged_file_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    first, second = (checkpoints.save(step, {"x": torch.zeros(1000)}) for step in (1, 2))
    second.write_bytes(second.read_bytes()[:500])
    with caplog.at_level(logging.WARNING):
        state = checkpoints.latest()
    assert state is not None and state["step"] == 1
    assert "step-00000002.pt cannot be read" in caplog.text
    first.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        checkpoints.latest()


def test_another_format_is_named(tmp_path: Path) -> None:
    torch.save({"format": 9, "step": 1}, tmp_path / "step-00000001.pt")
    with pytest.raises(UserError, match="format 9; this version reads 1"):
        Checkpoints(tmp_path, keep=1).latest()


def test_no_code_is_run_from_a_checkpoint(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"format": 1, "step": 1, "x": Evil()}, tmp_path / "step-00000001.pt")
    with pytest.raises(UserError, match="none of the 1"):
        Checkpoints(tmp_path, keep=1).latest()
    assert not (tmp_path / "touched").exists()


class FullDisk:
    """A file that takes 10 kB."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.left = file, 10_000

    def write(self, data: bytes) -> int:
        self.left -= len(data)
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"x": torch.zeros(10)})
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda contents, file: save(contents, FullDisk(file)))
    with pytest.raises(UserError, match="no space is left on the disk"):
        checkpoints.save(2, {"x": torch.zeros(100_000)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]
    state = checkpoints.latest()
    assert state is not None and state["step"] == 1


def test_metrics_read_back_bit_for_bit_and_continue(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    values = [0.1 + 0.2, 1e-17, 1 / 3]
    for step, value in enumerate(values, 1):
        metrics.write(step, {"loss": value})
    lines = metrics.path.read_text().splitlines()
    assert lines[0] == "step,loss" and [float(line.split(",")[1]) for line in lines[1:]] == values
    with metrics.path.open("a") as file:
        file.write("4,0.5\n5,0.")  # a run that was killed while it wrote
    Metrics(tmp_path, resumed_at=2).write(3, {"loss": 7.0})
    assert metrics.path.read_text() == "\n".join([*lines[:3], "3,7.0", ""])


def test_metrics_torn_in_the_header_start_again(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,lo")
    Metrics(tmp_path, resumed_at=0).write(1, {"loss": 0.5})
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,0.5\n"


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, tensorboard=True)
    metrics.write(3, {"loss": 0.25})
    metrics.image("samples", 3, torch.zeros(3, 4, 4, dtype=torch.uint8))
    metrics.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(3, 0.25)]
    assert [e.step for e in events.Images("samples")] == [3]

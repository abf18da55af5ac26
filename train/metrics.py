"""The numbers of a run: a CSV file that a resumed run continues exactly, and TensorBoard events."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from steerdiff.io import atomic_write

__all__ = ["Metrics"]


class Metrics:
    """Rows of numbers, one every few steps.

    Args:
        folder: The run's folder; rows go to ``metrics.csv`` in it.
        resumed_at: Steps already done. Rows of later steps, left by a run that was killed, are dropped.
        tensorboard: Also write events to ``folder``/tensorboard.
    """

    def __init__(self, folder: Path, *, resumed_at: int = 0, tensorboard: bool = False) -> None:
        self.path = folder / "metrics.csv"
        self._columns: list[str] = []
        self._drop_after(resumed_at)
        self._events: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1)

    def _drop_after(self, step: int) -> None:
        if not self.path.exists():
            return
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
        if not rows:
            return
        self._columns, *rest = rows
        whole = [row for row in rest if len(row) == len(self._columns) and row[0].isdigit() and int(row[0]) <= step]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self._columns, *whole] if whole else [])
        self._columns = self._columns if whole else []
        atomic_write(self.path, lambda file: file.write(text.getvalue().encode()))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row; floats are written so that they read back bit for bit."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not self._columns:
                self._columns = ["step", *values]
                writer.writerow(self._columns)
            writer.writerow([step, *(values.get(name, "") for name in self._columns[1:])])
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()

    def image(self, name: str, step: int, pixels: Tensor) -> None:
        """Show an image, uint8 [3, H, W], in TensorBoard."""
        if self._events is not None:
            self._events.add_image(name, pixels, step)

    def close(self) -> None:
        """Finish the events."""
        if self._events is not None:
            self._events.close()

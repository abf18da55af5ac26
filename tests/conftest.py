"""What every test shares: one thread (the runs are parallel), no waiting for the disk, no GPU tests without a GPU."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

try:
    from hypothesis import settings

    settings.register_profile("steerdiff", derandomize=True, deadline=None, max_examples=25)
    settings.load_profile("steerdiff")
except ImportError:  # hypothesis is a development dependency
    pass


def pytest_configure() -> None:
    """Leave files to the operating system: none has to outlive the machine, and thousands are written.

    A descriptor that is closed is still an error. Other processes that tests start wait for the disk.
    """

    def written(file: int) -> None:
        os.fstat(file)

    os.fsync = written


def pytest_collection_finish() -> None:
    """Spare the garbage collector what lives to the end; it would take a twentieth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def golden_folder(root: Path) -> Path:
    """The golden files; STEERDIFF_GOLDEN names another folder."""
    return Path(os.environ.get("STEERDIFF_GOLDEN", root / "tests" / "golden"))

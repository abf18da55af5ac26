"""What is read from the disk is what was written, and nothing else is taken for it."""

from __future__ import annotations

import json
import os
import pickle
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steerdiff.errors import UserError
from steerdiff.scripts.evaluation.cells import Cell, Result
from steerdiff.scripts.evaluation.contestants import TextToImage, Unchanged
from steerdiff.scripts.evaluation.store import Store

CELL = Cell(method="unchanged", settings=Unchanged(), task="low resolution", cases=2, seeds=(0, 1, 2))
MADE = {"code": {"steerdiff.errors": "0123456789ab"}, "weights": "f00d", "size": None}
HERE = {"torch": "2.0", "threads": 2}


def drawn(seed: int = 0) -> Result:
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 3, 3, 8, 8), dtype=np.uint8)
    return Result(images=torch.from_numpy(pixels), evaluations=50.0, seconds=1 / 3)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cells")


def same(one: Result | None, other: Result) -> bool:
    assert one is not None
    equal = torch.equal(one.images, other.images) and one.images.dtype == torch.uint8
    return equal and (one.evaluations, one.seconds) == (other.evaluations, other.seconds)


def test_a_result_is_read_as_it_was_written(store: Store) -> None:
    assert store.read(CELL, MADE) is None
    path = store.write(CELL, MADE, drawn(), HERE)
    assert same(store.read(CELL, MADE), drawn())
    assert path.parent.name == f"unchanged-low-resolution-{CELL.key}" and path == store.path(CELL, MADE)
    (stored,) = store.others(CELL)
    assert stored.provenance == MADE and stored.environment == HERE and same(stored.result, drawn())


def test_the_same_result_gives_the_same_bytes_and_is_compressed(store: Store, tmp_path: Path) -> None:
    flat = Result(images=torch.zeros(2, 3, 3, 64, 64, dtype=torch.uint8), evaluations=1.0, seconds=0.5)
    first = store.write(CELL, MADE, flat, HERE).read_bytes()
    assert Store(tmp_path / "other").write(CELL, MADE, flat, HERE).read_bytes() == first
    assert len(first) < flat.images.numel() / 20


def test_results_of_other_code_lie_beside_each_other(store: Store) -> None:
    other = {**MADE, "weights": "beef"}
    store.write(CELL, MADE, drawn(0), HERE)
    assert store.read(CELL, other) is None
    store.write(CELL, other, drawn(1), HERE)
    assert same(store.read(CELL, MADE), drawn(0)) and same(store.read(CELL, other), drawn(1))
    assert len(store.others(CELL)) == 2


def aside(store: Store) -> list[Path]:
    return sorted(store.home(CELL).glob("*.damaged-*"))


def spoilt(store: Store, spoil: Callable[[bytes], bytes]) -> None:
    """Write a result, spoil its file, and expect one warning and nothing read."""
    path = store.write(CELL, MADE, drawn(), HERE)
    data = spoil(path.read_bytes())
    path.write_bytes(data)
    kept = len(aside(store))
    with pytest.warns(UserWarning) as caught:
        assert store.read(CELL, MADE) is None
    (warning,) = caught
    text = str(warning.message)
    assert str(path) in text and "is not used" in text and aside(store)[-1].name in text and "\n" not in text
    assert len(aside(store)) == kept + 1 and aside(store)[-1].read_bytes() == data and not path.exists()


def test_a_damaged_file_is_warned_of_kept_and_written_again(store: Store) -> None:
    for spoil in (
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"no archive at all",
        lambda data: pickle.dumps({"images": 1}),
        lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
    ):
        spoilt(store, spoil)
    store.write(CELL, MADE, drawn(), HERE)
    assert same(store.read(CELL, MADE), drawn()) and len(aside(store)) == 6


def test_a_flipped_bit_is_noticed_or_changes_nothing(store: Store) -> None:
    path = store.write(CELL, MADE, drawn(), HERE)
    good, noticed = path.read_bytes(), 0
    for place in range(0, len(good), 29):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = store.read(CELL, MADE)
        assert (found is None) == bool(caught)
        assert found is None or same(found, drawn())
        noticed += found is None
        path.write_bytes(good)
    assert noticed > 0.8 * len(good) / 29


def packed(facts: dict[str, Any], images: Any) -> Callable[[bytes], bytes]:
    def pack(data: bytes) -> bytes:
        from io import BytesIO

        buffer = BytesIO()
        np.savez_compressed(buffer, images=images, facts=np.array(json.dumps(facts)))
        return buffer.getvalue()

    return pack


def test_a_file_that_holds_something_else_is_not_taken(store: Store) -> None:
    images = drawn().images.numpy()
    facts = {"identity": CELL.identity(), "provenance": MADE, "evaluations": 1, "seconds": 1, "environment": {}}
    sample = Cell(method="sample", settings=TextToImage(), task="low resolution", cases=2, seeds=(0, 1, 2))
    wrong: list[tuple[dict[str, Any], Any]] = [
        ({**facts, "identity": sample.identity()}, images),  # another cell under this name
        ({**facts, "provenance": {**MADE, "weights": "beef"}}, images),  # other weights under this name
        (facts, images[:1]),
        (facts, images.astype(np.float32)),
        (facts, np.array([None], dtype=object)),  # would need pickle
        ({name: value for name, value in facts.items() if name != "seconds"}, images),
    ]
    for content in wrong:
        spoilt(store, packed(*content))
    path = store.path(CELL, MADE)
    path.write_bytes(packed(facts, images)(b""))
    assert store.read(CELL, MADE) is not None  # the test's own way of packing is right


def test_a_process_killed_while_it_writes_leaves_the_store_as_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork and SIGKILL")
    store.write(CELL, MADE, drawn(0), HERE)
    other = {**MADE, "weights": "beef"}
    child = os.fork()
    if child == 0:

        def half(file: Any, **_: Any) -> None:
            file.write(b"PK" * 1000)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        np.savez_compressed = half  # type: ignore[assignment]
        for provenance in (MADE, other):
            store.write(CELL, provenance, drawn(1), HERE)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert same(store.read(CELL, MADE), drawn(0)) and store.read(CELL, other) is None
    assert len(store.others(CELL)) == 1 and aside(store) == []
    store.write(CELL, other, drawn(1), HERE)
    assert same(store.read(CELL, other), drawn(1))


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="cannot be written"):
        Store(tmp_path / "file").write(CELL, MADE, drawn(), HERE)

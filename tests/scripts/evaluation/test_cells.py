"""What a cell is called on the disk: the same as ever for the same cell, another for every change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from steerdiff.errors import UserError
from steerdiff.samplers import DDIM
from steerdiff.scripts.evaluation.cells import Cell
from steerdiff.scripts.evaluation.contestants import TextToImage, Unchanged

CELL = Cell(method="unchanged", settings=Unchanged(), task="object")


def test_the_key_of_a_cell_is_what_it_was() -> None:
    # Whoever changes this loses all stored results: a new field of a cell needs a default that leaves old keys alone.
    assert CELL.key == "2784be25fca17525564b"


def test_the_identity_holds_every_field_and_the_settings_as_plain_values() -> None:
    cell = Cell(method="sample", settings=TextToImage(steps=3, solver=DDIM(eta=0.5)), task="hole", seeds=(4, 1))
    identity = cell.identity()
    assert set(identity) == set(Cell.__dataclass_fields__)
    assert identity["seeds"] == [4, 1] and identity["settings"]["solver"] == "ddim:eta=0.5"


def test_every_field_changes_the_key_and_equal_cells_share_it() -> None:
    sample = Cell(method="sample", settings=TextToImage(), task="object")
    others = [
        sample,
        replace(sample, settings=TextToImage(steps=24)),
        replace(sample, settings=TextToImage(solver=DDIM(eta=0.5))),
        replace(sample, settings=TextToImage(solver=DDIM(eta=0.25))),
        replace(sample, task="style"),
        replace(sample, cases=15),
        replace(sample, seeds=(0, 2, 1)),
        replace(sample, batch=31),
        replace(sample, case_seed=1),
    ]
    assert len({cell.key for cell in [CELL, *others]}) == len(others) + 1
    assert replace(sample, settings=TextToImage()).key == sample.key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "unchange"}, "did you mean unchanged"),
        ({"task": "objekt"}, "did you mean object"),
        ({"settings": TextToImage()}, "unchanged needs a Unchanged"),
        ({"cases": 0}, "cases is 0; it must be from 1 to"),
        ({"seeds": (1, 1)}, "all different"),
        ({"batch": 0}, "batch is 0; it must be at least 1"),
    ],
)
def test_a_cell_that_cannot_be_run_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(CELL, **change)  # type: ignore[arg-type]

"""docs/solvers.md says what the code does: a row a solver, and code that runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from steerdiff.samplers import CONVENTIONS, SOLVERS

from .measured import ROWS, STEPS, forward_errors, return_errors

TEXT = (Path(__file__).parents[2] / "docs" / "solvers.md").read_text(encoding="utf-8")


def test_every_solver_has_its_row_and_its_order() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| `(\w+)` \| (\d)", TEXT, re.MULTILINE)
    assert {name: (cls, int(order)) for name, cls, order in rows} == {
        name: (cls.__name__, cls.order) for name, cls in SOLVERS.items()
    }


def measured_rows(header: str) -> dict[str, list[float]]:
    """Rows of the table whose first header is given, by solver."""
    table = TEXT.split(f"| {header} |", 1)[1].split("\n\n", 1)[0]
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", table, re.MULTILINE)
    return {name: [float(cell) for cell in cells.split(" | ")] for name, cells in rows}


@pytest.mark.parametrize(("header", "measure"), [("solver", forward_errors), ("there and back", return_errors)])
def test_errors_of_the_tables_are_the_measured_ones(header: str, measure: Callable[..., list[float]]) -> None:
    documented = measured_rows(header)
    assert set(documented) == set(ROWS)
    for name, errors in documented.items():
        assert measure(name, STEPS[:2]) == pytest.approx(errors[:2], rel=0.06), name  # two digits are written


def test_every_convention_has_its_name_in_the_table() -> None:
    cells = re.findall(r"^\| ((?:`[\w+-]+`(?:, )?)+) \|", TEXT.split("| names | samplers |", 1)[1], re.MULTILINE)
    names = set()
    for cell in cells:
        first, *endings = re.findall(r"`([^`]+)`", cell)
        names |= {first, *(first + ending for ending in endings)}
    assert names == set(CONVENTIONS)


def test_code_blocks_of_the_solvers_page_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/solvers.md", "exec"), {})

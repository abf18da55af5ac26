"""docs/solvers.md says what the code does: a row a solver, and code that runs."""

from __future__ import annotations

import re
from pathlib import Path

from steerdiff.samplers import SOLVERS

TEXT = (Path(__file__).parents[2] / "docs" / "solvers.md").read_text(encoding="utf-8")


def test_every_solver_has_its_row_and_its_order() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| `(\w+)` \| (\d)", TEXT, re.MULTILINE)
    assert {name: (cls, int(order)) for name, cls, order in rows} == {
        name: (cls.__name__, cls.order) for name, cls in SOLVERS.items()
    }


def test_code_blocks_of_the_solvers_page_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/solvers.md", "exec"), {})

"""The page of published weights lists every preset, with lines that are Python."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

from steerdiff.models.published import PRESETS
from steerdiff.scripts.weights_page import load_line, sample_line, tables

from .conftest import Done

PAGE = Path(__file__).resolve().parents[2] / "docs" / "weights.md"


def test_the_tables_of_the_page_are_those_of_the_presets() -> None:
    _, _, found = PAGE.read_text(encoding="utf-8").partition("--markdown -->\n\n")
    assert found == tables(), "write them anew: steerdiff info --presets --markdown"


def test_every_preset_has_a_line_to_load_and_a_line_to_sample() -> None:
    text = tables()
    for name, preset in PRESETS.items():
        assert text.count(f"| `{name}` |") == 1
        call = ast.parse(load_line(name, preset)).body[0]
        assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
        ast.parse(sample_line(preset).strip("`").replace("...", "x"))


def test_the_command_lists_all_presets(steerdiff: Callable[..., Done]) -> None:
    done = steerdiff("info", "--presets")
    assert done.code == 0 and all(name in done.out for name in PRESETS)
    assert steerdiff("info", "--presets", "--markdown").out == tables()


def test_the_examples_in_the_prose_name_presets_that_exist() -> None:
    prose = PAGE.read_text(encoding="utf-8").partition("<!--")[0]
    named = re.findall(r"(?:-config |\.pt\", \")([a-z0-9-]+)", prose)
    assert len(named) >= 6 and set(named) <= set(PRESETS)

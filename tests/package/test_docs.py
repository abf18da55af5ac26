"""The documents' code runs, and the commands that they name exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import types
from pathlib import Path

import pytest

import steerdiff
from steerdiff.scripts.cli import run

from ..methods.test_documentation import stand_in

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def runs(page: Path) -> bool:
    """Say whether a page has code that is run here; tests/methods runs that of docs/methods."""
    return bool(blocks(page, "python")) and page.parent.name != "methods"


@pytest.mark.parametrize("name", [name for name, page in zip(NAMES, PAGES, strict=True) if runs(page)])
def test_the_code_of_a_page_runs_from_top_to_bottom(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(steerdiff, "load", stand_in, raising=False)
    page = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)  # dataclasses look for the module that they stand in
    for block in blocks(ROOT / name, "python"):
        exec(compile(block, name, "exec", dont_inherit=True), vars(page))  # our own documents


def commands() -> list[str]:
    found = []
    for page in PAGES:
        for line in re.findall(r"^(?: {4}|```sh\n)(steerdiff .*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            found.append(line.split("  #")[0].strip())
    return sorted(set(found))


@pytest.mark.parametrize("line", commands())
def test_the_commands_of_the_documents_exist_with_their_flags(line: str) -> None:
    words = shlex.split(line)[1:]
    nested = words[0] in ("edit", "finetune", "train", "evaluate", "ablate") and not words[1].startswith("-")
    named = words[:2] if nested else ["ablate", "sample"] if words[0] == "ablate" else words[:1]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        run([*named, "--help"])
    flags = {word.split("=")[0] for word in words if word.startswith("--")} - {"--config", "--preset"}
    missing = {flag for flag in flags if flag not in out.getvalue()}
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_links_between_the_documents_lead_somewhere(name: str) -> None:
    page = ROOT / name
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", prose)
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize(
    "name",
    [
        "embedded.md",
        "edits-summary.md",
        "noisy.md",
        "guidance/adm-scale.md",
        "guidance/overview.md",
        "text/overview.md",
        "text/edits-summary.md",
    ],
)
def test_the_tables_of_the_readme_are_what_the_commands_wrote(name: str) -> None:
    written = re.findall(r"^(?:\|.*\n)+", (ROOT / "docs/results" / name).read_text(), re.MULTILINE)
    readme = (ROOT / "README.md").read_text()
    assert written
    assert [table for table in written if table not in readme] == []


def test_the_speeds_of_the_readme_are_rows_of_the_bench() -> None:
    section = (ROOT / "README.md").read_text().partition("\n## Speed\n")[2].partition("\n## ")[0]
    written = rows((ROOT / "docs/results/bench.md").read_text())
    assert len(rows(section)) > 10
    assert [row for row in rows(section) if row not in written] == []
    assert [row for row in rows(section)[2:] if not row.split("|")[4].strip()] == []  # each was measured


def test_the_readmes_numbers_of_samples_are_those_of_the_command() -> None:
    written = [row.split("|")[1:6] for row in rows((ROOT / "docs/results/samples.md").read_text())]
    numbers = {
        words[0].split("(")[0].strip(): (float(words[2]), float(words[4]))
        for words in written
        if re.fullmatch(r"[\d.]+", words[2].strip())
    }
    shown = [[word.strip() for word in row.split("|")[1:4]] for row in rows((ROOT / "README.md").read_text())]
    table = {words[0].split("(")[0].split(" of ")[0].strip(): words[1:] for words in shown if len(words) == 3}
    assert len(numbers) == 5
    for name, values in numbers.items():
        for text, value in zip(table[name], values, strict=True):
            assert abs(float(text) - value) <= 0.5000001 * 10.0 ** -len(text.partition(".")[2]), name

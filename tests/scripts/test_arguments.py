"""Flags, settings files and their errors."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import tyro

from steerdiff.errors import UserError, require
from steerdiff.samplers import DDIM, DDPM, Solver
from steerdiff.scripts.arguments import parse, plain, restore
from steerdiff.scripts.field_docs import field_docs
from steerdiff.scripts.solver_text import solver_from_text, solver_to_text


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings for a test."""

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()  #: what to draw
    folder: str  #: where it goes
    steps: int = 10  #: how many
    kind: Literal["a", "b"] = "a"
    scale: float | None = None  #: how strong
    seed: int | tuple[int, ...] = 0
    fast: bool = False
    pair: tuple[float, float] = (0.5, 1.0)
    table: dict[str, Any] = field(default_factory=dict)
    solver: Solver = DDPM()
    #: a comment above
    above: int = 1

    def __post_init__(self) -> None:
        require(self.steps > 0, f"steps is {self.steps}; it must be positive")


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_flags_fill_the_dataclass() -> None:
    words = "a b --folder f --steps 3 --kind b --seed 1 2 --fast --solver ddim:eta=0.5 --scale -1.5"
    given = parse(Settings, words.split(), prog="test")
    assert given == Settings(
        prompts=("a", "b"), folder="f", steps=3, kind="b", seed=(1, 2), fast=True, solver=DDIM(eta=0.5), scale=-1.5
    )


def test_a_file_fills_the_rest_and_flags_win(tmp_path: Path) -> None:
    text = "folder: from-file\nsteps: 5\nseed: [3, 4]\nfast: true\npair: [0.1, 2]\ntable: {width: 8}\nsolver: ddim\n"
    file = write(tmp_path, "s.yaml", text)
    given = parse(Settings, ["--steps", "7", "--config", file, "--no-fast", "--table.width", "9"], prog="test")
    wanted = Settings(folder="from-file", steps=7, seed=(3, 4), pair=(0.1, 2.0), table={"width": 9}, solver=DDIM())
    assert given == wanted
    assert parse(Settings, [f"--config={file}"], prog="test").table == {"width": 8}


def test_a_json_file_with_dashes_works_too(tmp_path: Path) -> None:
    file = write(tmp_path, "s.json", json.dumps({"folder": "f", "scale": None, "prompts": ["a red cat", "b"]}))
    given = parse(Settings, ["--config", file], prog="test")
    assert given == Settings(folder="f", prompts=("a red cat", "b"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("folder: f\nstpes: 3\n", r"sets 'stpes', which does not exist; did you mean steps"),
        ("folder: f\nsteps: many\n", r"steps is 'many'; expected int"),
        ("folder: f\nsteps: 2.5\n", r"steps is 2.5; expected int"),
        ("folder: f\nsteps: true\n", r"steps is True; expected int"),
        ("folder: f\nkind: c\n", r"kind is 'c'; expected 'a' or 'b'"),
        ("folder: f\npair: [1]\n", r"pair is \[1\]"),
        ("folder: f\nsteps: 0\n", r"steps is 0; it must be positive"),
        ("- a\n", r"holds no mapping"),
        ("a: [\n", r"cannot be read"),
        ("folder: f\nsolver: dimd\n", r"solver is 'dimd'"),
    ],
)
def test_a_bad_file_gets_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(Settings, ["--config", write(tmp_path, "s.yaml", text)], prog="test")


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a file"):
        parse(Settings, ["--config", str(tmp_path / "none.yaml")], prog="test")
    with pytest.raises(UserError, match=r"neither \.yaml nor \.json"):
        parse(Settings, ["--config", write(tmp_path, "s.txt", "a: 1")], prog="test")
    with pytest.raises(UserError, match="names no file"):
        parse(Settings, ["--config"], prog="test")


def test_a_bad_value_of_a_flag_is_a_user_error() -> None:
    with pytest.raises(UserError, match="steps is 0; it must be positive"):
        parse(Settings, ["--folder", "f", "--steps", "0"], prog="test")


def test_an_unknown_flag_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(Settings, ["--folder", "f", "--stesp", "3"], prog="test")
    assert left.value.code == 2
    assert "--steps" in capsys.readouterr().err


def test_settings_survive_a_round_trip_through_json() -> None:
    settings = Settings(
        prompts=("a b",), folder="f", seed=(1, 2), scale=0.1, solver=DDIM(eta=0.25), table={"a": [1, {"b": None}]}
    )
    stored = json.loads(json.dumps(plain(settings)))
    assert restore(Settings, stored, "the test") == settings


def test_solvers_are_written_as_text() -> None:
    for text in ("ddim", "ddim:eta=0.5", "ddpm", "ddpm:variance=fixed_small", "dpm++2m"):
        assert solver_to_text(solver_from_text(text)) == text
    for text, message in (
        ("ddmi", "known are"),
        ("ddim:theta=1", "has no field 'theta'"),
        ("ddim:eta", "write ddim:field=value"),
    ):
        with pytest.raises(UserError, match=message):
            solver_from_text(text)


def test_the_help_of_a_field_is_its_comment() -> None:
    docs = field_docs(Settings)
    assert docs["folder"] == "where it goes" and docs["above"] == "a comment above"

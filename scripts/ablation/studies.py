"""Ablations in files. Needs no PyTorch, for the help lists them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerdiff.errors import require
from steerdiff.scripts.arguments import read_mapping
from steerdiff.scripts.suggestions import check_keys, closest

__all__ = ["FOLDER", "Study", "read_study", "shipped"]

#: The ablations that come with the library.
FOLDER = Path(__file__).resolve().parents[1] / "ablations"

_KINDS = {"dict": "a mapping", "list": "a list"}


@dataclass(frozen=True, kw_only=True)
class Study:
    """An ablation in a file."""

    method: str  #: name in ``RUNNERS``
    title: str = ""  #: of the table and the plots
    preset: str | None = None  #: where the base starts: a preset of the method
    paper: str | None = None  #: or its paper's "published" or "tuned" settings
    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)  #: fields of the base, by dotted path
    sweep: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  #: lists of values by field, or fields joined by +
    tradeoff: tuple[str, ...] | None = None  #: two scores that a plot sets against each other along the first sweep
    task: str | None = None  #: of the benchmark
    cases: int | None = None  #: of the task
    seeds: int | None = None  #: 0, 1, ... of each case


def shipped() -> list[str]:
    """Return the names of the ablations that come with the library."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_study(file: str) -> Study:
    """Return the ablation in a file, or in the one of that name that comes with the library.

    Raises:
        UserError: There is no such file, or it has other keys or types.
    """
    path = Path(file)
    if not path.suffix and not path.exists():
        require(file in shipped(), f"there is no file {file}, and no ablation of that name; {closest(file, shipped())}")
        path = FOLDER / f"{file}.yaml"
    values = read_mapping(path)
    check_keys(values, [field.name for field in dataclasses.fields(Study)], str(path))
    require("method" in values, f"{path} names no method; write 'method: NAME' in it")
    kinds = {"base": dict, "sweep": dict, "tradeoff": list, "cases": int, "seeds": int}
    for name, value in values.items():
        kind = kinds.get(name, str)
        fits = type(value) is kind or (value is None and name not in ("method", "base", "sweep"))
        require(fits, f"{path}: {name} is {value!r}; expected {_KINDS.get(kind.__name__, kind.__name__)}")
    pair = values.get("tradeoff")
    return Study(**{**values, "tradeoff": None if pair is None else tuple(map(str, pair))})

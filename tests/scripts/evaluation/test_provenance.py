"""What a result is stored with: the weights' hash without loading them, the cases as drawn, and how changes read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from steerdiff.errors import UserError
from steerdiff.methods import SDEdit
from steerdiff.samplers import DDIM, UniPC
from steerdiff.scripts.evaluation import cells, work
from steerdiff.scripts.evaluation import provenance as module
from steerdiff.scripts.evaluation.cells import Cell
from steerdiff.scripts.evaluation.contestants import TextToImage, Unchanged
from steerdiff.scripts.evaluation.provenance import (
    changes,
    code_roots,
    digest,
    file_hashes,
    files_of,
    machine,
    provenance,
    weights_hash,
)
from steerdiff.scripts.evaluation.store import Store
from steerdiff.scripts.runtime import ModelFlags
from steerdiff.train.benchmark import Case, draw_cases

CELL = Cell(method="unchanged", settings=Unchanged(), task="object", cases=2)


def test_the_hash_of_weights_is_the_models_own(weights: Path) -> None:
    for source in ("emoji64", str(weights)):
        assert weights_hash(source) == ModelFlags(weights=source).load().weights_hash != None  # noqa: E711
    with pytest.raises(UserError, match="neither a file or folder nor the name of shipped weights"):
        weights_hash("emoji46")


def test_a_provenance_is_json_and_the_same_again() -> None:
    facts = provenance(CELL, machine(ModelFlags()))
    assert json.loads(json.dumps(facts)) == facts
    assert digest(facts) == digest(provenance(CELL, machine(ModelFlags()))) and len(digest(facts)) == 16
    assert facts["torch"] == torch.__version__ and facts["device"].startswith("cpu")


def test_flags_that_change_images_are_in_it_and_threads_are_not(weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "flags.yaml"
    file.write_text("a: 1")
    plain = ModelFlags()
    flags: list[dict[str, Any]] = [
        {"weights": str(weights)},
        {"precision": "bfloat16"},
        {"size": (64, 32)},
        {"tile": 32},
        {"ema": True},
        {"weights_config": "adm-imagenet64"},
        {"weights_config": str(file)},
    ]
    found = [digest(machine(dataclasses.replace(plain, **change))) for change in flags]
    file.write_text("a: 2")
    found.append(digest(machine(dataclasses.replace(plain, **flags[-1]))))
    assert len({*found, digest(machine(plain))}) == len(found) + 1
    assert machine(dataclasses.replace(plain, threads=1)) == machine(plain)


def test_the_code_of_a_solver_in_the_settings_counts() -> None:
    roots = [code_roots(TextToImage(solver=solver)) for solver in ("ddim", DDIM(), UniPC())]
    assert ("steerdiff.samplers.ddim", "DDIM") in roots[1] and ("steerdiff.samplers.unipc", "UniPC") in roots[2]
    assert ("steerdiff.samplers.ddim", "DDIM") not in [*roots[0], *roots[2]]


def test_a_method_does_not_depend_on_other_methods_scores_or_the_drawing_of_cases() -> None:
    cell = Cell(method="sdedit", settings=SDEdit(), task="object", cases=1)
    code = provenance(cell, {})["code"]
    assert {"steerdiff.methods.sdedit", "steerdiff.guidance.model", "steerdiff.models.unet"} <= set(code)
    assert "steerdiff.methods.ilvr" not in code
    assert not [name for name in code if name.startswith("steerdiff.train")]


@pytest.fixture
def changed_cases(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], str]:
    """Return the hash of the cases of a task after one was changed."""

    def of(change: dict[str, Any]) -> str:
        cases = [*draw_cases("object", 2)]
        cases[1] = dataclasses.replace(cases[1], **change)
        monkeypatch.setattr(module, "draw_cases", lambda task, n, seed: cases)
        module._cases.cache_clear()
        found: str = provenance(CELL, {})["cases"]
        return found

    yield of  # type: ignore[misc]
    module._cases.cache_clear()


def test_what_a_method_is_given_of_a_case_counts_and_its_true_answer_does_not(
    changed_cases: Callable[[dict[str, Any]], str],
) -> None:
    case = draw_cases("object", 2)[1]
    assert case.mask is not None
    dark, less = case.image.clone(), case.mask.clone()
    dark[0, 5, 5] = dark[0, 5, 5] - 1 / 127.5
    less[0, 0, 0] = 1 - less[0, 0, 0]
    before = changed_cases({})
    counted = [{"image": dark}, {"mask": less}, {"mask": None}, {"target_text": "a cat"}, {"source_text": "a cat"}]
    hashes = [changed_cases(change) for change in counted]
    assert len({*hashes, before}) == len(counted) + 1
    scored: list[dict[str, Any]] = [{"truth": dark}, {"changed": less}, {"split": "train"}]
    assert {changed_cases(change) for change in scored} == {before}
    # A field that is new here must be given to methods or be named among those that only scores read.
    known = {"number", "image", "mask", "source_text", "target_text", "source", *module._ONLY_SCORED}
    assert {field.name for field in dataclasses.fields(Case)} == known


@dataclass(frozen=True, kw_only=True)
class Inner:
    trunk: str = "none"


@dataclass(frozen=True, kw_only=True)
class Named(Unchanged):
    """Settings with all that can name a file, and with texts that name none."""

    clip: str = "emoji64"
    delta: Path | None = None
    more: tuple[Path, ...] = ()
    inner: Inner = Inner()
    source_text: str = "flat"
    solver: DDIM = DDIM()


def test_files_that_settings_name_are_found_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flat").mkdir()  # a text that happens to be a folder here names none
    (tmp_path / "clip.pt").write_bytes(b"1")
    (tmp_path / "folder").mkdir()
    one, two = tmp_path / "one.safetensors", tmp_path / "folder"
    settings = Named(delta=one, more=(one, two), inner=Inner(trunk="clip.pt"))
    assert files_of(settings) == {
        "clip": Path("emoji64"),
        "delta": one,
        "more.0": one,
        "more.1": two,
        "inner.trunk": Path("clip.pt"),
    }
    assert files_of(Unchanged()) == {} and "files" not in provenance(CELL, {})


def test_weights_that_were_replaced_make_a_cell_another_and_the_word_says_which(tmp_path: Path) -> None:
    folder, file = tmp_path / "clip", tmp_path / "delta.safetensors"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"a")
    file.write_bytes(b"delta")
    settings = Named(delta=file, more=(folder,), inner=Inner(trunk=str(tmp_path / "missing.pt")))
    hashes = [file_hashes(settings)]
    assert set(hashes[0]) == {"clip", "delta", "more.0"} and None not in hashes[0].values()
    file.write_bytes(b"other")
    hashes.append(file_hashes(settings))
    (folder / "b.bin").write_bytes(b"")
    hashes.append(file_hashes(settings))
    file.unlink()
    hashes.append(file_hashes(settings))
    assert len({json.dumps(one) for one in hashes}) == 4 and hashes[3]["delta"] is None
    assert {one["clip"] for one in hashes} == {hashes[0]["clip"]}
    said = [changes({"files": one}, {"files": hashes[2]}) for one in hashes]
    words = ("delta, more.0", "more.0", None, "delta")
    assert said == [{"files": f"content of the files of {word}"} if word else {} for word in words]
    assert changes({}, {"files": hashes[0]})["files"] == "content of the files of clip, delta, more.0"


def test_a_file_that_is_replaced_while_its_cell_runs_gives_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "delta.safetensors"
    file.write_bytes(b"1")
    monkeypatch.setattr(cells, "RUNNERS", {**cells.RUNNERS, "unchanged": Named})
    item = work.Missing(cell=dataclasses.replace(CELL, settings=Named(delta=file)), provenance={})
    item = dataclasses.replace(item, provenance={"files": file_hashes(item.cell.settings)})
    monkeypatch.setattr(work, "compute", lambda cell, model: file.write_bytes(b"2"))
    model: Any = None
    store = Store(tmp_path / "cells")
    assert "delta: a file was replaced while the command was running" in str(work.finish(item, model, store))
    assert not (tmp_path / "cells").exists()


def test_changes_are_said_in_words() -> None:
    code = {f"steerdiff.a.m{i}": "0" for i in range(5)}
    before = {"torch": "2.4", "weights": "a", "code": {**code, "steerdiff.b": "1"}, "size": None}
    now = {"torch": "2.5", "weights": "b", "code": {"steerdiff.b": "1"}, "size": None}
    assert changes(before, now) == {
        "code": "code (a.m0, a.m1, a.m2 and 2 more)",
        "torch": "torch (2.4, now 2.5)",
        "weights": "weights",
    }
    assert changes(before, before) == {}

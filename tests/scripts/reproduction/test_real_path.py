"""`steerdiff reproduce` with weights in published layouts and folders of pictures: command line to report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from steerdiff.io import load_image, read_settings
from steerdiff.scripts.reproduction import running

from ..conftest import Done
from .conftest import ADM, CLASSIFIER, Shorten, masks, pictures

Run = Callable[..., Done]
DDPM_STEPS = 6


def sdedit(run: Run, tiny: Path, data: Path, out: Path, *more: object) -> Done:
    flags = ("--weights", tiny / "ddpm.ckpt", "--weights-config", tiny / "ddpm.yml", "--data", data, "--out", out)
    return run("reproduce", "sdedit", *flags, "--threads", 1, *more)


def report(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return values


def rows(folder: Path) -> dict[tuple[str, str], Any]:
    return {(row["setting"], row["metric"]): row for row in report(folder)["results"]}


def test_the_published_setting_runs_on_a_checkpoint_and_a_folder(steerdiff: Run, tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    pictures(data / "images", 2, size=48)
    done = sdedit(steerdiff, tiny, data, tmp_path / "out", "--n", 1)
    assert done.code == 0, done.err
    folder = tmp_path / "out" / "sdedit" / "bedroom"
    facts = report(folder)
    assert facts["settings"] == {
        "t0 = 0.5, K = 3": {
            "t0": 0.5,
            "repeats": 3,
            "steps": 1000,
            "official": False,
            "solver": "ddpm:variance=fixed_small",
            "clip": "none",
            "guidance": None,
        }
    }
    assert facts["evaluations of each"] == {"t0 = 0.5, K = 3": 1500.0}
    assert facts["model"]["name"] == "ddpm" and len(facts["model"]["sha256"]) == 64
    made = sorted((folder / "images" / "t0-0.5-k-3").glob("*.png"))
    assert [path.name for path in made] == ["000000.png"]
    settings = read_settings(made[0])
    assert settings["seed"] == 0 and settings["command"] == "reproduce sdedit" and settings["method"] == "SDEdit"
    given = load_image(data / "images" / "00.png", 32)
    found = rows(folder)["t0 = 0.5, K = 3", "rms"]
    expected = float(((load_image(made[0]) - given) / 2).square().mean().sqrt())
    assert found["value"] == pytest.approx(expected, rel=1e-3) and found["value"] > 0.1
    missing = rows(folder)["t0 = 0.5, K = 3", "kid"]
    assert missing["value"] is None and "no reference" in missing["why"]
    assert "KID will not be computed" in done.err
    assert (folder / "report.md").read_text() == done.out and "not computed" in done.out
    assert "the weights are ddpm, not ddpm-bedroom" in done.out and not found["comparable"]


def test_a_killed_run_goes_on_where_it_was(
    steerdiff: Run, tiny: Path, tmp_path: Path, shortened: Shorten, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortened("sdedit", "bedroom", steps=DDPM_STEPS)
    data = tmp_path / "data"
    pictures(data / "images", 5)
    whole = sdedit(steerdiff, tiny, data, tmp_path / "whole", "--batch", 2)
    assert whole.code == 0, whole.err
    original = running._results
    batches: list[list[int]] = []

    def killed(experiment: Any, run: Any, numbers: list[int]) -> torch.Tensor:
        if len(batches) == 1:
            raise KeyboardInterrupt
        batches.append(list(numbers))
        return original(experiment, run, numbers)

    monkeypatch.setattr(running, "_results", killed)
    assert sdedit(steerdiff, tiny, data, tmp_path / "out", "--batch", 2).code == 130
    folder = tmp_path / "out" / "sdedit" / "bedroom"
    assert not (folder / "report.json").exists()

    def noted(experiment: Any, run: Any, numbers: list[int]) -> torch.Tensor:
        batches.append(list(numbers))
        return original(experiment, run, numbers)

    monkeypatch.setattr(running, "_results", noted)
    done = sdedit(steerdiff, tiny, data, tmp_path / "out", "--batch", 2)
    assert done.code == 0 and batches == [[0, 1], [2, 3], [4]]
    assert done.out == whole.out
    sides = [tmp_path / name / "sdedit" / "bedroom" / "images" / "t0-0.5-k-3" for name in ("whole", "out")]
    for number in range(5):
        one, other = (load_image(side / f"{number:06d}.png") for side in sides)
        assert torch.equal(one, other)
    again = sdedit(steerdiff, tiny, data, tmp_path / "out", "--batch", 3)
    assert again.code == 0 and len(batches) == 3 and again.out == whole.out


def test_images_of_other_settings_are_refused_and_never_lost(
    steerdiff: Run, tiny: Path, tmp_path: Path, shortened: Shorten
) -> None:
    shortened("sdedit", "bedroom", steps=DDPM_STEPS)
    data, out = tmp_path / "data", tmp_path / "out"
    pictures(data / "images", 2)
    assert sdedit(steerdiff, tiny, data, out).code == 0
    first = out / "sdedit" / "bedroom" / "images" / "t0-0.5-k-3" / "000000.png"
    before = first.read_bytes()
    shortened("sdedit", "bedroom", t0=0.9)
    changed = sdedit(steerdiff, tiny, data, out)
    assert changed.code == 2 and "was drawn with settings" in changed.err and "--fresh" in changed.err
    assert first.read_bytes() == before
    assert sdedit(steerdiff, tiny, data, out, "--fresh").code == 0 and first.read_bytes() != before
    pictures(data / "images", 2, seed=1)
    assert "was drawn with image" in sdedit(steerdiff, tiny, data, out).err
    assert "was drawn with seed" in sdedit(steerdiff, tiny, data, out, "--seed", 5).err


def test_masks_say_in_white_what_is_kept(steerdiff: Run, tiny: Path, tmp_path: Path, shortened: Shorten) -> None:
    shortened("sdedit", "church-edit", (0, 1), steps=DDPM_STEPS)
    data, out = tmp_path / "data", tmp_path / "out"
    pictures(data / "images", 2)
    masks(data / "masks" / "edit", 2)
    done = sdedit(steerdiff, tiny, data, out, "--recipe", "church-edit", "--setting", "all")
    assert done.code == 0, done.err
    folder = out / "sdedit" / "church-edit"
    found = rows(folder)
    assert found["t0 = 0.5, K = 3", "kept"]["value"] == 0
    assert found["t0 = 0.5, K = 3, as in the code", "kept"]["value"] > 0
    given = load_image(data / "images" / "00.png")
    made = load_image(folder / "images" / "t0-0.5-k-3" / "000000.png")
    assert torch.equal(made[..., :24], given[..., :24])
    assert float((made[..., 24:] - given[..., 24:]).abs().mean()) > 0.1


def test_labels_and_the_classifier_reach_samples_and_methods(
    steerdiff: Run, tiny: Path, tmp_path: Path, shortened: Shorten
) -> None:
    shortened("adm", "imagenet64", (0, 1), steps=3)
    shortened("repaint", "imagenet", (0,), steps=4, jump_n_sample=1)
    data, out = tmp_path / "data", tmp_path / "out"
    pictures(data / "images", 2)
    masks(data / "masks" / "thick", 2)
    pictures(data / "reference", 3)
    common = ("--weights", tiny / "adm.pt", "--weights-config", ADM, "--data", data, "--n", 2, "--threads", 1)
    guided = (*common, "--classifier", tiny / "classifier.pt", "--classifier-config", CLASSIFIER, "--out", out)
    plain = steerdiff("reproduce", "adm", "--recipe", "imagenet64", *common, "--out", out)
    assert plain.code == 0, plain.err  # without a classifier the default setting needs none
    both = steerdiff("reproduce", "adm", "--recipe", "imagenet64", *guided, "--setting", "all")
    assert both.code == 0, both.err
    folder = out / "adm" / "imagenet64" / "images"
    sides = [folder / name / "000001.png" for name in ("no-classifier-250-steps", "classifier-scale-1-250-steps")]
    labels = [read_settings(side)["label"] for side in sides]
    assert labels[0] == labels[1] and 0 <= labels[0] < 1000
    assert not torch.equal(*(load_image(side) for side in sides))
    assert steerdiff("reproduce", "repaint", "--recipe", "imagenet", *guided).code == 0
    pulled = out / "repaint" / "imagenet" / "images" / "thick-wide" / "000000.png"
    shortened("repaint", "imagenet", (0,))
    from dataclasses import replace

    from steerdiff.scripts.papers import PAPERS

    entry = PAPERS["repaint"]
    weak = tuple(replace(one, classifier_scale=1e-6) for one in entry.recipes)
    PAPERS["repaint"] = replace(entry, recipes=weak)
    assert steerdiff("reproduce", "repaint", "--recipe", "imagenet", *guided[:-1], tmp_path / "weak").code == 0
    weakly = tmp_path / "weak" / "repaint" / "imagenet" / "images" / "thick-wide" / "000000.png"
    assert not torch.equal(load_image(pulled), load_image(weakly))


def test_reference_statistics_and_pictures_of_other_sizes_are_read(
    steerdiff: Run, tiny: Path, tmp_path: Path, shortened: Shorten, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steerdiff.scripts.evaluation import fidelity

    monkeypatch.setattr(fidelity, "inception_network", fidelity.recogniser_network)  # stands in: no weights here
    shortened("sdedit", "bedroom", steps=DDPM_STEPS)
    data, out = tmp_path / "data", tmp_path / "out"
    pictures(data / "images", 3)
    pictures(data / "reference" / "a", 2, size=40)
    pictures(data / "reference" / "b", 2, size=64)
    done = sdedit(steerdiff, tiny, data, out)
    assert done.code == 0, done.err
    found = rows(out / "sdedit" / "bedroom")["t0 = 0.5, K = 3", "kid"]
    assert found["value"] is not None and found["how"] == "recogniser, 1 subsets of 3"
    copies = sorted((out / "sdedit" / "bedroom" / "reference").glob("*.png"))
    assert len(copies) == 4 and all(load_image(copy).shape[2:] == (32, 32) for copy in copies)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("no folder", "is no folder"),
        ("no images", "there is no folder"),
        ("empty images", "has no pictures"),
        ("no masks", "masks/edit"),
        ("fewer masks", "has 3 pictures and"),
        ("too few", "has 3 and 9 are asked for"),
        ("grey mask", "is not binary"),
        ("torn image", "cannot be read"),
        ("weights", "neither a file nor a folder"),
        ("setting", "has no setting 'K = 3'"),
    ],
)
def test_bad_data_are_one_clear_error_before_anything_is_drawn(
    steerdiff: Run, tiny: Path, tmp_path: Path, spoil: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("drew something")

    monkeypatch.setattr(running, "_results", never)
    data, more = tmp_path / "data", list[object]()
    if spoil != "no folder":
        data.mkdir()
    if spoil not in ("no folder", "no images"):
        (data / "images").mkdir()
    if spoil not in ("no folder", "no images", "empty images"):
        pictures(data / "images", 3)
    if spoil not in ("no folder", "no masks"):
        masks(data / "masks" / "edit", 2 if spoil == "fewer masks" else 3)
    if spoil == "too few":
        more += ["--n", 9]
    if spoil == "grey mask":
        pictures(data / "masks" / "edit", 3)
    if spoil == "torn image":
        torn = data / "images" / "01.png"
        torn.write_bytes(torn.read_bytes()[:200])
    if spoil == "weights":
        more += ["--weights", tmp_path / "nothing.ckpt"]
    if spoil == "setting":
        more += ["--setting", "K = 3"]
    done = sdedit(steerdiff, tiny, data, tmp_path / "out", "--recipe", "church-edit", *more)
    assert done.code == 2 and says in done.err, done.err
    assert done.err.count(os.linesep) == 1 and "Traceback" not in done.err


def test_weights_are_found_by_their_published_name(
    steerdiff: Run, tiny: Path, tmp_path: Path, shortened: Shorten, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortened("sdedit", "bedroom", steps=DDPM_STEPS)
    data = tmp_path / "data"
    pictures(data / "images", 1)
    shelf = tmp_path / "shelf" / "ermongroup"
    shelf.mkdir(parents=True)
    (shelf / "bedroom.ckpt").write_bytes((tiny / "ddpm.ckpt").read_bytes())
    monkeypatch.setenv("STEERDIFF_WEIGHTS", str(tmp_path / "shelf"))
    flags = ("--data", data, "--out", tmp_path / "out", "--threads", 1)
    wrong = steerdiff("reproduce", "sdedit", *flags)  # found, but too small for the preset
    assert wrong.code == 2 and "bedroom.ckpt" in wrong.err
    right = steerdiff("reproduce", "sdedit", *flags, "--weights-config", tiny / "ddpm.yml")
    assert right.code == 0, right.err

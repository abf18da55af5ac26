"""`steerdiff evaluate samples`, run as a user runs it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steerdiff.io import save_image, to_uint8
from steerdiff.scripts.evaluation.fidelity import recogniser_network
from steerdiff.scripts.evaluation.sample_flags import METRICS
from steerdiff.train.scenes import WORDS, EmojiScenes

from ..conftest import Done, save_tiny

Run = Callable[..., Done]


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """PyTorch's cache, empty: no weights are found there, and nothing may be written there."""
    home = tmp_path / "torch"
    monkeypatch.setenv("TORCH_HOME", str(home))
    return home


def scenes(path: Path, seed: int, n: int = 24) -> Path:
    """Save scenes as an .npz of images."""
    images = to_uint8(EmojiScenes(seed).batch(range(n))[0])
    np.savez(path, arr_0=images.permute(0, 2, 3, 1).numpy())
    return path


def folder(path: Path, seed: int, n: int = 24) -> Path:
    """Save scenes as PNGs with their captions."""
    for number, image in enumerate(EmojiScenes(seed).batch(range(n))[0]):
        save_image(image, path / f"{number:03d}.png", {"prompt": EmojiScenes(seed).scene(number).caption})
    return path


def measured(run: Run, out: Path, *arguments: object) -> tuple[dict[str, Any], dict[tuple[str, str], Any], Done]:
    """Run the command; return the JSON, its rows by metric and features, and what was printed."""
    done = run("evaluate", "samples", "--out", out, "--batch", 8, *arguments)
    assert done.code == 0, done.err
    report = json.loads((out / "samples.json").read_text())
    return report, {(row["metric"], row["features"]): row for row in report["rows"]}, done


# what comes out


def test_two_sides_are_measured_in_the_recognisers_features(steerdiff: Run, tmp_path: Path, no_cache: Path) -> None:
    sides = "--generated", scenes(tmp_path / "a.npz", 1, 140), "--reference", scenes(tmp_path / "b.npz", 2, 150)
    _, rows, _ = measured(steerdiff, tmp_path, *sides)
    values = {metric: rows[metric, "recogniser"]["value"] for metric in list(METRICS)[:5]}
    assert 0 < values["fid"] < 3 and abs(values["kid"]) < 0.05 and 5 < values["inception"] < 48
    assert 0.7 < values["precision"] <= 1 and 0.7 < values["recall"] <= 1
    assert rows["fid", "recogniser"]["n"] == [140, 150]
    assert not no_cache.exists()


def test_a_side_against_itself_is_at_no_distance_and_warned_of(steerdiff: Run, tmp_path: Path) -> None:
    side = scenes(tmp_path / "a.npz", 1, 140)
    _, rows, done = measured(steerdiff, tmp_path, "--generated", side, "--reference", side, "--only", "fid,recall")
    assert abs(rows["fid", "recogniser"]["value"]) < 1e-6 and rows["recall", "recogniser"]["value"] == 1
    assert "both sides are" in done.err


def test_one_true_image_over_and_over_is_precise_and_recalls_little(steerdiff: Run, tmp_path: Path) -> None:
    one = to_uint8(EmojiScenes(2).batch(range(1))[0]).permute(0, 2, 3, 1)
    np.savez(tmp_path / "one.npz", arr_0=one.expand(24, -1, -1, -1).numpy())
    sides = "--generated", tmp_path / "one.npz", "--reference", scenes(tmp_path / "b.npz", 2)
    _, rows, _ = measured(steerdiff, tmp_path, *sides, "--only", "precision,recall")
    assert rows["precision", "recogniser"]["value"] == 1 and rows["recall", "recogniser"]["value"] < 0.1


def test_every_number_is_stamped(steerdiff: Run, tmp_path: Path) -> None:
    sides = "--generated", scenes(tmp_path / "a.npz", 1), "--reference", scenes(tmp_path / "b.npz", 2)
    size = "--kid-subset-size", 10, "--kid-subsets", 4, "--metric-seed", 9
    report, rows, _ = measured(steerdiff, tmp_path, *sides, *size)
    network = report["networks"]["recogniser"]
    assert len(network["sha256"]) == 64 and "64 x 64" in network["resize"]
    assert rows["kid", "recogniser"]["settings"] == "4 subsets of 10, seed 9"
    assert rows["kid", "recogniser"]["spread"] > 0
    assert rows["precision", "recogniser"]["settings"] == "k = 3"
    versions = {"steerdiff", "torch", "torch-fidelity", "open_clip_torch", "lpips", "timm"}
    assert versions <= set(report["environment"])
    assert report["options"]["batch"] == 8 and report["generated"]["n"] == 24


def test_the_table_is_printed_and_written(steerdiff: Run, tmp_path: Path) -> None:
    sides = "--generated", scenes(tmp_path / "a.npz", 1), "--reference", scenes(tmp_path / "b.npz", 2)
    _, _, done = measured(steerdiff, tmp_path, *sides)
    assert done.out == (tmp_path / "samples.md").read_text()
    heads = [line.split(" | ")[0] for line in done.out.splitlines() if line.startswith("| ")]
    assert heads[2:5] == ["| KID (lower is better)", "| precision (higher is better)", "| recall (higher is better)"]


def test_what_lacks_weights_is_named_with_its_flag(steerdiff: Run, tmp_path: Path) -> None:
    sides = "--generated", folder(tmp_path / "a", 1, 8), "--reference", folder(tmp_path / "b", 2, 8)
    _, rows, done = measured(steerdiff, tmp_path, *sides)
    expected = {
        ("kid", "Inception"): "--inception FILE (weights-inception-2015-12-05-6726825d.pth",
        ("clip", "CLIP"): "--clip FILE",
        ("lpips", "alex"): "--lpips-backbone FILE (alexnet-owt-7be5be79.pth",
        ("dino", "DINO"): "--dino FILE (timm's vit_small_patch16_224.dino",
    }
    for key, flag in expected.items():
        assert rows[key]["value"] is None and f"weights absent: give {flag}" in rows[key]["missing"]
        assert f"not measured: {rows[key]['missing']}" in done.out


def test_the_same_flags_give_the_same_numbers(steerdiff: Run, tmp_path: Path) -> None:
    sides = "--generated", scenes(tmp_path / "a.npz", 1), "--reference", scenes(tmp_path / "b.npz", 2)
    reports = [measured(steerdiff, tmp_path / name, *sides)[0] for name in ("x", "y")]
    assert reports[0]["rows"] == reports[1]["rows"]


def test_other_images_are_farther_than_more_of_the_same(steerdiff: Run, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", arr_0=pixels)
    reference = "--reference", scenes(tmp_path / "b.npz", 2), "--only", "kid,recall"
    near = measured(steerdiff, tmp_path, "--generated", scenes(tmp_path / "a.npz", 1), *reference)[1]
    _, far, done = measured(steerdiff, tmp_path, "--generated", tmp_path / "noise.npz", *reference)
    assert far["kid", "recogniser"]["value"] > 10 * abs(near["kid", "recogniser"]["value"])
    assert "32 x 32 resized to 64 x 64" in done.out


# a model, and scenes


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that knows the words of the scenes."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    return save_tiny(path, words=WORDS, image_size=64, unshuffle=4)


def test_a_model_is_sampled_and_set_against_true_scenes(steerdiff: Run, tmp_path: Path, tiny: Path) -> None:
    flags = "--generated", "model", "--weights", tiny, "--reference", "scenes", "--n", 12, "--seed", 3
    sampler = "--steps", 2, "--solver", "ddim:eta=0.5", "--guidance", 2, "--spacing", "trailing"
    report, rows, done = measured(steerdiff, tmp_path, *flags, *sampler)
    record = report["generated"]
    chosen = {"steps": 2, "guidance": 2.0, "solver": "ddim:eta=0.5", "spacing": "trailing"}
    assert record["sampler"] == chosen and record["seeds"] == "3 to 14" and len(record["model"]["sha256"]) == 64
    assert record["caption scenes"] == report["true scenes"]["scenes"]["seed"] == 1_000_003
    assert report["reference"]["scenes"]["seed"] == 2_000_000
    row = rows["kid", "recogniser"]
    assert row["value"] > row["ceiling"] and "| true scenes |" in done.out


def test_true_scenes_are_the_ceiling_that_the_model_is_shown(steerdiff: Run, tmp_path: Path, tiny: Path) -> None:
    n = "--n", 12, "--reference", "scenes", "--only", "kid,precision"
    _, model, _ = measured(steerdiff, tmp_path, "--generated", "model", "--weights", tiny, "--steps", 1, *n)
    _, true, _ = measured(steerdiff, tmp_path, "--generated", "scenes", *n)
    assert [row["ceiling"] for row in model.values()] == [row["value"] for row in true.values()]


def test_samples_are_those_of_the_sample_command(steerdiff: Run, tmp_path: Path, tiny: Path) -> None:
    prompts = EmojiScenes(1_000_000).batch(range(4))[1]
    common = "--weights", tiny, "--steps", 2, "--guidance", 2, "--batch", 4
    assert steerdiff("sample", *prompts, *common, "--out", tmp_path / "drawn").code == 0
    paired = "--reference", "scenes", "--n", 4, "--only", "kid"
    _, model, _ = measured(steerdiff, tmp_path, "--generated", "model", *common, *paired)
    _, drawn, _ = measured(steerdiff, tmp_path, "--generated", tmp_path / "drawn", *paired)
    assert model["kid", "recogniser"]["value"] == pytest.approx(drawn["kid", "recogniser"]["value"], rel=1e-4)


def test_a_model_with_other_words_asks_for_captions(steerdiff: Run, tmp_path: Path, weights: Path) -> None:
    flags = (
        "evaluate",
        "samples",
        "--generated",
        "model",
        "--weights",
        weights,
        "--n",
        3,
        "--steps",
        1,
        "--out",
        tmp_path,
    )
    done = steerdiff(*flags, "--reference", scenes(tmp_path / "a.npz", 1))
    assert done.code == 2 and "give --captions FILE with 3 of them" in done.err
    (tmp_path / "two.json").write_text('["a red cat", "a green apple"]')
    done = steerdiff(*flags, "--captions", tmp_path / "two.json", "--reference", scenes(tmp_path / "a.npz", 1))
    assert done.code == 2 and "has 2 captions for n = 3" in done.err
    (tmp_path / "three.json").write_text('["a red cat", "a green apple", "a cat"]')
    flags = (*flags, "--only", "kid", "--captions", tmp_path / "three.json")
    assert steerdiff(*flags, "--reference", scenes(tmp_path / "a.npz", 1)).code == 0


# statistics


def save_statistics(run: Run, tmp_path: Path, *more: object) -> Path:
    path = tmp_path / "statistics.npz"
    sides = "--generated", scenes(tmp_path / "a.npz", 1, 140), "--reference", scenes(tmp_path / "b.npz", 2, 135)
    measured(run, tmp_path, *sides, "--only", "fid", "--save-statistics", path, *more)
    return path


def test_saved_statistics_stand_for_their_images(steerdiff: Run, tmp_path: Path) -> None:
    path = save_statistics(steerdiff, tmp_path, "--statistics-of", "reference")
    direct = json.loads((tmp_path / "samples.json").read_text())["rows"][0]
    report, rows, _ = measured(steerdiff, tmp_path, "--generated", tmp_path / "a.npz", "--reference", path)
    assert rows["fid", "recogniser"]["value"] == pytest.approx(direct["value"], rel=1e-6)
    assert rows["fid", "recogniser"]["n"] == [140, 135]
    for metric in ("kid", "precision", "recall"):
        assert "needs images" in rows[metric, "recogniser"]["missing"]
    assert rows["inception", "recogniser"]["value"] is not None


def test_saved_statistics_are_mean_and_covariance_of_the_features(steerdiff: Run, tmp_path: Path) -> None:
    path = save_statistics(steerdiff, tmp_path)
    with np.load(path, allow_pickle=False) as file:
        mu, sigma, stamp = file["mu"], file["sigma"], json.loads(str(file["steerdiff"][0]))
    images = to_uint8(EmojiScenes(1).batch(range(140))[0])
    with torch.no_grad():
        features = recogniser_network().build("cpu")(images)[0].numpy()
    assert np.allclose(mu, features.mean(0), atol=1e-6) and np.allclose(sigma, np.cov(features.T), atol=1e-6)
    assert stamp["n"] == 140 and stamp["network"]["sha256"] and stamp["versions"]["torch-fidelity"]


def test_statistics_made_with_other_weights_are_refused(steerdiff: Run, tmp_path: Path) -> None:
    path = save_statistics(steerdiff, tmp_path)
    with np.load(path) as file:
        arrays = dict(file)
    stamp = json.loads(str(arrays["steerdiff"][0]))
    stamp["network"]["sha256"] = "0" * 64
    np.savez(path, **{**arrays, "steerdiff": np.array([json.dumps(stamp)])})
    done = steerdiff("evaluate", "samples", "--generated", tmp_path / "a.npz", "--reference", path, "--out", tmp_path)
    assert done.code == 2 and "was made with sha256 '000" in done.err and "make the statistics again" in done.err


def test_statistics_of_inception_do_not_fit_the_recogniser(steerdiff: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "inception.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    flags = "--generated", scenes(tmp_path / "a.npz", 1, 140), "--reference", tmp_path / "inception.npz"
    done = steerdiff("evaluate", "samples", *flags, "--only", "fid", "--out", tmp_path)
    assert done.code == 2
    assert "holds statistics of 2048 features, and recogniser has 128" in done.err


# bad input


BOTH = ("--generated", "a.npz", "--reference", "b.npz")
DRAWN = ("--generated", "model", "--reference", "scenes", "--n", 1)
BAD: dict[str, tuple[tuple[object, ...], str]] = {
    "no_images": (("--generated", "empty"), "has no images"),
    "no_such_thing": (("--generated", "modle"), "give a folder of images, an .npz file, or one of: model, scenes"),
    "unknown_metric": ((*BOTH, "--only", "kid,recal"), "did you mean recall"),
    "no_metric": ((*BOTH, "--only", ","), "write --only fid,kid"),
    "few_for_fid": ((*BOTH, "--only", "fid"), "needs 129 images a side"),
    "few_for_kid": ((*BOTH, "--only", "kid", "--kid-subset-size", 9), "smaller --kid-subset-size"),
    "few_for_neighbours": ((*BOTH, "--only", "recall", "--neighbours", 8), "needs 9 images"),
    "few_for_splits": ((*BOTH, "--only", "inception"), "smaller --splits"),
    "no_reference": (("--generated", "a.npz", "--only", "kid"), "needs --reference"),
    "no_backbone": ((*BOTH, "--only", "lpips"), "--lpips-backbone FILE"),
    "model_as_reference": (("--generated", "a.npz", "--reference", "model"), "the model is the generated side"),
    "no_captions": ((*BOTH, "--captions", "elsewhere.tsv"), "have no caption"),
    "captions_of_scenes": (("--generated", "scenes", "--captions", "elsewhere.tsv"), "leave captions out"),
    "absent_file": ((*BOTH, "--inception", "absent"), "is no file"),
    "damaged_clip": ((*BOTH, "--clip", "noise.bin", "--captions", "captions.json"), "noise.bin"),
    "bad_recogniser": ((*BOTH, "--recogniser", "noise.bin"), "noise.bin"),
    "no_n": ((*BOTH, "--n", 0), "at least 1"),
    "statistics_suffix": ((*BOTH, "--save-statistics", "x.txt"), "does not end in .npz"),
    "statistics_of_none": (
        ("--generated", "a.npz", "--save-statistics", "x.npz", "--statistics-of", "reference"),
        "give --reference",
    ),
    "bad_steps": ((*DRAWN, "--steps", 0), "steps is 0"),
    "bad_solver": ((*DRAWN, "--solver", "dimd"), "dimd"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_before_any_work(
    steerdiff: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    scenes(tmp_path / "a.npz", 1, 8)
    scenes(tmp_path / "b.npz", 2, 8)
    Path("empty").mkdir()
    Path("elsewhere.tsv").write_text("elsewhere.png\ta cat\n")
    Path("captions.json").write_text(json.dumps(["a cat"] * 8))
    Path("noise.bin").write_bytes(b"no weights")
    arguments, message = BAD[case]
    done = steerdiff("evaluate", "samples", "--out", "out", *arguments)
    assert done.code == 2 and message in done.err, done.err
    assert done.err.count("\n") == 1 and done.err.startswith("steerdiff: ")
    assert not Path("out/samples.json").exists()

"""The commands, run as a user runs them, on a tiny random model."""

from __future__ import annotations

import dataclasses
import inspect
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from steerdiff.guidance import Model
from steerdiff.io import load_image, load_mask, read_settings
from steerdiff.methods import METHODS
from steerdiff.scripts.cli import COMMANDS
from steerdiff.scripts.field_docs import field_docs
from steerdiff.scripts.method_flags import flags_class
from steerdiff.scripts.sample import Sample

from .conftest import SIZE, Done, save_tiny

Run = Callable[..., Done]
FAST = {
    "ilvr": ("--steps", "4", "--downsample", "4"),
    "sdedit": ("--steps", "8", "--repeats", "1"),
    "repaint": ("--steps", "6", "--jump-length", "2", "--jump-n-sample", "2"),
    "invert": ("--steps", "4"),
    "diffedit": ("--steps", "4"),
    "p2p": ("--preset", "emoji64", "--steps", "4", "--target", "a green cat"),
    "nulltext": ("--steps", "4", "--inner-steps", "2"),
    "negprompt": ("--steps", "4"),
    "classifier": ("--steps", "4"),
    "sdg": ("--steps", "4", "--noisy-clip", "emoji64-clip"),  # a clean CLIP sees images of any size
    "blended": ("--steps", "4", "--skip-timesteps", "1", "--views", "2"),
    "imagic": ("--embedding-steps", "2", "--network-steps", "2", "--steps", "4"),
    "unitune": ("--tune-steps", "2", "--steps", "4"),
    "asyrp": ("--degree", "0", "--n-inv", "3", "--n-test", "3"),
    "dreambooth": ("--nouns", "cat", "--tune-steps", "2", "--n-class", "2", "--class-steps", "2", "--steps", "3"),
    "diffusionclip": (
        *("--source-text", "cat", "--target-text", "apple", "--n-images", "2", "--epochs", "1", "--image-steps", "2"),
        *("--n-inv", "3", "--n-train", "2", "--n-test", "3"),
    ),
}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def draw(steerdiff: Run, weights: Path, out: Path, *more: object) -> list[Path]:
    done = steerdiff("sample", "a red cat", "--steps", 3, "--weights", weights, "--out", out, "--threads", 1, *more)
    assert done.code == 0, done.err
    return sorted(path for path in out.glob("*.png") if path.name != "grid.png")


# help


def test_help_lists_the_commands(steerdiff: Run) -> None:
    done = steerdiff("--help")
    assert done.code == 0 and done.err == ""
    assert all(name in done.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(steerdiff: Run, name: str) -> None:
    done = steerdiff(name, "--help")
    assert done.code == 0
    assert "usage" in done.out.lower()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_explains_every_flag(steerdiff: Run, name: str) -> None:
    done = steerdiff("edit", name, "--help")
    assert done.code == 0
    docs = field_docs(flags_class(name))
    bare = [field.name for field in dataclasses.fields(flags_class(name)) if not docs.get(field.name)]
    assert bare == []
    assert "--image" in done.out and "--seed" in done.out


def test_help_of_sample_needs_no_torch() -> None:
    code = (
        "import sys; from steerdiff.scripts.cli import run\ntry: run(['sample', '--help'])\nexcept SystemExit: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.stdout.strip().endswith("False"), done.stderr


def test_the_version_is_printed(steerdiff: Run) -> None:
    assert steerdiff("--version").out.startswith("steerdiff ")


# sample


def test_samples_carry_their_settings(steerdiff: Run, weights: Path, tmp_path: Path) -> None:
    first, second = draw(steerdiff, weights, tmp_path, "--n", 2, "--seed", 5)
    settings = read_settings(second)
    assert settings["seed"] == 6 and settings["prompt"] == "a red cat" and settings["index"] == 1
    assert settings["options"]["steps"] == 3 and settings["model"]["sha256"] and settings["environment"]["torch"]
    assert first.with_suffix(".json").is_file() and (tmp_path / "grid.png").is_file()


def test_the_command_and_the_library_sample_alike_by_default() -> None:
    ours, theirs = Sample(), inspect.signature(Model.sample).parameters
    for name in ("n", "steps", "guidance", "negative", "seed", "solver", "spacing", "clip", "quantile", "batch"):
        assert getattr(ours, name) == theirs[name].default, name


def test_image_k_is_the_image_of_its_seed(steerdiff: Run, weights: Path, tmp_path: Path) -> None:
    _, second = draw(steerdiff, weights, tmp_path / "a", "--n", 2, "--seed", 5)
    (alone,) = draw(steerdiff, weights, tmp_path / "b", "--n", 1, "--seed", 6)
    apart = np.abs(pixels(second).astype(int) - pixels(alone).astype(int))
    assert apart.max() <= 1  # the network's sums may round differently in another batch


def test_every_sample_can_be_made_again_bit_for_bit(steerdiff: Run, weights: Path, tmp_path: Path) -> None:
    for path in draw(steerdiff, weights, tmp_path, "--n", 3, "--batch", 2):
        done = steerdiff("rerun", path, "--out", tmp_path / "again" / path.name)
        assert done.code == 0 and "bit for bit" in done.out, done.err
        assert np.array_equal(pixels(path), pixels(tmp_path / "again" / path.name))


def test_a_rerun_can_be_rerun_and_needs_only_the_sidecar(steerdiff: Run, weights: Path, tmp_path: Path) -> None:
    (path,) = draw(steerdiff, weights, tmp_path, "--solver", "ddpm")
    assert steerdiff("rerun", path.with_suffix(".json"), "--out", tmp_path / "again.png").code == 0
    assert np.array_equal(pixels(path), pixels(tmp_path / "again.png"))
    assert steerdiff("rerun", tmp_path / "again.png").code == 0


def test_a_rerun_that_differs_says_so(steerdiff: Run, weights: Path, tmp_path: Path) -> None:
    (path,) = draw(steerdiff, weights, tmp_path)
    settings = read_settings(path)
    settings["batch"]["seeds"] = [99]
    from steerdiff.io import save_image

    save_image(load_image(path), path, settings)
    done = steerdiff("rerun", path)
    assert done.code == 1 and "differs from" in done.out


def test_a_rerun_with_other_weights_is_refused(steerdiff: Run, weights: Path, tmp_path: Path) -> None:
    (path,) = draw(steerdiff, weights, tmp_path)
    other = save_tiny(tmp_path / "other.safetensors", seed=1)
    done = steerdiff("rerun", path, "--weights", other)
    assert done.code == 2 and "the weights have changed" in done.err
    assert steerdiff("rerun", path, "--weights", other, "--other-weights").code == 1


# edit and invert


@pytest.mark.parametrize("name", METHODS)
def test_every_method_edits_and_can_be_run_again(
    steerdiff: Run,
    weights: Path,
    classifier: Path,
    pictures: Path,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STEERDIFF_CACHE", str(tmp_path / "cache"))
    flags: list[object] = ["edit", name, "--image", pictures / "image.png", "--prompt", "a green apple", "--n", 2]
    if "mask" in inspect.signature(METHODS[name].__call__).parameters:
        flags += ["--mask", pictures / "mask.png"]
    if "y" in inspect.signature(METHODS[name].__call__).parameters:
        flags += ["--y", "apple", "--classifier", classifier]
    flags += [*FAST.get(name, ()), "--weights", weights, "--out", tmp_path, "--threads", 1]
    done = steerdiff(*flags)
    assert done.code == 0, done.err
    paths = [Path(line) for line in done.out.splitlines()]
    assert len(paths) == 2 and load_image(paths[0]).shape == (1, 3, SIZE, SIZE)
    (pictures / "image.png").rename(tmp_path / "moved.png")  # the settings hold the inputs
    try:
        again = steerdiff("rerun", paths[1])
    finally:
        (tmp_path / "moved.png").rename(pictures / "image.png")
    assert again.code == 0, again.out + again.err


def test_a_class_is_drawn_by_name_without_a_picture(
    steerdiff: Run, weights: Path, classifier: Path, tmp_path: Path
) -> None:
    flags: list[object] = ["edit", "classifier", "--classifier", classifier, "--steps", 4, "--solver", "ddim"]
    flags += ["--weights", weights, "--threads", 1]
    images = {}
    for y in ("cat", "apple", "1"):
        done = steerdiff(*flags, "--y", y, "--scale", 500, "--out", tmp_path / y)
        assert done.code == 0, done.err
        images[y] = pixels(Path(done.out.strip()))
    assert np.array_equal(images["apple"], images["1"]) and not np.array_equal(images["apple"], images["cat"])
    again = steerdiff("rerun", tmp_path / "apple" / "classifier-seed0.png")
    assert again.code == 0, again.out + again.err
    wrong = steerdiff(*flags, "--y", "aple", "--out", tmp_path / "wrong")
    assert wrong.code == 2 and "'aple' is no class of tiny-classifier; the nearest is 'apple'" in wrong.err
    none = steerdiff(*flags, "--out", tmp_path / "wrong")
    assert none.code == 2 and "--y" in none.err


def test_sampling_takes_a_class_by_name(steerdiff: Run, weights: Path, classifier: Path, tmp_path: Path) -> None:
    flags: list[object] = ["sample", "--classifier", classifier, "--classifier-scale", 500, "--steps", 3]
    flags += ["--spacing", "leading", "--solver", "ddim", "--weights", weights, "--threads", 1]
    for folder, words in (("name", ("--y", "apple")), ("number", ("--label", 1)), ("other", ("--label", "cat"))):
        assert steerdiff(*flags, *words, "--out", tmp_path / folder).code == 0
    name, number, other = (pixels(tmp_path / folder / "0000-seed0.png") for folder in ("name", "number", "other"))
    assert np.array_equal(name, number) and not np.array_equal(name, other)
    again = steerdiff("rerun", tmp_path / "name" / "0000-seed0.png")
    assert again.code == 0, again.out + again.err
    wrong = steerdiff(*flags, "--y", "dog", "--out", tmp_path / "wrong")
    assert wrong.code == 2 and "'dog' is no class of tiny-classifier" in wrong.err


def test_what_a_mask_protects_comes_back_as_it_was(
    steerdiff: Run, weights: Path, pictures: Path, tmp_path: Path
) -> None:
    done = steerdiff(
        *("edit", "repaint", "--image", pictures / "image.png", "--mask", pictures / "mask.png"),
        *(*FAST["repaint"], "--weights", weights, "--out", tmp_path),
    )
    assert done.code == 0, done.err
    before, after = load_image(pictures / "image.png", SIZE), load_image(Path(done.out.strip()))
    keep = load_mask(pictures / "mask.png", SIZE) == 0
    assert torch.equal(before[keep.expand_as(before)], after[keep.expand_as(after)])


def test_invert_reports_how_near_it_comes(steerdiff: Run, weights: Path, pictures: Path, tmp_path: Path) -> None:
    done = steerdiff("invert", "--image", pictures / "image.png", "--steps", 4, "--weights", weights, "--out", tmp_path)
    assert done.code == 0, done.err
    assert "root mean square difference" in done.out
    assert steerdiff("rerun", Path(done.out.splitlines()[0])).code == 0


def test_a_preset_sets_the_defaults_and_flags_win(
    steerdiff: Run, weights: Path, pictures: Path, tmp_path: Path
) -> None:
    done = steerdiff(
        *("edit", "sdedit", "--preset", "quick", "--steps", 6, "--image", pictures / "image.png"),
        *("--weights", weights, "--out", tmp_path),
    )
    assert done.code == 0, done.err
    options = read_settings(Path(done.out.strip()))["options"]
    assert options["steps"] == 6 and options["repeats"] == 1 and options["clip"] == "clip"


# train and info


def test_training_can_be_driven_by_a_file_and_flags(steerdiff: Run, tmp_path: Path) -> None:
    settings = {
        "folder": "elsewhere",
        "image_size": 32,
        "unet": {"model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_at": [], "unshuffle": 8},
        "text": {"width": 32, "depth": 1, "heads": 2},
        "batch_size": 2,
        "device": "cpu",
    }
    file = tmp_path / "run.json"
    file.write_text(json.dumps(settings))
    run = tmp_path / "run"
    done = steerdiff("train", "diffusion", "--config", file, "--folder", run, "--steps", 2, "--no-progress")
    assert done.code == 0, done.err
    assert json.loads((run / "config.json").read_text())["steps"] == 2
    again = steerdiff("train", "diffusion", "--config", file, "--folder", run, "--steps", 2, "--no-progress")
    assert again.code == 2 and "already holds a training run" in again.err
    assert "text-to-image" in steerdiff("info", run).out


def test_a_classifier_is_trained_by_flags_and_guides(steerdiff: Run, weights: Path, tmp_path: Path) -> None:
    settings = {
        "image_size": 32,
        "trunk": {
            "model_channels": 32,
            "channel_mult": [1],
            "num_res_blocks": 1,
            "attention_at": [],
            "head_channels": 32,
            "unshuffle": 8,
        },
        "batch_size": 2,
        "device": "cpu",
    }
    file = tmp_path / "run.json"
    file.write_text(json.dumps(settings))
    run = tmp_path / "run"
    flags = ("train", "classifier", "--config", file, "--folder", run, "--no-progress")
    assert steerdiff(*flags, "--steps", 1).code == 0
    again = steerdiff(*flags, "--steps", 2)
    assert again.code == 2 and "already holds a training run" in again.err
    assert steerdiff(*flags, "--steps", 2, "--resume").code == 0
    assert "classifier" in steerdiff("info", run).out
    done = steerdiff("sample", "--classifier", run, "--y", "cat", "--weights", weights, "--out", tmp_path / "out")
    assert done.code == 2 and "the classifier sees images of 32 x 32 pixels" in done.err


def test_info_says_what_a_file_holds(steerdiff: Run, weights: Path, tmp_path: Path) -> None:
    assert "torch" in steerdiff("info").out
    facts = steerdiff("info", weights)
    assert facts.code == 0 and "sha256" in facts.out and "parameters" in facts.out and "cosine" in facts.out
    assert "unet.out.2.weight" in steerdiff("info", weights, "--all").out
    (path,) = draw(steerdiff, weights, tmp_path)
    assert "a red cat" in steerdiff("info", path).out


# interrupts


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ there")
def test_ctrl_c_leaves_with_130_and_one_line(weights: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "steerdiff", "sample", "a red cat", "--steps", "1000", "--n", "8"]
    command += ["--weights", str(weights), "--out", str(tmp_path), "--threads", "1", "--solver", "ddim"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests run in the background ignore Ctrl-C
    )
    assert process.stderr is not None
    seen = ""
    start = time.monotonic()
    while "sample:" not in seen and time.monotonic() - start < 60:  # until the loop runs
        seen += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in rest and rest.strip().splitlines()[-1].endswith("steerdiff: interrupted")

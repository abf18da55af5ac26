"""Bad input gets one clear line on stderr, exit code 2 and no traceback."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steerdiff.scripts import cli

from .conftest import Done, save_tiny

Run = Callable[..., Done]


@pytest.fixture
def sample(steerdiff: Run, weights: Path, tmp_path: Path) -> Callable[..., Done]:
    def call(*more: object, prompt: str = "a red cat") -> Done:
        return steerdiff("sample", prompt, "--steps", 2, "--weights", weights, "--out", tmp_path / "out", *more)

    return call


@pytest.fixture
def edit(steerdiff: Run, weights: Path, tmp_path: Path) -> Callable[..., Done]:
    def call(method: str, *more: object) -> Done:
        return steerdiff("edit", method, "--weights", weights, "--out", tmp_path / "out", *more)

    return call


def refused(done: Done, *words: str) -> None:
    """Check that there is one line that says all ``words``."""
    assert done.code == 2, done.out + done.err
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("steerdiff: "), done.err
    for word in words:
        assert word in lines[0]


def test_unknown_commands_methods_and_trainers_name_the_nearest(steerdiff: Run) -> None:
    refused(steerdiff("sampel"), "did you mean sample")
    refused(steerdiff("edit", "sdedti"), "did you mean sdedit")
    refused(steerdiff("train", "difusion"), "did you mean diffusion")
    refused(steerdiff("evaluate", "embeded"), "did you mean embedded")


def test_unknown_words_are_named_with_the_nearest_known(sample: Run) -> None:
    refused(sample(prompt="a red cta"), "cta", "cat")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--steps", 0), ("steps", "0")),
        (("--steps", 1001), ("1001", "1000")),
        (("--n", 0), ("n is 0",)),
        (("--batch", 0), ("batch is 0",)),
        (("--seed", -1), ("seed", "-1")),
        (("--n", 3, "--seed", 1, 2), ("2 seeds", "3")),
        (("--solver", "dimd"), ("'dimd'", "ddim")),
        (("--solver", "ddim:theta=1"), ("no field 'theta'",)),
        (("--guidance", "nan"), ("guidance", "finite")),
        (("--device", "gpu"), ("device is 'gpu'",)),
        (("--threads", 0), ("threads is 0",)),
        (("--label", 3), ("no class labels",)),
    ],
)
def test_bad_flags_of_sample_are_named(sample: Run, flags: tuple[object, ...], words: tuple[str, ...]) -> None:
    refused(sample(*flags), *words)


def test_unknown_flags_are_refused_with_a_suggestion(sample: Run) -> None:
    done = sample("--stesp", 3)
    assert done.code == 2 and "--steps" in done.err and "Traceback" not in done.err


def test_bad_weights_are_explained(steerdiff: Run, weights: Path, tmp_path: Path) -> None:
    def load(path: Path) -> Done:
        return steerdiff("sample", "a red cat", "--weights", path, "--out", tmp_path / "out")

    refused(load(tmp_path / "none.safetensors"), "none.safetensors", "emoji64")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-1000])
    refused(load(cut), "cut.safetensors")
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    refused(load(text), "text.safetensors")
    refused(steerdiff("info", text), "text.safetensors")


def test_weights_of_another_architecture_name_keys_and_shapes(steerdiff: Run, tmp_path: Path) -> None:
    from steerdiff.models.checkpoint import read_header, read_safetensors, save_safetensors

    path = save_tiny(tmp_path / "w.safetensors")
    header = read_header(path)
    header["unet"]["model_channels"] = 64
    save_safetensors(path, read_safetensors(path), header)
    refused(steerdiff("sample", "a red cat", "--weights", path, "--out", tmp_path / "out"), "unet.", "[")


def test_bad_pictures_and_masks_are_explained(edit: Run, pictures: Path, tmp_path: Path) -> None:
    image, mask = pictures / "image.png", pictures / "mask.png"
    refused(edit("sdedit", "--image", tmp_path / "none.png"), "none.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(image.read_bytes()[:2000])
    refused(edit("sdedit", "--image", cut), "cut.png", "truncated")
    grey = tmp_path / "grey.png"
    Image.fromarray(np.full((40, 40), 100, np.uint8)).save(grey)
    refused(edit("repaint", "--image", image, "--mask", grey), "not binary", "threshold")
    refused(edit("sdedit", "--image", image, "--t0", 2), "t0 is 2")
    refused(edit("repaint", "--image", image, "--mask", mask, "--jump-length", 0), "jump_length is 0")
    refused(edit("repaint", "--image", image, "--mask", mask, "--preset", "quik"), "did you mean quick")
    refused(edit("sdedit", "--image", image, "--n", 0), "n is 0")


def test_a_method_without_its_picture_says_what_is_missing(edit: Run, pictures: Path) -> None:
    done = edit("repaint", "--image", pictures / "image.png")
    assert done.code == 2 and "--mask" in done.err and "Traceback" not in done.err


def test_a_folder_that_cannot_be_written_is_found_first(steerdiff: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = steerdiff("sample", "a red cat", "--weights", "not-even-looked-at", "--out", tmp_path / "file" / "out")
    refused(done, "cannot be written")


def test_files_without_settings_cannot_be_rerun(steerdiff: Run, pictures: Path, tmp_path: Path) -> None:
    refused(steerdiff("rerun", pictures / "image.png"), "carries no settings")
    refused(steerdiff("rerun", tmp_path / "none.png"), "does not exist")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 2, "memory is full"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "memory is full"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "no space is left"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 2, "a/b: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, steerdiff: Run, error: BaseException, code: int, words: str
) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_dispatch", fail)
    done = steerdiff("sample")
    assert done.code == code and words in done.err and len(done.err.splitlines()) == 1


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_dispatch", fail)
    with pytest.raises(ZeroDivisionError):
        cli.run(["sample"])


def test_a_real_process_shows_no_traceback_unless_asked() -> None:
    command = [sys.executable, "-m", "steerdiff", "rerun", "none.png"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "steerdiff: none.png does not exist\n"
    import os

    asked = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "STEERDIFF_TRACEBACK": "1"})
    assert asked.returncode == 2 and "Traceback" in asked.stderr

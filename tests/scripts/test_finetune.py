"""The command finetune: it writes a delta that edit uses, goes on where it stopped, and names what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from steerdiff.io import save_image
from steerdiff.models.delta import load_delta
from steerdiff.scripts.finetune import _tuning_methods
from steerdiff.train.scenes import EmojiScenes

from .conftest import Done

#: Settings that finish in seconds and edit nothing well.
QUICK = ("--source-text", "flat", "--target-text", "3d", "--n-inv", 3, "--n-train", 2, "--n-images", 1)
QUICK = (*QUICK, "--image-steps", 2, "--epochs", 1, "--t0", 0.3, "--threads", 1, "--no-progress")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERDIFF_CACHE", str(tmp_path / "cache"))


def test_it_writes_a_delta_that_edit_uses_and_goes_on_only_when_asked(
    steerdiff: Callable[..., Done], tmp_path: Path
) -> None:
    out = tmp_path / "flat-to-3d.safetensors"
    done = steerdiff("finetune", "diffusionclip", *QUICK, "--out", out)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == str(out) and "MB; stored to" in done.out
    delta = load_delta(out)
    assert delta.settings["source_text"] == "flat" and delta.settings["t0"] == 0.3
    again = steerdiff("finetune", "diffusionclip", *QUICK, "--out", out)
    assert again.code == 2 and "already holds a fine-tuning run; resume it" in again.err
    small = steerdiff("finetune", "diffusionclip", *QUICK, "--out", out, "--resume", "--rank", 2)
    assert small.code == 0, small.err
    assert load_delta(out).rank == 2 and load_delta(out).error > delta.error
    save_image(EmojiScenes().batch([0])[0], tmp_path / "scene.png")
    flags = ("--image", tmp_path / "scene.png", "--n-inv", 2, "--n-test", 2, "--threads", 1, "--out", tmp_path / "e")
    edited = steerdiff("edit", "diffusionclip", *flags, "--delta", out)
    assert edited.code == 0, edited.err
    assert Path(edited.out.strip()).is_file()


@pytest.mark.parametrize(
    ("name", "steps", "told"),
    [
        ("imagic", ("--embedding-steps", 1, "--network-steps", 1), True),
        ("unitune", ("--tune-steps", 1, "--batch-size", 1), False),
    ],
)
def test_it_tunes_to_a_picture_and_edit_takes_the_file(
    name: str, steps: tuple[object, ...], told: bool, steerdiff: Callable[..., Done], tmp_path: Path
) -> None:
    text = "a flat cat on a red background"
    save_image(EmojiScenes().batch([0])[0], tmp_path / "scene.png")
    given = ("--image", tmp_path / "scene.png", "--threads", 1)
    out, prompt = tmp_path / "scene.safetensors", ("--prompt", text)
    done = steerdiff("finetune", name, *given, *steps, "--no-progress", "--out", out, *(prompt if told else ()))
    assert done.code == 0, done.err
    assert load_delta(out).method == name
    assert load_delta(out).settings["told"] == (text if told else "beikkpic")
    flags = (*given, "--steps", 2, "--delta", out, "--out", tmp_path / "edited")
    edited = steerdiff("edit", name, *flags, *(() if told else prompt))  # the file knows the text it was tuned to
    assert edited.code == 0, edited.err
    assert Path(edited.out.strip()).is_file() and "another image" not in edited.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("repaint",), "'repaint' is no method that tunes a model"),
        (("diffusionclip", "--out", "delta.pt"), "out is delta.pt; it must end in .safetensors"),
        (("diffusionclip", "--rank", "0"), "rank is 0; it must be at least 1"),
        (("diffusionclip", "--preset", "emoji65"), "diffusionclip has no preset 'emoji65'; did you mean emoji64"),
        (("diffusionclip",), "source_text is empty; say what the image shows"),
        (
            ("diffusionclip", "--source-text", "cat", "--target-text", "dog"),
            "words that this CLIP does not know: 'dog'",
        ),
        (("diffusionclip", "--epochs", "0"), "epochs is 0; it must be at least 1"),
        (("diffusionclip", "--id-weight", "1"), "nothing compares faces"),
        (("imagic", "--image", "none.png", "--prompt", "a cat"), "image is none.png, which is no file"),
        (("unitune", "--image", "none.png", "--t0", "2"), "t0 is 2.0; it must lie in [0, 1]"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: tuple[str, ...],
    message: str,
    steerdiff: Callable[..., Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = steerdiff("finetune", *arguments)
    assert done.code == 2 and message in done.err, done.err


def test_the_help_lists_the_methods_that_tune(steerdiff: Callable[..., Done]) -> None:
    text = steerdiff("finetune").out
    assert all(name in text for name in _tuning_methods()) and "diffusionclip" in text and "repaint" not in text

"""`steerdiff sample` with published weights: flags for the architecture, inpainting, a classifier, a second stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from steerdiff.io import load_image, read_settings, save_image

from .. import published_files as files
from .conftest import Done

Run = Callable[..., Done]
ADM = (
    "--image_size 32 --num_channels 32 --channel_mult 1,2 --num_res_blocks 1 --num_head_channels 16 "
    "--attention_resolutions 16 --class_cond True"
)
UPSAMPLER = (
    "--large_size 64 --small_size 32 --num_channels 32 --channel_mult 1,2 --num_res_blocks 1 "
    "--attention_resolutions 32 --class_cond True --learn_sigma True"
)
CLASSIFIER = "--image_size 32 --classifier_width 64 --classifier_depth 1 --classifier_attention_resolutions 16"


@pytest.fixture
def adm(tmp_path: Path) -> Path:
    from steerdiff.models.published import from_flags
    from steerdiff.models.published.flags import parse_command_line

    for name, flags in (("adm", ADM), ("up", UPSAMPLER), ("classifier", CLASSIFIER)):
        files.write_adm(tmp_path / f"{name}.pt", from_flags(parse_command_line(flags)))
    return tmp_path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_second_stage_enlarges_and_can_be_run_again(steerdiff: Run, adm: Path) -> None:
    out = adm / "out"
    arguments: list[object] = ["sample", "--weights", adm / "adm.pt", "--weights-config", ADM, "--label", 7]
    arguments += ["--steps", 3, "--n", 2, "--out", out, "--threads", 1]
    arguments += ["--upsampler", adm / "up.pt", "--upsampler-config", UPSAMPLER, "--upsampler-steps", 2]
    arguments += ["--classifier", adm / "classifier.pt", "--classifier-config", CLASSIFIER]
    done = steerdiff(*arguments)
    assert done.code == 0, done.err
    image = out / "0001-seed1.png"
    assert pixels(image).shape == (64, 64, 3)
    settings = read_settings(image)
    assert settings["options"]["solver"] == "ddpm" and settings["options"]["spacing"] == "respaced"
    assert set(settings["parts"]) == {"classifier", "upsampler"}
    again = steerdiff("rerun", image)
    assert again.code == 0 and "the same, bit for bit" in again.out, again.err
    without = [*arguments[: arguments.index("--upsampler")], "--out", adm / "plain"]
    assert steerdiff(*without).code == 0 and pixels(adm / "plain" / "0001-seed1.png").shape == (32, 32, 3)


def test_a_changed_classifier_is_noticed_by_a_rerun(steerdiff: Run, adm: Path) -> None:
    arguments = ("sample", "--weights", adm / "adm.pt", "--weights-config", ADM, "--label", 7, "--steps", 2)
    more = ("--classifier", adm / "classifier.pt", "--classifier-config", CLASSIFIER, "--out", adm / "out")
    assert steerdiff(*arguments, *more).code == 0
    from steerdiff.models.published import from_flags
    from steerdiff.models.published.flags import parse_command_line

    files.write_adm(adm / "classifier.pt", from_flags(parse_command_line(CLASSIFIER)), seed=1)
    done = steerdiff("rerun", adm / "out" / "0000-seed0.png")
    assert done.code == 2 and "the weights of the classifier have changed" in done.err


def test_an_inpainting_model_fills_a_picture_from_the_command_line(steerdiff: Run, tmp_path: Path) -> None:
    files.write_folder(tmp_path / "sd", files.tiny_sd(1, inputs="inpainting"))
    torch.manual_seed(0)
    save_image(torch.rand(1, 3, 32, 32) * 2 - 1, tmp_path / "x.png")
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :16] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    weights = ("sample", "a cat", "--weights", tmp_path / "sd", "--steps", 2, "--out", tmp_path / "out")
    missing = steerdiff(*weights)
    assert missing.code == 2 and "needs --image" in missing.err
    done = steerdiff(*weights, "--image", tmp_path / "x.png", "--mask", tmp_path / "mask.png", "--threads", 1)
    assert done.code == 0, done.err
    image = next(path for path in (tmp_path / "out").glob("*.png"))
    assert load_image(image).shape == (1, 3, 32, 32)
    again = steerdiff("rerun", image)
    assert again.code == 0 and "bit for bit" in again.out, again.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--upsampler", "up.pt"], "attention heads"),
        (["--classifier", "classifier.pt", "--classifier-config", CLASSIFIER, "--label"], "a classifier pulls towards"),
        (["--weights-config"], "--weights-config names nothing"),
        (["--image", "x.png"], "which is no file"),
        (["--upsampler", "adm.pt", "--upsampler-config", ADM], "enlarges images of None pixels"),
    ],
)
def test_bad_parts_are_named_before_anything_is_drawn(
    steerdiff: Run, adm: Path, arguments: list[str], message: str
) -> None:
    words = [str(adm / word) if word.endswith(".pt") else word for word in arguments]
    label = [] if words[-1] == "--label" else ["--label", "3"]
    words = [word for word in words if word != "--label"]
    config = [] if "--weights-config" in words else ["--weights-config", ADM]
    done = steerdiff("sample", "--weights", adm / "adm.pt", *config, *label, "--out", adm / "out", *words)
    assert done.code == 2 and message in done.err
    assert not list((adm / "out").glob("*.png")) if (adm / "out").exists() else True

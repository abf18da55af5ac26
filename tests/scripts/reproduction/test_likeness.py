"""Recipes of one subject: where its pictures lie, what is drawn of it, and the scores that compare the two."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import steerdiff as library
from steerdiff.errors import UserError
from steerdiff.guidance.loading import locate
from steerdiff.io import load_image, to_uint8
from steerdiff.scripts.papers import PAPERS
from steerdiff.scripts.reproduction import likeness
from steerdiff.scripts.reproduction.places import read_data
from steerdiff.train.benchmark import draw_cases

from ..conftest import Done
from .conftest import Shorten, pictures

SUBJECTS = PAPERS["dreambooth"].recipes[0]
PROMPT = "a sks cat on a red background"
SHORT = {
    "n_class": 2,
    "class_steps": 2,
    "tune_steps": 1,
    "learning_rate": 1e-2,
    "steps": 2,
    "guidance": 2.0,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    pictures(folder / "subject" / "cat", 3, size=64)
    (folder / "prompts.txt").write_text(f"{PROMPT}\n" * 2)
    return folder


def grey(*levels: int) -> Tensor:
    return torch.stack([torch.full((3, 4, 4), level, dtype=torch.uint8) for level in levels])


def apart(left: Tensor, right: Tensor) -> Tensor:
    return (left.double() - right.double()).mean((1, 2, 3))


def test_every_result_is_compared_with_every_picture_whatever_their_sizes() -> None:
    subject = [grey(1), torch.full((1, 3, 9, 7), 4, dtype=torch.uint8)]

    def measure(results: Tensor, picture: Tensor) -> Tensor:
        return results.double().mean((1, 2, 3)) * picture.double().mean((1, 2, 3))

    assert likeness.likeness(grey(10, 20), subject, measure) == pytest.approx((10 + 20 + 40 + 80) / 4)


def test_pairs_of_one_prompt_differ_and_each_prompt_counts_alike() -> None:
    results, prompts = grey(40, 10, 30, 7, 0), ["a", "b", "a", "c", "a"]
    assert likeness.diversity(results, prompts, apart) == pytest.approx((10 + 40 + 30) / 3)
    both = likeness.diversity(grey(40, 10, 30, 0, 6), ["a", "b", "a", "a", "b"], apart)
    assert both == pytest.approx(((10 + 40 + 30) / 3 + 4) / 2)
    with pytest.raises(UserError, match="no prompt is drawn twice; repeat the lines of prompts.txt"):
        likeness.diversity(results, list("abcde"), apart)


def test_the_identifier_is_left_out_of_a_prompt() -> None:
    assert likeness.without_word("a sks dog, and a dog like sks.", ("sks",)) == "a dog, and a dog like"
    assert likeness.without_word("a dog", ()) == "a dog"


def test_a_copy_is_wholly_alike_and_its_caption_fits_it_best() -> None:
    cases = draw_cases("draw", 4)
    images = to_uint8(torch.stack([case.truth for case in cases]))
    copies, clip = [images[:1]] * 2, likeness.clip_of("cpu", toy=True)
    assert likeness.likeness(images[:1], copies, likeness.dino_of("cpu", toy=True)) == pytest.approx(1)
    assert likeness.image_likeness(images[:1], copies, clip) == pytest.approx(1)
    assert likeness.image_likeness(images[:1], [images[1:2]], clip) < 0.9
    captions = [case.target_text for case in cases]
    turned = [*captions[1:], captions[0]]
    assert likeness.text_likeness(images, captions, clip) > likeness.text_likeness(images, turned, clip) + 0.1
    assert likeness.text_likeness(images, captions, clip) == pytest.approx(float(clip(images, captions).mean()) / 100)


def test_absent_weights_of_the_scores_say_where_they_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"OpenAI's CLIP are absent: ViT-B-32.pt; STEERDIFF_WEIGHTS names no folder"):
        likeness.clip_of("cpu", toy=False)
    monkeypatch.setenv("STEERDIFF_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=rf"dino_deitsmall16_pretrain.pth; it is not in {tmp_path}"):
        likeness.dino_of("cpu", toy=False)


def test_a_subject_is_one_folder_that_is_named_as_its_class(data: Path) -> None:
    inputs, n = read_data(SUBJECTS, data, SUBJECTS.runs[:1], None)
    assert (inputs.subject, n) == (data / "subject" / "cat", 2)
    (data / "subject" / "dog").mkdir()
    with pytest.raises(UserError, match="must hold one folder, named as the class of the subject; it holds cat, dog"):
        read_data(SUBJECTS, data, SUBJECTS.runs[:1], None)
    (data / "subject" / "dog").rmdir()
    for path in (data / "subject" / "cat").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="cat has no pictures"):
        read_data(SUBJECTS, data, SUBJECTS.runs[:1], None)
    (data / "subject" / "cat").rmdir()
    (data / "subject").rmdir()
    with pytest.raises(UserError, match="there is no folder .*subject"):
        read_data(SUBJECTS, data, SUBJECTS.runs[:1], None)


def test_all_results_are_of_one_model_that_was_tuned_to_all_pictures(
    steerdiff: Callable[..., Done], data: Path, tmp_path: Path, shortened: Shorten, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERDIFF_CACHE", str(tmp_path / "cache"))
    recipe = shortened("dreambooth", "subjects", **SHORT)
    flags = ("--weights", locate("emoji64"), "--data", data, "--out", tmp_path / "out", "--threads", 1)
    done = steerdiff("reproduce", "dreambooth", *flags)
    assert done.code == 0, done.err
    assert len(list((tmp_path / "cache" / "deltas").glob("*.safetensors"))) == 1
    folder = tmp_path / "out" / "dreambooth" / "subjects"
    taught = replace(recipe.runs[0].settings, images=(data / "subject" / "cat",), nouns=("cat",))
    expected = to_uint8(taught(library.load("emoji64"), prompt=[PROMPT] * 2, seed=[0, 1]))
    for number in range(2):
        made = to_uint8(load_image(folder / "images" / "lambda-1" / f"{number:06d}.png"))
        assert (made[0].int() - expected[number].int()).abs().max() <= 1
    why = {row["metric"]: row["why"] for row in json.loads((folder / "report.json").read_text())["results"]}
    assert "DINO are absent" in why["dino"] and "CLIP are absent" in why["clip_i"] and "AlexNet" in why["div"]
    pictures(data / "subject" / "cat", 3, size=64, seed=1)
    again = steerdiff("reproduce", "dreambooth", *flags)
    assert again.code == 2 and "was drawn with subject" in again.err


def test_the_toys_compute_every_score(
    steerdiff: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, score = [], likeness.text_likeness
    monkeypatch.setattr(likeness, "text_likeness", lambda *told: read.extend(told[1]) or score(*told))
    done = steerdiff("reproduce", "dreambooth", "--toy", "--threads", 1, "--out", tmp_path)
    assert done.code == 0, done.err
    report = json.loads(next(tmp_path.rglob("report.json")).read_text())
    values = {row["metric"]: row["value"] for row in report["results"] if row["setting"] == "lambda 1"}
    assert set(values) == {"dino", "clip_i", "clip_t", "div"} and all(value is not None for value in values.values())
    assert read and not any("sks" in prompt.split() for prompt in read)
    assert 0 < values["dino"] <= 1 and -1 <= values["clip_i"] < 1 and values["div"] > 0

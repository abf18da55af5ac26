"""The demo, the gallery it draws, and the order of the assets."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from steerdiff.io import read_settings
from steerdiff.methods import METHODS
from steerdiff.models import read_header, read_safetensors, save_safetensors
from steerdiff.scripts import assets, demo
from steerdiff.scripts.assets import STEPS, Stage
from steerdiff.scripts.demo_examples import EXAMPLES, PROMPTS
from steerdiff.scripts.gallery import Cell, Row, Section, draw_gallery
from steerdiff.train.benchmark import box_around
from steerdiff.train.scenes import WORDS, EmojiScenes, parse_caption

from .conftest import Done, save_tiny

Run = Callable[..., Done]
CHEAP = {
    "ilvr": ("--steps", "2", "--downsample", "8"),
    "sdedit": ("--steps", "4", "--repeats", "1"),
    "repaint": ("--steps", "4", "--jump-length", "1", "--jump-n-sample", "2"),
    "invert": ("--steps", "2"),
    "classifier": ("--steps", "2", "--y", "cat"),
    "sdg": ("--steps", "2"),
    "diffusionclip": ("--degree", "0", "--n-inv", "2", "--n-test", "2"),
    "p2p": ("--preset", "emoji64", "--steps", "2"),
    "nulltext": ("--preset", "emoji64", "--steps", "2", "--inner-steps", "1"),
    "negprompt": ("--preset", "emoji64", "--steps", "2"),
    "diffedit": ("--preset", "emoji64", "--steps", "4"),
    "imagic": ("--embedding-steps", "1", "--network-steps", "1", "--steps", "2"),
    "unitune": ("--tune-steps", "1", "--steps", "4"),
    "dreambooth": (
        *("--nouns", "cat", "--tune-steps", "1", "--n-class", "1", "--class-steps", "1", "--steps", "2"),
        *("--prompt", "a sks cat", "--target", "a cat"),
    ),
    "asyrp": ("--degree", "0", "--n-inv", "2", "--n-test", "2"),
    "blended": ("--steps", "3", "--skip-timesteps", "1", "--views", "1"),
}


@pytest.fixture(scope="module")
def scene_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "scenes.safetensors"
    return save_tiny(path, words=WORDS, image_size=64, unshuffle=8)


# the demo


def test_the_demo_shows_every_method() -> None:
    assert set(EXAMPLES) == set(METHODS)
    assert all(EXAMPLES.values())


def test_the_demo_asks_only_for_scenes_that_captions_can_say() -> None:
    for prompt in PROMPTS:
        assert parse_caption(prompt).caption == prompt


def test_the_demo_makes_a_page_and_a_picture(
    steerdiff: Run, scene_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cheap = {name: tuple(replace(e, flags=CHEAP.get(name, ())) for e in of) for name, of in EXAMPLES.items()}
    monkeypatch.setattr(demo, "EXAMPLES", cheap)
    monkeypatch.setattr(demo, "PROMPTS", PROMPTS[:2])
    out = tmp_path / "demo"
    done = steerdiff("demo", "--weights", scene_weights, "--steps", 1, "--out", out, "--threads", 1)
    assert done.code == 0, done.err
    assert str(out / "gallery.png") in done.out and str(out / "index.html") in done.out
    page = (out / "index.html").read_text()
    for name in METHODS:
        assert f"<h2>{name}</h2>" in page
    pictures = re.findall(r"src='([^']*)'", page)
    assert len(pictures) == len(set(pictures)) >= 2 + 3 * len(METHODS)  # no picture overwrites another
    assert all((out / picture).is_file() for picture in pictures)
    assert Image.open(out / "gallery.png").size[0] > 5 * 192
    edited = next((out / "edits").glob("*.png"))
    assert read_settings(edited)["command"].startswith("edit ")
    assert steerdiff("rerun", edited).code == 0


def test_the_mask_of_the_demo_covers_what_changes_and_is_a_box() -> None:
    pair = EmojiScenes(seed=1, pairs=0.0).edit_pair(0, "object")
    box = box_around(pair.mask)
    assert bool((box >= pair.mask).all())
    rows, columns = box[0].any(1), box[0].any(0)
    assert torch.equal(box[0], (rows[:, None] & columns[None]).float())


# the gallery


def test_a_gallery_enlarges_without_smoothing_and_keeps_words_outside_of_pictures() -> None:
    image = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).expand(3, 2, 2).repeat_interleave(16, 1).repeat_interleave(16, 2)
    row = Row(label="label", note="a note", cells=(Cell(image=image, text="below"), Cell(text="words " * 20)))
    sheet = draw_gallery("Title", [Section(title="Part", heads=("one", "two"), rows=(row,))], zoom=3)
    pixels = torch.from_numpy(np.array(sheet.convert("L")))
    black = (pixels == 0).nonzero()
    top, left = black.min(0).values.tolist()
    assert set(pixels[top : top + 47, left : left + 47].unique().tolist()) == {0}
    assert sheet.getpixel((0, 0)) == (255, 255, 255)


def test_a_sheet_is_as_wide_as_its_words() -> None:
    row = Row(label="", cells=(Cell(image=torch.zeros(3, 8, 8)),))
    note = draw_gallery("Title", [Section(title="Part", note="a note that is wider than the picture", rows=(row,))])
    title = draw_gallery("A title that is wider than the picture", [Section(title="Part", rows=(row,))])
    for sheet in (note, title):
        margin = np.array(sheet.convert("L"))[:, -39:]
        assert (margin == 255).all() and sheet.width > 2 * 40 + 3 * 8


# the assets


def test_assets_are_made_in_order_and_only_if_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []

    def stage(name: str, source: str) -> Stage:
        def make(root: Path) -> None:
            made.append(name)
            (root / name).write_text((root / source).read_text() + name)

        return Stage(inputs=(Path(source),), outputs=(Path(name),), make=make)

    monkeypatch.setattr(assets, "STEPS", {"b": stage("b", "a"), "c": stage("c", "b")})
    (tmp_path / "setup.py").write_text("")
    (tmp_path / "assets").mkdir()
    (tmp_path / "a").write_text("1")
    call = ["--root", str(tmp_path)]
    assert assets.main([*call, "--check"]) == 1
    assert assets.main(call) == 0 and made == ["b", "c"]
    assert assets.main(call) == 0 and made == ["b", "c"]
    assert assets.main([*call, "--check"]) == 0
    (tmp_path / "a").write_text("2")
    assert assets.main(call) == 0 and made == ["b", "c", "b", "c"]
    (tmp_path / "c").write_text("edited by hand")
    assert assets.main(call) == 0 and made[4:] == ["c"]


def test_the_base_weights_are_shipped_in_half_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "STEPS", {})
    (tmp_path / "setup.py").write_text("")
    weights = torch.linspace(-3, 3, 50)
    save_safetensors(tmp_path / "run.safetensors", {"w": weights}, {"kind": "unet", "step": 7})
    assert assets.main(["--root", str(tmp_path), "--base", str(tmp_path / "run.safetensors")]) == 0
    shipped = tmp_path / "assets/weights/emoji64.safetensors"
    header = read_header(shipped)
    assert (header["name"], header["step"]) == ("emoji64", 7)
    assert torch.equal(read_safetensors(shipped)["w"], weights.half())


def test_no_stage_of_the_assets_uses_what_a_later_one_makes() -> None:
    later: set[Path] = set()
    for stage in reversed(STEPS.values()):
        assert not later & set(stage.inputs)
        later |= set(stage.outputs)


def test_what_is_shipped_was_made_from_what_is_shipped(root: Path) -> None:
    if not (root / assets.HASHES).is_file():
        pytest.skip("no hashes are recorded yet; make assets records them")
    assert assets.stale(root) == {}

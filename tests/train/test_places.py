"""The lesson about places: what the words carry afterwards, and what stays as it was."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from steerdiff.errors import UserError
from steerdiff.models import TextConfig, WordEncoder
from steerdiff.train import TrainConfig, train_diffusion
from steerdiff.train.places import REACH, sides, teach_places
from steerdiff.train.scenes import WORDS, EmojiScenes

from .runs import tiny_config


@pytest.fixture
def encoder() -> WordEncoder:
    torch.manual_seed(0)
    return WordEncoder(TextConfig(words=WORDS, width=32, length=16))


def test_sides_are_those_of_the_scenes(encoder: WordEncoder) -> None:
    scenes = EmojiScenes(3, pairs=0.7).scenes(range(40))
    places, named = sides(encoder, scenes)
    for scene, place, name in zip(scenes, places, named, strict=True):
        words = ["", *encoder.words(scene.caption)]
        things = [words[token] for token in torch.nonzero(name)[:, 0].tolist()]
        assert things == [word for item in scene.items for word in (item.style, item.object)]
        expected = [(0.0, 0.0)] * 2
        if scene.relation is not None:
            expected = [
                pair
                for item in scene.items
                for pair in [((item.x > 32) - (item.x < 32), (item.y > 32) - (item.y < 32))] * 2
            ]
            across = scene.relation in ("left of", "right of")
            expected = [(x if across else 0, 0 if across else y) for x, y in expected]
        assert [tuple(row) for row in place[name].tolist()] == expected
        assert not place[~name].any()


def test_places_are_learned_from_captions_alone_and_the_rest_stays(encoder: WordEncoder) -> None:
    old = copy.deepcopy(encoder)
    share = teach_places(encoder, EmojiScenes(5, pairs=0.8), steps=300, batch=32, learning_rate=8e-3)
    assert share > 0.95
    scenes = EmojiScenes(6, pairs=1.0).scenes(range(64))  # new ones
    ids, mask = encoder.tokenize([scene.caption for scene in scenes])
    places, named = sides(encoder, scenes)
    with torch.no_grad():
        change = encoder(ids, mask) - old(ids, mask)
        empty = encoder.tokenize([""])
        assert (encoder(*empty) - old(*empty))[empty[1]].square().mean() < 0.05
    assert change[named].square().sum(-1).mean() > 0.5 * REACH**2
    others = mask & ~named
    assert change[others].square().mean() < 0.1


def test_a_run_takes_its_lesson_once(tmp_path: Path) -> None:
    def run(name: str, place_steps: int) -> TrainConfig:
        settings = {"data": "emoji-scenes", "data_options": {}, "text": {"width": 16}, "image_size": 32}
        return tiny_config(tmp_path, name, **settings, place_steps=place_steps, steps=2)

    weights = []
    for name, place_steps in (("plain", 0), ("taught", 3)):
        train_diffusion(run(name, place_steps), progress=False)
        weights.append((tmp_path / name / "weights.safetensors").read_bytes())
    assert weights[0] != weights[1]
    train_diffusion(run("taught", 3), resume=True, progress=False)  # complete: nothing is taught again
    assert (tmp_path / "taught" / "weights.safetensors").read_bytes() == weights[1]


def test_a_lesson_needs_captions_of_scenes(tmp_path: Path, encoder: WordEncoder) -> None:
    with pytest.raises(UserError, match="place_steps needs a text encoder and the emoji scenes"):
        settings = {"data": "emoji-scenes", "data_options": {}, "image_size": 32}
        train_diffusion(tiny_config(tmp_path, "none", **settings, text=None, place_steps=1), progress=False)
    with pytest.raises(UserError, match="steps is 0; teach places for at least 1 step"):
        teach_places(encoder, EmojiScenes(0), steps=0)

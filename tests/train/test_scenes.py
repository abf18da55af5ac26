"""Emoji scenes: the same everywhere, captioned exactly, with true answers to edits."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from steerdiff.errors import UserError
from steerdiff.train.scene_text import SPRITES, Description, article
from steerdiff.train.scenes import (
    COLOURS,
    EDITS,
    GRID,
    OBJECTS,
    RELATIONS,
    RESERVED_WORDS,
    STYLES,
    WORDS,
    EmojiScenes,
    Item,
    Scene,
    is_held_out,
    parse_caption,
)
from steerdiff.train.sprites import ART_STYLES, art_names, load_sprite
from steerdiff.train.subjects import subject_images

DIGEST = """
import hashlib
from steerdiff.train.scenes import EmojiScenes
images, captions = EmojiScenes(seed=5).batch(range(40, 60))
print(hashlib.sha256(images.numpy().tobytes() + "".join(captions).encode()).hexdigest())
"""


def test_scenes_are_the_same_in_another_process() -> None:
    images, captions = EmojiScenes(seed=5).batch(range(40, 60))
    here = hashlib.sha256(images.numpy().tobytes() + "".join(captions).encode()).hexdigest()
    there = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True).stdout.strip()
    assert here == there


class Listed(torch.utils.data.Dataset):
    def __init__(self, scenes: EmojiScenes) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return 24

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.scenes[i].image


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_scenes_do_not_depend_on_the_number_of_workers(workers: int) -> None:
    loaded = torch.cat(list(DataLoader(Listed(EmojiScenes(seed=1)), batch_size=8, num_workers=workers)))
    assert torch.equal(loaded, EmojiScenes(seed=1).batch(range(24))[0])


def test_captions_of_published_scenes_never_change() -> None:
    assert [scene.caption for scene in EmojiScenes(0).scenes([0, 1, 2])] == [
        "a 3d whale on an orange background",
        "a 3d whale on a blue background",
        "a twemoji cactus right of a twemoji book on an orange background",
    ]


def test_a_scene_does_not_depend_on_the_order_or_company_it_is_asked_in() -> None:
    scenes = EmojiScenes(seed=2)
    images, captions = scenes.batch([7, 3, 11])
    for image, caption, i in zip(images, captions, [7, 3, 11], strict=True):
        assert torch.equal(image, scenes[i].image)
        assert caption == scenes[i].caption


def test_seeds_and_splits_give_other_scenes() -> None:
    sets = [EmojiScenes(0), EmojiScenes(1), EmojiScenes(0, "held_out")]
    captions = [tuple(scene.caption for scene in scenes.scenes(range(20))) for scenes in sets]
    assert len(set(captions)) == 3


def test_images_are_whole_colour_values_in_range() -> None:
    images, _ = EmojiScenes(seed=3).batch(range(64))
    assert images.shape == (64, 3, 64, 64)
    assert images.dtype == torch.float32
    values = (images + 1) * 127.5
    assert (values - values.round()).abs().max() < 1e-4
    assert images.min() >= -1
    assert images.max() <= 1


def test_smaller_scenes_are_box_averages() -> None:
    large, captions = EmojiScenes(seed=3).batch(range(8))
    small, same = EmojiScenes(seed=3, image_size=32).batch(range(8))
    assert captions == same
    assert torch.allclose(small, large.unflatten(3, (32, 2)).unflatten(2, (32, 2)).mean((3, 5)), atol=1e-6)


def test_each_object_has_one_held_out_colour_and_each_colour_six_objects() -> None:
    held_out = [(name, colour) for name in OBJECTS for colour in COLOURS if is_held_out(name, colour)]
    assert Counter(name for name, _ in held_out) == dict.fromkeys(OBJECTS, 1)
    assert Counter(colour for _, colour in held_out) == dict.fromkeys(COLOURS, 6)


def test_training_never_shows_a_held_out_combination_and_the_other_split_nothing_else() -> None:
    for scene in EmojiScenes(seed=0, pairs=0.5).scenes(range(3000)):
        assert not any(is_held_out(item.object, scene.colour) for item in scene.items)
        assert scene.description.seen
    for scene in EmojiScenes(seed=0, split="held_out", pairs=0.5).scenes(range(1000)):
        assert all(is_held_out(item.object, scene.colour) for item in scene.items)
        assert scene.description.held_out


def test_every_seen_combination_is_in_training() -> None:
    scenes = EmojiScenes(seed=0).scenes(range(6000))
    seen = {(item.object, scene.colour) for scene in scenes for item in scene.items}
    assert len(seen) == 48 * 7
    assert {item.style for scene in scenes for item in scene.items} == set(STYLES)
    assert {scene.relation for scene in scenes} == {None, *RELATIONS}


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    """Twenty thousand scenes."""
    return EmojiScenes(seed=9).scenes(range(20000))


@pytest.mark.parametrize("of", ["object", "style", "colour", "pair"])
def test_names_are_drawn_evenly(of: str, many: list[Scene]) -> None:
    scenes, n = many, len(many)
    if of == "pair":
        counts, share = Counter(len(scene.items) == 2 for scene in scenes), {True: 0.3}
    elif of == "colour":
        counts, share = Counter(scene.colour for scene in scenes), dict.fromkeys(COLOURS, 1 / 8)
    else:
        counts = Counter(getattr(scene.items[0], of) for scene in scenes)
        share = dict.fromkeys(OBJECTS if of == "object" else STYLES, 1 / (48 if of == "object" else 3))
    for name, p in share.items():
        assert abs(counts[name] / n - p) < 5 * (p * (1 - p) / n) ** 0.5, name


def test_centres_lie_on_the_grid_and_sizes_are_the_two_of_the_domain() -> None:
    for scene in EmojiScenes(seed=4, pairs=0.5).scenes(range(500)):
        for item in scene.items:
            assert item.x % GRID == item.y % GRID == 0
            assert item.size == (40 if len(scene.items) == 1 else 28)


def test_the_two_objects_of_a_scene_differ_and_do_not_touch() -> None:
    for scene in EmojiScenes(seed=4, pairs=1.0).scenes(range(500)):
        first, second = scene.items
        assert first.object != second.object
        assert max(abs(first.x - second.x), abs(first.y - second.y)) >= first.size


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.sampled_from(["train", "held_out"]))
@settings(derandomize=True, max_examples=150, deadline=None)
def test_captions_parse_back_to_the_scene(seed: int, i: int, split: str) -> None:
    scene = EmojiScenes(seed, split, pairs=0.5).scene(i)
    assert parse_caption(scene.caption) == scene.description
    assert set(scene.caption.split()) <= set(WORDS)
    assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


def test_captions_are_grammatical() -> None:
    things = (("flat", "cat"), ("3d", "apple"))
    assert (
        Description(things=things, colour="orange", relation="left of").caption
        == "a flat cat left of a 3d apple on an orange background"
    )
    assert Description(things=things[:1], colour="blue").caption == "a flat cat on a blue background"
    assert article("umbrella") == "an"


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a flat cat", "is not a caption"),
        ("a flat cat beside a 3d apple on a blue background", "is not a caption"),
        ("a flat catt on a blue background", "did you mean cat"),
        ("a noto cat on a blue background", "not a known style"),
        ("a flat cat on a black background", "not a known colour"),
    ],
)
def test_a_bad_caption_is_named(caption: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_caption(caption)


def test_words_are_complete_and_unique() -> None:
    assert len(set(WORDS)) == len(WORDS) == 9 + 3 + 48 + 8 + len(RESERVED_WORDS)
    assert {"sks", "beikkpic"} <= set(RESERVED_WORDS)
    assert not set(RESERVED_WORDS) & {*OBJECTS, *COLOURS, *STYLES}
    assert all(word.islower() or word == "3d" for word in WORDS)


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("image_size", [64, 32])
def test_source_and_target_are_equal_exactly_where_the_mask_is_0(split: str, kind: str, image_size: int) -> None:
    for i in range(40):
        pair = EmojiScenes(seed=6, split=split, image_size=image_size).edit_pair(i, kind)
        differs = (pair.source.image != pair.target.image).any(0, keepdim=True)
        assert pair.mask.shape == (1, image_size, image_size)
        assert torch.equal(pair.mask, differs.float())
        assert 0.005 < pair.mask.mean() < 1


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_changes_what_it_names_and_nothing_else(kind: str) -> None:
    for i in range(60):
        pair = EmojiScenes(seed=7, pairs=0.5).edit_pair(i, kind)
        source, target = pair.source.scene, pair.target.scene
        changed = [
            key
            for key in ("object", "style", "x", "y", "size")
            if any(getattr(a, key) != getattr(b, key) for a, b in zip(source.items, target.items, strict=True))
        ]
        assert set(changed) <= ({"x", "y"} if kind == "relation" else {kind} - {"colour"})
        assert (source.colour != target.colour) == (kind == "colour")
        assert (source.relation != target.relation) == (kind == "relation")
        assert pair.source.caption == source.caption
        assert pair.target.caption == target.caption
        assert len(pair.source.caption.split()) == len(pair.target.caption.split())
        assert pair.source.caption != pair.target.caption


def test_only_the_background_changes_in_a_colour_edit_and_only_the_objects_in_the_others() -> None:
    for kind in EDITS:
        pair = EmojiScenes(seed=8, pairs=0.0).edit_pair(3, kind)
        corners = pair.mask[0, [0, 0, -1, -1], [0, -1, 0, -1]]
        assert (corners == (1 if kind == "colour" else 0)).all()


@pytest.mark.parametrize("kind", EDITS)
def test_edits_of_training_stay_in_training_and_held_out_targets_are_held_out(kind: str) -> None:
    for i in range(60):
        pair = EmojiScenes(seed=7).edit_pair(i, kind)
        assert pair.source.scene.description.seen
        assert pair.target.scene.description.seen
        pair = EmojiScenes(seed=7, split="held_out").edit_pair(i, kind)
        assert pair.target.scene.description.held_out
        assert pair.source.scene.description.seen == (kind == "colour")


def test_flat_and_3d_share_their_outlines_where_twemoji_does_not() -> None:
    def overlap(name: str, a: str, b: str) -> float:
        inks = [load_sprite(name, style, 40).transparency < 0.5 for style in (a, b)]
        return float((inks[0] & inks[1]).sum() / (inks[0] | inks[1]).sum())

    fluent = np.array([overlap(name, "flat", "3d") for name in OBJECTS])
    other = np.array([overlap(name, "flat", "twemoji") for name in OBJECTS])
    assert np.median(fluent) > 0.9
    assert np.median(fluent) > np.median(other) + 0.1


def test_every_object_stands_out_from_every_background() -> None:
    for name in OBJECTS:
        for style in STYLES:
            sprite = load_sprite(name, style, 40)
            ink = sprite.transparency[0] < 0.05
            for rgb in COLOURS.values():
                distance = np.linalg.norm(sprite.colour[:, ink] - np.array(rgb, np.float32)[:, None], axis=0)
                assert np.mean(distance > 30) > 0.08, (name, style, rgb)


def test_backgrounds_differ_well() -> None:
    colours = [np.array(rgb) for rgb in COLOURS.values()]
    assert min(np.linalg.norm(a - b) for i, a in enumerate(colours) for b in colours[:i]) > 60


def test_sprites_fill_their_size_and_are_premultiplied() -> None:
    for style in ART_STYLES:
        sprite = load_sprite("cat", style, 40)
        rows, columns = np.nonzero(sprite.transparency[0] < 0.5)
        assert max(np.ptp(rows), np.ptp(columns)) >= 37
        assert (sprite.colour <= 255 * (1 - sprite.transparency) + 1e-3).all()


def test_later_items_lie_over_earlier_ones() -> None:
    under = Item(object="cat", style="flat", x=28, y=32, size=40)
    over = Item(object="apple", style="flat", x=36, y=32, size=40)
    scene = Scene(items=(under, over), colour="blue", relation="left of")
    alone = Scene(items=(over,), colour="blue")
    opaque = torch.zeros(64, 64, dtype=torch.bool)
    opaque[12:52, 16:56] = torch.from_numpy(load_sprite("apple", "flat", 40).transparency[0] == 0)
    both, one = EmojiScenes().render(scene), EmojiScenes().render(alone)
    assert torch.equal(both[:, opaque], one[:, opaque])
    assert not torch.equal(both, one)


def test_subjects_of_the_art_that_training_never_sees() -> None:
    images = subject_images("hatching chick", "noto", 8, seed=1)
    assert images.shape == (8, 3, 64, 64)
    assert len({tuple(image[:, 0, 0].tolist()) for image in images}) == 8
    assert torch.equal(images[:3], subject_images("hatching chick", "noto", 3, seed=1))
    assert not torch.equal(images, subject_images("hatching chick", "noto", 8, seed=2))
    assert subject_images("bicycle", "3d", 2, image_size=32).shape == (2, 3, 32, 32)
    assert len(art_names()) == 807
    assert all(name in SPRITES for name in OBJECTS)


def test_bad_requests_are_named() -> None:
    for action, message in [
        (lambda: EmojiScenes(image_size=48), "the sizes are"),
        (lambda: EmojiScenes(seed=-1), "at least 0"),
        (lambda: EmojiScenes(pairs=1.5), "between 0 and 1"),
        (lambda: EmojiScenes(split="test"), "not a known split"),
        (lambda: EmojiScenes().scene(-1), "negative"),
        (lambda: EmojiScenes().edit_pair(0, "size"), "not a known edit"),
        (lambda: Item(object="dog", style="flat", x=32, y=32, size=40), "not a known object"),
        (lambda: Item(object="cat", style="noto", x=32, y=32, size=40), "not a known style"),
        (lambda: Item(object="cat", style="flat", x=8, y=32, size=40), "must lie inside"),
        (lambda: Scene(items=(), colour="red"), "one or two"),
        (lambda: Scene.from_dict({"items": []}), "does not fit"),
        (lambda: subject_images("dragonn face", "flat", 1), "did you mean dragon face"),
        (lambda: subject_images("dragon face", "openmoji", 1), "not a known style"),
        (lambda: subject_images("dragon face", "flat", 0), "at least one"),
        (lambda: is_held_out("cat", "black"), "not a known colour"),
    ]:
        with pytest.raises(UserError, match=message):
            action()


def test_a_relation_that_is_not_true_is_refused() -> None:
    first, second = EmojiScenes(pairs=1.0).scene(0).items
    scene = EmojiScenes(pairs=1.0).scene(0)
    with pytest.raises(UserError, match="swap them"):
        Scene(items=(second, first), colour=scene.colour, relation=scene.relation)


def test_the_art_is_what_its_index_says_and_its_licences_are_listed() -> None:
    folder = files("steerdiff.assets").joinpath("emoji")
    index = json.loads(folder.joinpath("index.json").read_text("utf-8"))
    readme = folder.joinpath("README.md").read_text("utf-8")
    assert len(index["objects"]) == 807
    for style in index["styles"].values():
        assert hashlib.sha256(folder.joinpath(style["file"]).read_bytes()).hexdigest() == style["sha256"]
        assert len(folder.joinpath(style["license_file"]).read_text("utf-8")) > 900
        for fact in (style["file"], style["license"], style["package"], style["version"], style["license_file"]):
            assert fact in readme

"""The recogniser: it reads clean scenes nearly without fault, and its weights are checked before they are used."""

from __future__ import annotations

from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from steerdiff.errors import UserError
from steerdiff.models.checkpoint import read_header, read_safetensors, save_safetensors
from steerdiff.train.recogniser import (
    ATTRIBUTES,
    LAYOUTS,
    NOTHING,
    Recogniser,
    RecogniserConfig,
    accuracy,
    augment,
    load_recogniser,
    reading_order,
    save_recogniser,
    train_recogniser,
)
from steerdiff.train.scenes import COLOURS, OBJECTS, STYLES, Description, EmojiScenes

TINY = RecogniserConfig(steps=2, batch_size=8)


@pytest.fixture(scope="module")
def shipped() -> Recogniser:
    return load_recogniser()


@pytest.fixture(scope="module")
def plain() -> dict[str, torch.Tensor]:
    return train_recogniser(TINY).state_dict()


@pytest.mark.parametrize("pairs", [0.0, 1.0])
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_shipped_recogniser_reads_new_scenes(shipped: Recogniser, split: str, pairs: float) -> None:
    # seed 77 is not the training seed; 98 % is what the evaluation of samples asks for
    for name, share in accuracy(shipped, EmojiScenes(77, split, pairs), 512).items():
        assert share >= 0.98, name


def test_the_shipped_recogniser_reads_every_object_in_every_style(shipped: Recogniser) -> None:
    scenes, seen = EmojiScenes(78, pairs=0.0).scenes(range(3000)), set()
    some = [s for s in scenes if (key := s.description.things) not in seen and not seen.add(key)]
    assert len(some) == len(OBJECTS) * len(STYLES)
    read = shipped.read(EmojiScenes().render_all(some))
    wrong = [s.caption for s, sight in zip(some, read, strict=True) if sight.things != s.description.things]
    assert len(wrong) <= 3, wrong


def test_the_shipped_weights_are_small() -> None:
    assert files("steerdiff.assets").joinpath("weights", "recogniser.safetensors").stat().st_size < 3_000_000


def test_a_blank_image_is_no_reason_to_fail(shipped: Recogniser) -> None:
    sight = shipped.read(torch.zeros(1, 3, 64, 64))[0]
    assert sight.layout in LAYOUTS


@pytest.mark.parametrize(
    ("relation", "layout", "turned"),
    [
        ("left of", "horizontal", False),
        ("right of", "horizontal", True),
        ("above", "vertical", False),
        ("below", "vertical", True),
    ],
)
def test_reading_order_is_left_or_top_first(relation: str, layout: str, turned: bool) -> None:
    things = (("flat", "cat"), ("3d", "apple"))
    sight = reading_order(Description(things=things, colour="blue", relation=relation))
    assert (sight.layout, sight.things) == (layout, things[::-1] if turned else things)
    assert reading_order(Description(things=things[:1], colour="blue")).layout == "single"


def test_reading_order_agrees_with_where_the_objects_are() -> None:
    for scene in EmojiScenes(1, pairs=1.0).scenes(range(50)):
        ordered = sorted(scene.items, key=lambda item: (item.x, item.y))
        assert reading_order(scene.description).things == tuple((item.style, item.object) for item in ordered)


def test_logits_have_one_entry_a_name() -> None:
    logits = Recogniser()(torch.zeros(2, 3, 64, 64))
    shapes = {name: tuple(value.shape) for name, value in logits.items()}
    assert shapes == {"layout": (2, 3), "object": (2, 2, len(OBJECTS) + 1), "style": (2, 2, 3), "colour": (2, 8)}


def test_a_reading_does_not_depend_on_the_batch(shipped: Recogniser) -> None:
    images, _ = EmojiScenes(79).batch(range(10))
    assert shipped.read(images, batch=3) == [shipped.read(image[None])[0] for image in images]


def test_reading_leaves_the_mode_alone() -> None:
    recogniser = Recogniser().train()
    recogniser.read(torch.zeros(1, 3, 64, 64))
    assert recogniser.training


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (3, 64, 64), (1, 1, 64, 64)])
def test_images_of_another_shape_are_refused(shipped: Recogniser, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="the recogniser reads"):
        shipped.read(torch.zeros(shape))


def test_accuracy_counts_what_is_right() -> None:
    class Fixed(Recogniser):
        def read(self, images: torch.Tensor, batch: int = 128) -> list:
            truth = [reading_order(s.description) for s in EmojiScenes(3).scenes(range(len(images)))]
            wrong = replace(truth[0], colour=next(c for c in COLOURS if c != truth[0].colour))
            return [wrong, *truth[1:]]

    measured = accuracy(Fixed(), EmojiScenes(3), 100)
    assert measured == {"layout": 1.0, "object": 1.0, "style": 1.0, "colour": 0.99}
    assert tuple(measured) == ATTRIBUTES


def test_augmentation_of_no_amount_changes_nothing() -> None:
    images, _ = EmojiScenes(4).batch(range(4))
    none = RecogniserConfig(jitter=0, blur=0, noise=0, tint=0)
    assert torch.allclose(augment(images, none, torch.Generator().manual_seed(0)), images, atol=1e-6)


def test_augmentation_moves_by_at_most_the_jitter() -> None:
    images = torch.full((64, 3, 64, 64), -1.0)
    images[:, :, 32, 32] = 1
    moved = augment(images, RecogniserConfig(blur=0, noise=0, tint=0), torch.Generator().manual_seed(0))
    places = (moved[:, 0] > 0).nonzero()[:, 1:] - 32
    assert len(places) == 64
    assert places.abs().max() == 2
    assert len({tuple(place) for place in places.tolist()}) > 10


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 3},
        {"batch_size": 16},
        {"learning_rate": 1e-3},
        {"weight_decay": 0.5},
        {"pairs": 0.0},
        {"held_out": 0.5},
        {"jitter": 1},
        {"blur": 0.0},
        {"noise": 0.0},
        {"tint": 0.0},
        {"seed": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_setting_changes_the_weights(plain: dict[str, torch.Tensor], changes: dict) -> None:
    changed = train_recogniser(replace(TINY, **changes)).state_dict()
    assert not all(torch.equal(plain[name], changed[name]) for name in plain)


def test_training_is_repeatable_and_leaves_the_global_generator_alone(plain: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = train_recogniser(TINY).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_weights_survive_a_file(tmp_path: Path) -> None:
    recogniser = train_recogniser(TINY)
    save_recogniser(recogniser, tmp_path / "r.safetensors", TINY)
    loaded = load_recogniser(tmp_path / "r.safetensors")
    images, _ = EmojiScenes(5).batch(range(4))
    for name, logits in recogniser(images).items():  # half precision in the file: 11 bits
        assert torch.allclose(logits, loaded(images)[name], atol=2e-2), name
    assert not loaded.training
    assert read_header(tmp_path / "r.safetensors")["training"] == asdict(TINY)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    with pytest.raises(UserError, match="not a file"):
        load_recogniser(path)
    save_recogniser(Recogniser(), path, TINY)
    header, tensors = read_header(path), read_safetensors(path)
    save_safetensors(path, tensors, {**header, "kind": "text-to-image"})
    with pytest.raises(UserError, match="not a recogniser"):
        load_recogniser(path)
    save_safetensors(path, tensors, {**header, "objects": ["cat"]})
    with pytest.raises(UserError, match="trained on other"):
        load_recogniser(path)
    save_safetensors(path, {k: v for k, v in tensors.items() if k != "place"}, header)
    with pytest.raises(UserError, match="1 missing: place"):
        load_recogniser(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a whole safetensors"):
        load_recogniser(path)


def test_settings_out_of_range_are_named() -> None:
    for changes in ({"steps": 0}, {"batch_size": 1}, {"jitter": 9}, {"held_out": 2.0}, {"noise": -0.1}):
        with pytest.raises(UserError, match=next(iter(changes))):
            RecogniserConfig(**changes)


def test_nothing_is_no_object() -> None:
    assert NOTHING not in OBJECTS

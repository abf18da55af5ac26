"""Training of noisy classifiers: the loss, the data with its names, exact resuming, and the file it leaves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import steerdiff
from steerdiff.errors import UserError
from steerdiff.guidance.noisy_classifier import NoisyClassifier
from steerdiff.models import read_header, read_safetensors
from steerdiff.samplers import NoiseSchedule
from steerdiff.train.classifier import ClassifierConfig, ClassifierLoss, train_classifier
from steerdiff.train.labelled_scenes import LabelledScenes
from steerdiff.train.losses import Batch
from steerdiff.train.randomness import SampleRandom
from steerdiff.train.scenes import OBJECTS, EmojiScenes, is_held_out

from .runs import curve, make_images, same, state_of

TRUNK = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "attention_at": (), "head_channels": 32}


def tiny(folder: Path, name: str = "run", **changes: Any) -> ClassifierConfig:
    """A run on the red, green and blue images of ``folder``/images, which are made if missing."""
    images = folder / "images"
    if not images.exists():
        make_images(images)
    values: dict[str, Any] = {
        "folder": str(folder / name),
        "trunk": TRUNK,
        "schedule": {"name": "cosine", "T": 100},
        "data": "folder",
        "data_options": {"path": str(images)},
        "image_size": 8,
        "steps": 4,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "ema_decay": 0.9,
        "device": "cpu",
        "log_every": 1,
        "checkpoint_every": 2,
    }
    return ClassifierConfig(**{**values, **changes})


def train(config: ClassifierConfig, *, resume: bool = False) -> dict[str, Any]:
    train_classifier(config, resume=resume, progress=False)
    return state_of(config)


def test_it_learns_what_the_images_show(tmp_path: Path) -> None:
    config = tiny(tmp_path, steps=60, batch_size=12, log_every=10, ema_decay=0.5)
    train(config)
    header, *rows = curve(config)
    losses = [float(row[header.index("loss")]) for row in rows]
    assert losses[-1] < 0.6 * losses[0]
    assert float(rows[-1][header.index("accuracy_low")]) > 0.8


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    trunk = {**TRUNK, "dropout": 0.3}
    whole = tiny(tmp_path, "whole", trunk=trunk, steps=7, log_every=2, checkpoint_every=3, decay_steps=2)
    parts = dataclasses.replace(whole, folder=str(tmp_path / "parts"))
    expected = train(whole)
    for steps in (3, 5):
        train(dataclasses.replace(parts, steps=steps, decay="none"), resume=True)
    actual = train(parts, resume=True)
    assert same(actual["model"], expected["model"]) and same(actual["ema"], expected["ema"])
    assert curve(parts)[-1] == curve(whole)[-1]


def test_settings_that_decide_what_the_state_means_are_kept(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    train(config)
    with pytest.raises(UserError, match="was started with other pool, schedule; keep them"):
        changed = dataclasses.replace(config, pool="spatial", schedule={"name": "linear", "T": 100})
        train_classifier(changed, resume=True, progress=False)
    with pytest.raises(UserError, match="already holds a training run; resume it"):
        train_classifier(config, progress=False)


def test_the_file_it_leaves_is_a_classifier_with_names(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    state = train(config)
    path = Path(config.folder) / "weights.safetensors"
    assert same(read_safetensors(path), state["ema"]) and not same(state["ema"], state["model"])
    header = read_header(path)
    assert header["kind"] == "classifier" and header["step"] == 4
    assert str(tmp_path) not in json.dumps(header)
    classifier = steerdiff.load(config.folder)
    assert isinstance(classifier, NoisyClassifier)
    assert classifier.labels == ("blue", "green", "red") and classifier.num_classes == 3
    assert classifier.schedule is not None and classifier.schedule.to_dict() == NoiseSchedule.cosine(100).to_dict()
    assert classifier(torch.zeros(2, 3, 8, 8), torch.zeros(2)).shape == (2, 3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """The folder of a run, and the weights that it leaves."""
    folder = tmp_path_factory.mktemp("settings")
    return folder, train(tiny(folder, "base", weight_decay=0.5))["ema"]


@pytest.mark.parametrize(
    "change",
    [
        {"trunk": {**TRUNK, "dropout": 0.5}},
        {"pool": "spatial_v2"},
        {"schedule": {"name": "linear", "T": 100}},
        {"times": "stratified"},
        {"data_options": {"flip": False}},
        {"image_size": 16},
        {"steps": 5},
        {"batch_size": 8},
        {"weight_decay": 0.0},
        {"warmup_steps": 2},
        {"decay": "none"},
        {"decay_steps": 2},
        {"optimizer": "muon"},
        {"seed": 1},
        {"data": "emoji-scenes", "data_options": {}, "image_size": 32, "trunk": {**TRUNK, "unshuffle": 4}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_of_its_own_changes_the_weights(
    change: dict[str, Any], base: tuple[Path, dict[str, Tensor]]
) -> None:
    folder, expected = base
    if "path" not in change.get("data_options", {"path": ""}) and "data" not in change:
        change = {"data_options": {"path": str(folder / "images"), **change["data_options"]}}
    changed = tiny(folder, next(iter(change)), **{"weight_decay": 0.5, **change})
    assert not same(train(changed)["ema"], expected)


def test_the_run_whose_settings_are_changed_repeats_itself(base: tuple[Path, dict[str, Tensor]]) -> None:
    folder, expected = base
    assert same(train(tiny(folder, "again", weight_decay=0.5))["ema"], expected)


def test_the_defaults_are_the_published_ones() -> None:
    config = ClassifierConfig(folder="runs/classifier")
    found = (config.optimizer, config.learning_rate, config.weight_decay, config.batch_size, config.steps)
    assert found == ("adamw", 3e-4, 0.05, 256, 300_000)
    assert (config.rate_at(0), config.rate_at(150_000), config.rate_at(300_000)) == (1, 0.5, 0)
    assert dataclasses.replace(config, steps=10).rate_at(5) == 0.5  # the rate falls over any length


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, "image_size is 0; it must be at least 1"),
        ({"pool": "mean"}, "pool is 'mean'; choose attention"),
        ({"data_options": {}}, r"data_options \[\] do not fit folder"),
        ({"data_options": {"labels": "none"}}, "a classifier learns classes; leave labels out of data_options"),
        ({"data": "emoji-scenes", "data_options": {"pairs": 0.5}}, "do not fit emoji-scenes"),
        ({"trunk": {"width": 3}}, "trunk has unknown settings width"),
        ({"image_size": 12, "trunk": {**TRUNK, "unshuffle": 8}}, "image_size is 12; it must be divisible by 8"),
        ({"batch_size": 6, "accumulate": 4}, "batch_size 6 cannot be cut into 4 parts"),
        ({"decay_steps": 9}, "decay_steps is 9; it must be at most steps = 4"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        if changes.get("data_options") == {"labels": "none"}:
            changes = {"data_options": {"labels": "none", "path": str(make_images(tmp_path / "others"))}}
        train_classifier(tiny(tmp_path, **changes), progress=False)


# The loss.

SCHEDULE = NoiseSchedule.cosine(100)


def batch(count: int = 6) -> Batch:
    images = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(images, torch.arange(count) % 3, SampleRandom(3, range(count)))


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.stack([(x * (k + 1)).sum((1, 2, 3)) + 0.01 * k * t for k in range(3)], dim=1)


def test_the_loss_is_the_cross_entropy_of_images_noised_to_the_times_that_the_network_is_told() -> None:
    samples, seen = batch(), []

    def watching(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return network(x, t)

    loss, metrics = ClassifierLoss(watching, SCHEDULE)(samples)
    x, t = seen[0]
    kept = torch.tensor([SCHEDULE.alpha_bar(float(one)) for one in t]).reshape(-1, 1, 1, 1).float()
    eps = samples.random.normal("noise", (3, 4, 4))
    torch.testing.assert_close(x, kept.sqrt() * samples.images + (1 - kept).sqrt() * eps)
    log_p = torch.log_softmax(network(x, t), 1)
    assert isinstance(samples.labels, Tensor)
    torch.testing.assert_close(loss, -log_p[torch.arange(6), samples.labels].mean())
    assert float(metrics["accuracy"]) == pytest.approx(float((log_p.argmax(1) == samples.labels).float().mean()))


def test_times_are_uniform_or_one_in_each_part() -> None:
    random = SampleRandom(0, range(4000))
    uniform = ClassifierLoss(network, SCHEDULE).times(random)
    counts = np.bincount(uniform.numpy(), minlength=100)
    assert len(counts) == 100 and counts.min() > 10 and counts.max() < 80
    stratified = ClassifierLoss(network, SCHEDULE, strata=100).times(random)
    assert np.bincount(stratified.numpy(), minlength=100).tolist() == [40] * 100


def test_data_without_classes_is_an_error() -> None:
    samples = dataclasses.replace(batch(), labels=None)
    with pytest.raises(UserError, match="the data has no class numbers"):
        ClassifierLoss(network, SCHEDULE)(samples)


# The scenes.


def test_scenes_show_the_object_of_their_label() -> None:
    scenes = LabelledScenes(seed=2, held_out=0.0)
    images, labels = scenes.batch(range(40, 72))
    plain = EmojiScenes(2, "train", 0.0)
    assert torch.equal(images, plain.batch(range(40, 72))[0])
    assert [scenes.classes[label] for label in labels] == [s.items[0].object for s in plain.scenes(range(40, 72))]
    assert scenes.classes == tuple(OBJECTS) and len(scenes.classes) == 48


def test_a_share_of_the_scenes_is_of_held_out_combinations() -> None:
    scenes = LabelledScenes(held_out=0.25)
    images, _ = scenes.batch(range(400))
    held_out = EmojiScenes(0, "held_out", 0.0).batch(range(400))[0]
    unseen = (images == held_out).flatten(1).all(1)
    assert 60 < int(unseen.sum()) < 140
    scene = EmojiScenes(0, "held_out", 0.0).scene(int(unseen.nonzero()[0]))
    assert is_held_out(scene.items[0].object, scene.colour)


def test_a_sample_is_a_function_of_its_number() -> None:
    scenes = LabelledScenes(shift=3, image_size=32)
    images, labels = scenes.batch([5, 900, 7])
    alone, label = scenes.batch([900])
    assert torch.equal(images[1:2], alone) and torch.equal(labels[1:2], label)
    assert images.shape == (3, 3, 32, 32)


def test_shifts_move_the_scene_by_whole_pixels_and_differ() -> None:
    still, moved = LabelledScenes(held_out=0.0), LabelledScenes(held_out=0.0, shift=2)
    before, after = still.batch(range(50))[0], moved.batch(range(50))[0]
    found = set()
    for a, b in zip(before, after, strict=True):
        fits = [
            (y, x)
            for y in range(-2, 3)
            for x in range(-2, 3)
            if torch.equal(a.roll((y, x), (1, 2))[:, 2:-2, 2:-2], b[:, 2:-2, 2:-2])
        ]
        assert fits
        found.add(fits[0])
    assert len(found) > 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": 1.5}, "held_out is 1.5; it is a share between 0 and 1"),
        ({"shift": -1}, "shift is -1; it must be between 0 and 8 pixels"),
        ({"image_size": 48}, "scenes of 48 pixels"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_options_of_the_scenes_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LabelledScenes(**options)

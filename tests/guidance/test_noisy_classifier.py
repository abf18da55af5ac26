"""Classes by number and by name, what a classifier must fit, and files of classifiers that were trained here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steerdiff
from steerdiff import UserError
from steerdiff.guidance import Model
from steerdiff.guidance.loading import load_classifier, load_model
from steerdiff.guidance.noisy_classifier import NoisyClassifier, class_numbers, targets_of
from steerdiff.models import UNetConfig, read_header, save_safetensors
from steerdiff.models.config import EncoderUNetConfig
from steerdiff.models.encoder_unet import EncoderUNet
from steerdiff.samplers import NoiseSchedule

from .toys import formula_model, pictures, tiny_text_model

SCHEDULE = NoiseSchedule.cosine(100)


def tiny_classifier(seed: int = 0, **fields: Any) -> NoisyClassifier:
    """A random classifier of 8 x 8 images with three named classes."""
    torch.manual_seed(seed)
    trunk = UNetConfig(
        model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_at=(), head_channels=32, out_channels=3
    )
    network = EncoderUNet(EncoderUNetConfig(trunk=trunk, image_size=8))
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    values: dict[str, Any] = {"labels": ("cat", "dog", "car"), "schedule": SCHEDULE, "name": "tiny"}
    network.eval().requires_grad_(False)
    return NoisyClassifier(**{"network": network, "num_classes": 3, "image_size": 8, **values, **fields})


CLASSIFIER = tiny_classifier()


@pytest.mark.parametrize(
    ("y", "numbers"),
    [
        (2, [2]),
        ("dog", [1]),
        ("2", [2]),
        (["car", "cat"], [2, 0]),
        ([0, "dog", "2"], [0, 1, 2]),
        (torch.tensor([1, 2]), [1, 2]),
        (torch.tensor(1), [1]),
    ],
)
def test_classes_are_given_by_number_or_by_name(y: Any, numbers: list[int]) -> None:
    assert class_numbers(CLASSIFIER, y) == numbers


def test_any_callable_takes_numbers() -> None:
    def classifier(x: Tensor, t: Tensor) -> Tensor:
        return x

    assert class_numbers(classifier, [7, 1]) == [7, 1]
    with pytest.raises(UserError, match="'cat' names no class of the classifier, whose classes have no names"):
        class_numbers(classifier, "cat")


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ("dgo", "'dgo' is no class of tiny; the nearest is 'dog', of cat, dog, car"),
        ("Cat", "'Cat' is no class of tiny; the nearest is 'cat'"),
        ("", "'' is no class of tiny; the nearest is '"),
        (3, r"3 is no class of tiny; the nearest is 2 \(car\): it has 3 classes, numbered 0 to 2"),
        ("17", r"17 is no class of tiny; the nearest is 2 \(car\)"),
        (-1, r"-1 is no class of tiny; the nearest is 0 \(cat\)"),
        ([], "the list of classes is empty; give at least one"),
    ],
)
def test_a_class_outside_the_classifier_s_names_the_nearest(y: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_numbers(CLASSIFIER, y)


def test_a_classifier_without_names_says_how_many_classes_it_has() -> None:
    nameless = replace(CLASSIFIER, labels=())
    with pytest.raises(UserError, match="'cat' names no class of tiny, .* it has 3 classes, numbered 0 to 2"):
        class_numbers(nameless, "cat")
    with pytest.raises(UserError, match="5 is no class of tiny; the nearest is 2: it has 3 classes"):
        class_numbers(nameless, 5)


def test_a_classifier_of_another_size_or_noise_is_refused() -> None:
    model = tiny_text_model()
    assert targets_of(CLASSIFIER, ["dog", 2], model).tolist() == [1, 2]
    with pytest.raises(UserError, match="the classifier sees images of 8 x 8 pixels; tiny draws 16 x 16"):
        targets_of(CLASSIFIER, 0, model.resized(16, 16))
    for other in (NoiseSchedule.cosine(100, shift=0.5), NoiseSchedule.cosine(50), NoiseSchedule.linear(100)):
        with pytest.raises(UserError, match="tiny learned other noise levels than those of tiny; train one"):
            targets_of(replace(CLASSIFIER, schedule=other), 0, model)
    assert targets_of(replace(CLASSIFIER, schedule=None), 0, model).tolist() == [0]
    with pytest.raises(UserError, match="a classifier pulls towards a class; give y"):
        targets_of(CLASSIFIER, None, model)


def test_sampling_takes_names_and_numbers_alike() -> None:
    model: Model = tiny_text_model()
    options: dict[str, Any] = {"steps": 3, "classifier": CLASSIFIER, "classifier_scale": 30.0, "solver": "ddim"}
    assert torch.equal(model.sample(y=["dog", "car"], **options), model.sample(y=[1, 2], **options))
    assert not torch.equal(model.sample(y="dog", **options), model.sample(y="car", **options))
    assert torch.equal(
        model.sample(y="dog", **{**options, "classifier_scale": 0.0}), model.sample(steps=3, solver="ddim")
    )


def test_a_class_conditional_model_is_told_the_number_of_the_name() -> None:
    def eps(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return x * 0.1 * y.reshape(-1, 1, 1, 1)

    model = formula_model(eps, 8, SCHEDULE, num_classes=3, name="labelled")
    options: dict[str, Any] = {"steps": 3, "solver": "ddim", "classifier": CLASSIFIER, "classifier_scale": 0.0}
    assert torch.equal(model.sample(y="car", **options), model.sample(y=2, steps=3, solver="ddim"))
    for y in ("car", ["car"]):
        with pytest.raises(UserError, match=r"labelled knows its classes by number; give y in \[0, 3\)"):
            model.sample(y=y, steps=3)


def save(path: Path, **changes: Any) -> Path:
    """Write the tiny classifier as training does, with other entries of the header; None leaves one out."""
    network: Any = CLASSIFIER.network
    header = {
        "kind": "classifier",
        "trunk": network.config.trunk.to_dict(),
        "pool": network.config.pool,
        "image_size": 8,
        "labels": list(CLASSIFIER.labels),
        "schedule": SCHEDULE.to_dict(),
        **changes,
    }
    save_safetensors(path, network.state_dict(), {name: value for name, value in header.items() if value is not None})
    return path


def test_a_trained_classifier_is_loaded_with_its_names_and_its_noise(tmp_path: Path) -> None:
    path = save(tmp_path / "small.safetensors")
    loaded = steerdiff.load(path)
    assert isinstance(loaded, NoisyClassifier) and not loaded.network.training
    assert (loaded.name, loaded.labels, loaded.num_classes, loaded.image_size) == ("small", CLASSIFIER.labels, 3, 8)
    assert loaded.schedule is not None and loaded.schedule.to_dict() == SCHEDULE.to_dict()
    assert loaded.files == (path,) and loaded.weights_hash is not None
    x, t = pictures(2, 8), torch.tensor([3.0, 70.0])
    assert torch.equal(loaded(x, t), CLASSIFIER(x, t))
    assert isinstance(load_classifier(path), NoisyClassifier)
    with pytest.raises(UserError, match="is a classifier; give the weights of a diffusion model"):
        load_model(path)


def test_a_header_that_lacks_something_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lacks labels, schedule; fetch or save the file again"):
        steerdiff.load(save(tmp_path / "broken.safetensors", labels=None, schedule=None))


def test_half_precision_weights_give_float32_logits() -> None:
    network: nn.Module = tiny_classifier().network.half()
    half = replace(CLASSIFIER, network=network)
    logits = half(pictures(2, 8), torch.tensor([3.0, 70.0]))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, CLASSIFIER(pictures(2, 8), torch.tensor([3.0, 70.0])), atol=1e-2, rtol=1e-2)


def test_the_header_names_its_kind(tmp_path: Path) -> None:
    assert read_header(save(tmp_path / "small.safetensors"))["kind"] == "classifier"

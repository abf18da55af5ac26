"""SDG on small models: what it leaves alone, what it pulls towards, and what it says when it cannot."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from steerdiff import UserError
from steerdiff.guidance import Model
from steerdiff.guidance.clip_guidance import shift_ratio
from steerdiff.methods import SDG
from steerdiff.methods.sdg import PRESETS
from steerdiff.samplers import DDIM, DDPM, Noise, NoiseSchedule, Path, Record, integrate

from ..guidance.toys import formula_model, gaussian_eps, pictures, tiny_text_model
from .tiny_clips import load_tiny, tiny_clip, tiny_noisy

SIZE = 8
SMALL = SDG(steps=5, text_weight=30.0, image_weight=20.0)


@pytest.fixture(autouse=True)
def tiny_clips(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Small CLIPs in the place of files; the names that were asked for."""
    asked: list[str] = []

    def load(source: str, *args: Any, **options: Any) -> Any:
        asked.append(source)
        return load_tiny(source)

    monkeypatch.setattr("steerdiff.methods.sdg.load_cached", load)
    return asked


def plain_model(size: int = SIZE) -> Model:
    schedule = NoiseSchedule.linear(1000)
    return formula_model(gaussian_eps(schedule), size, schedule, name="plain")


def test_weights_of_zero_are_plain_ancestral_sampling_and_load_no_clip(tiny_clips: list[str]) -> None:
    model, image = tiny_text_model(), pictures(2, SIZE)
    method = dataclasses.replace(SMALL, text_weight=0.0, image_weight=0.0)
    found = method(model, image, prompt="a cat", seed=3)
    noise = Noise(3, (2, 3, SIZE, SIZE))
    path = Path.respaced(model.schedule, 5)
    expected = integrate(model.denoiser(clip="clip"), DDPM(), path, noise(), noise=noise)
    assert torch.equal(found, expected)
    assert tiny_clips == []


def test_the_image_weight_does_not_move_the_noise_of_the_sampler() -> None:
    """A reference so weak that it changes nothing visible, but not nothing, leaves the same image."""
    model, image = plain_model(), pictures(2, SIZE)
    none, weak = (dataclasses.replace(SMALL, text_weight=0.0, image_weight=weight) for weight in (0.0, 1e-4))
    found = [method(model, image, seed=1) for method in (none, weak)]
    assert not torch.equal(*found)
    torch.testing.assert_close(*found, rtol=0, atol=1e-3)


def test_only_parts_that_are_given_pull(tiny_clips: list[str]) -> None:
    model, image = plain_model(), pictures(1, SIZE)
    by_text = SMALL(model, prompt="a cat")
    assert tiny_clips == ["emoji64-clip", "emoji64-noisy-clip"]
    assert torch.equal(by_text, dataclasses.replace(SMALL, image_weight=0.0)(model, image, prompt="a cat"))
    by_image = SMALL(model, image)
    assert torch.equal(by_image, dataclasses.replace(SMALL, text_weight=0.0)(model, image, prompt="a cat"))
    assert not torch.equal(by_image, by_text)


def test_there_are_as_many_results_as_images_prompts_or_seeds() -> None:
    model = plain_model()
    assert len(SMALL(model, pictures(3, SIZE), prompt="a cat")) == 3
    assert len(SMALL(model, prompt=["a cat", "a dog"])) == 2
    assert len(SMALL(model, prompt="a cat", seed=[5, 6])) == 2
    four = SMALL(model, prompt="a cat", seed=[0, 1, 2, 3])
    torch.testing.assert_close(four[2:3], SMALL(model, prompt="a cat", seed=2), rtol=0, atol=2e-5)


def likeness(images: Tensor, texts: list[str]) -> float:
    """Mean cosine, as the noisy CLIP sees clean images."""
    features = tiny_noisy("emoji64-noisy-clip")(images, torch.zeros(len(images))).vector
    text = tiny_clip("emoji64-clip").text_features(texts)
    return float(torch.nn.functional.cosine_similarity(features, text).mean())


def test_the_larger_the_text_weight_the_nearer_the_sample_is_to_the_text() -> None:
    model, texts = plain_model(), ["a cat"] * 6
    values = []
    for weight in (-200.0, 0.0, 200.0, 600.0):
        method = SDG(steps=20, text_weight=weight, image_weight=0.0)
        values.append(likeness(method(model, prompt=texts), texts))
    assert values == sorted(values) and values[-1] > values[1] + 0.1


@pytest.mark.parametrize(("loss", "weight"), [("content", 600.0), ("structure", 100.0), ("style", 1e-4)])
def test_image_guidance_brings_the_sample_nearer_to_its_reference(loss: Any, weight: float) -> None:
    from steerdiff.guidance.losses import image_similarity

    model, image = plain_model(), pictures(4, SIZE, seed=2)
    encode = tiny_noisy("emoji64-noisy-clip")
    theirs = encode(image, torch.zeros(4))
    found = []
    for strength in (0.0, weight):
        method = SDG(steps=20, text_weight=0.0, image_weight=strength, image_loss=loss)
        found.append(float(image_similarity(loss, encode(method(model, image), torch.zeros(4)), theirs).mean()))
    assert found[1] > found[0]


def test_a_clean_clip_may_take_the_place_of_the_noisy_one() -> None:
    model, image = plain_model(), pictures(1, SIZE)
    clean = dataclasses.replace(SMALL, noisy_clip="emoji64-clip")(model, image, prompt="a cat")
    assert not torch.equal(clean, SMALL(model, image, prompt="a cat"))


def test_a_noisy_clip_that_was_tuned_from_another_clip_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = {hash_of: dataclasses.replace(tiny_noisy(), clip_hash=hash_of) for hash_of in ("one", "other")}
    clean = dataclasses.replace(tiny_clip())
    object.__setattr__(clean, "weights_hash", "one")
    for hash_of, warns in (("one", False), ("other", True)):
        loads = {"emoji64-clip": clean, "emoji64-noisy-clip": clips[hash_of]}
        monkeypatch.setattr("steerdiff.methods.sdg.load_cached", lambda source, *_, loads=loads: loads[source])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            SMALL(plain_model(), prompt="a cat")
        assert warns == any("was tuned from another CLIP than 'emoji64-clip'" in str(one.message) for one in caught)


def test_the_prompt_is_told_to_the_model_only_where_guidance_says_so() -> None:
    model = tiny_text_model()
    silent = dataclasses.replace(SMALL, text_weight=0.0)
    a, b = (silent(model, pictures(1, SIZE), prompt=prompt) for prompt in ("a cat", "a dog"))
    assert torch.equal(a, b)
    told = dataclasses.replace(silent, guidance=1.0)
    a, b = (told(model, pictures(1, SIZE), prompt=prompt) for prompt in ("a cat", "a dog"))
    assert not torch.equal(a, b)


def test_a_callback_sees_how_far_guidance_moved_each_step() -> None:
    ratios: list[Any] = []

    def keep(record: Record) -> None:
        ratios.append(shift_ratio(record))

    SMALL(plain_model(), pictures(2, SIZE), prompt="a cat", callback=keep)
    assert len(ratios) == 5 and ratios[-1] is None
    assert all(ratio.shape == (2,) and bool((ratio > 0).all()) for ratio in ratios[:-1])


def test_ddim_follows_the_same_guidance() -> None:
    model, texts = plain_model(), ["a cat"] * 4
    values = []
    for weight in (0.0, 400.0):
        method = SDG(steps=20, text_weight=weight, image_weight=0.0, solver=DDIM())
        values.append(likeness(method(model, prompt=texts), texts))
    assert values[1] > values[0]


def test_the_presets_are_the_official_commands_and_those_of_glide() -> None:
    text, content, style, both = (PRESETS[name] for name in ("text", "content", "style", "both"))
    assert (text.text_weight, text.image_weight) == (160, 0)
    assert (content.text_weight, content.image_weight, content.image_loss) == (0, 100, "content")
    assert (style.text_weight, style.image_weight, style.image_loss, style.official) == (0, 100, "style", True)
    assert (both.text_weight, both.image_weight, both.steps) == (160, 100, 100)
    assert PRESETS["glide"].text_weight == 3.0 * 100 and PRESETS["glide"].guidance == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SDG(image_loss="shape"), "image_loss is 'shape'; known are content, structure, style"),
        (lambda: SDG(layers=(0,), image_loss="style")(plain_model()), "nothing says where to go; give a prompt"),
        (
            lambda: SMALL(plain_model(), pictures(3, SIZE), prompt=["a cat", "a dog"]),
            "2 prompts were given for 3 images; give one, or one for each",
        ),
        (lambda: SMALL(plain_model(16), prompt="a cat"), r"sees images of 8 x 8 pixels; plain draws 16 x 16"),
        (lambda: SMALL(plain_model(), prompt="a blorp"), "words that this CLIP does not know: 'blorp'"),
        (lambda: SMALL(plain_model(), prompt="a a a a a"), "a a a a a"),
        (
            lambda: dataclasses.replace(SMALL, image_loss="style", layers=(0, 7))(plain_model(), pictures(1, SIZE)),
            r"layers are \[0, 7\]; this encoder has 2 maps, from 0 to 1",
        ),
        (lambda: SMALL(plain_model(), prompt="a cat", seed=-1), "seed is -1"),
    ],
)
def test_bad_input_gets_a_clear_error(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()

"""UniTune: without updates it is SDEdit, with them the rare word alone draws the image, and pixels come back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from steerdiff import UserError
from steerdiff.guidance import Model
from steerdiff.guidance.loading import load, load_model
from steerdiff.methods import SDEdit
from steerdiff.methods.finetuned import digest, unstated, with_delta
from steerdiff.methods.image_tuning import DenoisingLoss
from steerdiff.methods.unitune import UniTune
from steerdiff.models.delta import load_delta, save_delta
from steerdiff.samplers import DDIM, NoiseSchedule
from steerdiff.train.randomness import SampleRandom

from .. import published_files as files
from ..guidance.toys import formula_model, pictures, tiny_text_model

SMALL = UniTune(token="red", tune_steps=4, learning_rate=1e-3, batch_size=2, steps=5, guidance=3.0)
IMAGE = pictures(1, 8) * 0.9


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEERDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def settings(**changes: Any) -> UniTune:
    return dataclasses.replace(SMALL, **changes)


def weights_of(module: Any) -> str:
    return digest(*cast(nn.Module, module).state_dict().values())


def loss_of(model: Model, prompt: str) -> float:
    """The loss of the image at fixed times and noises."""
    numbers = list(range(64))
    with torch.no_grad():
        errors = DenoisingLoss(model, model.condition(prompt), stream="held out").each(
            IMAGE.expand(64, -1, -1, -1), torch.zeros(64, dtype=torch.long), SampleRandom(1, numbers)
        )
    return float(errors.mean())


def test_without_updates_it_is_sdedit_with_guidance_bit_for_bit() -> None:
    model, images = tiny_text_model(), pictures(2, 8) * 0.9
    for t0 in (0.4, 1.0):
        edited = settings(tune_steps=0, t0=t0)(model, images, prompt=["a cat", "a dog"], negative="dog", seed=4)
        sdedit = SDEdit(t0=t0, repeats=1, steps=5, solver=SMALL.solver, clip=model.sampling.clip, guidance=3.0)
        expected = sdedit(model, images, prompt=["red a cat", "red a dog"], negative="dog", seed=4)
        assert torch.equal(edited, expected)


def test_t0_zero_returns_the_image() -> None:
    assert torch.equal(settings(t0=0.0)(tiny_text_model(), IMAGE, prompt="a cat"), IMAGE)


def test_the_rare_word_alone_draws_the_image_the_better_the_longer_it_was_tuned(tmp_path: Path) -> None:
    model = tiny_text_model()
    losses, errors = [loss_of(model, "red")], []
    for steps in (10, 40):
        long = settings(tune_steps=steps, batch_size=4)
        delta = long.finetune(model, IMAGE, folder=tmp_path / str(steps), progress=False)
        losses.append(loss_of(with_delta(model, delta), "red"))
    for steps in (0, 40):
        drawn = settings(tune_steps=steps, batch_size=4, t0=1.0, guidance=1.0, steps=20, solver=DDIM())(model, IMAGE)
        errors.append(float((drawn - IMAGE).square().mean()))
    assert losses[0] > losses[1] > losses[2]
    assert errors[1] < errors[0]


def test_both_branches_of_guidance_are_of_the_tuned_network(tmp_path: Path) -> None:
    model = tiny_text_model()
    path = save_delta(tmp_path / "a.safetensors", SMALL.finetune(model, IMAGE, folder=tmp_path / "run", progress=False))
    edited = settings(delta=path)(model, IMAGE, prompt="a cat", seed=4)
    tuned = with_delta(model, load_delta(path))
    sdedit = SDEdit(t0=SMALL.t0, repeats=1, steps=5, solver=SMALL.solver, clip=model.sampling.clip, guidance=3.0)
    assert torch.equal(edited, sdedit(tuned, IMAGE, prompt="red a cat", seed=4))
    assert torch.equal(edited, SMALL(model, IMAGE, prompt="a cat", seed=4))  # by way of the cache
    assert weights_of(model.network) == weights_of(tiny_text_model().network)


def test_a_word_that_a_closed_list_lacks_is_added_and_tuned_without_touching_the_encoder(own_cache: Path) -> None:
    model = tiny_text_model()
    before = weights_of(model.text)
    edited = settings(token="sks")(model, IMAGE, prompt="a cat")
    assert weights_of(model.text) == before
    assert not torch.equal(edited, SMALL(model, IMAGE, prompt="a cat"))
    assert torch.equal(settings(token="sks")(model, IMAGE, prompt="a cat"), edited)
    assert len(list((own_cache / "deltas").glob("*.safetensors"))) == 2


def test_equal_images_are_tuned_once_whatever_they_are_told(own_cache: Path) -> None:
    model, images, prompts = tiny_text_model(), torch.cat([IMAGE, 0.5 * IMAGE, IMAGE]), ["a cat", "a dog", "a dog"]
    together = SMALL(model, images, prompt=prompts, seed=[3, 9, 4], negative=["cat", "", "dog"])
    assert len(list((own_cache / "deltas").glob("*.safetensors"))) == 2
    for k, (prompt, negative, seed) in enumerate(zip(prompts, ("cat", "", "dog"), (3, 9, 4), strict=True)):
        alone = SMALL(model, images[k : k + 1], prompt=prompt, seed=seed, negative=negative)
        torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=2e-5)  # float32 sums in another order
    settings(guidance=9.0, t0=0.5, keep=0.1)(model, IMAGE, prompt="a red dog")
    assert len(list((own_cache / "deltas").glob("*.safetensors"))) == 2


def test_the_same_weights_taken_for_another_kind_of_network_are_tuned_anew(own_cache: Path) -> None:
    model = tiny_text_model()
    other = dataclasses.replace(model, parameterization="v" if model.parameterization == "eps" else "eps")
    for one in (model, other, model):
        settings(tune_steps=1)(one, IMAGE, prompt="a cat")
    assert len(list((own_cache / "deltas").glob("*.safetensors"))) == 2
    shipped = load("emoji64")  # whose file says what it is
    assert unstated(shipped) == {} != unstated(dataclasses.replace(shipped, parameterization="eps"))


def test_pixels_come_back_where_the_edit_changed_little() -> None:
    image = torch.zeros(1, 3, 16, 16)
    edited = image.clone()
    edited[..., :8] = 0.02  # a tint
    edited[..., 12:] = 1.0  # an edit
    plain = settings(keep=0.0).interpolated(edited, image)
    assert torch.equal(plain, edited)
    sharp = settings(keep=0.2, blur=0.0).interpolated(edited, image)
    torch.testing.assert_close(sharp[..., :8], torch.full((1, 3, 16, 8), 0.02 * 0.1))
    assert torch.equal(sharp[..., 8:], edited[..., 8:])
    soft = settings(keep=0.2, blur=0.1).interpolated(edited, image)
    assert torch.equal(soft[..., 13:], edited[..., 13:])
    assert float(soft[..., :4].max()) < 0.02
    constant = settings(keep=0.5, blur=0.2).interpolated(image + 0.25, image)  # a blur keeps what is flat
    torch.testing.assert_close(constant, torch.full_like(image, 0.125))


def test_a_latent_model_is_tuned_and_edited_in_latents(tmp_path: Path) -> None:
    described = files.tiny_sd(1)
    files.write_single_file(tmp_path / "sd.safetensors", described)
    model, image = load_model(tmp_path / "sd.safetensors", described), pictures(1, 32) * 0.9
    before = [weights_of(part) for part in (model.network, model.text, model.autoencoder)]
    edited = settings(token="beikkpic", tune_steps=2, steps=4)(model, image, prompt="a red cat")
    assert edited.shape == image.shape and float(edited.abs().max()) <= 1
    untuned = settings(token="beikkpic", tune_steps=0, steps=4)(model, image, prompt="a red cat")
    assert not torch.equal(edited, untuned)
    assert [weights_of(part) for part in (model.network, model.text, model.autoencoder)] == before


def test_a_file_of_another_word_is_refused(tmp_path: Path) -> None:
    model = tiny_text_model()
    path = save_delta(tmp_path / "dog.safetensors", settings(token="dog").finetune(model, IMAGE, folder=tmp_path / "f"))
    assert settings(token="dog", delta=path)(model, IMAGE, prompt="a cat").shape == IMAGE.shape
    with pytest.raises(UserError, match="tuned to the word 'dog', and token is 'red'; give token 'dog'"):
        settings(token="red", delta=path)(model, IMAGE, prompt="a cat")


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    model = tiny_text_model()
    with pytest.raises(UserError, match="2 images were given; UniTune is tuned to one at a time"):
        SMALL.finetune(model, pictures(2, 8), folder=tmp_path)
    with pytest.raises(UserError, match="tune_steps is 0, which tunes nothing"):
        settings(tune_steps=0).finetune(model, IMAGE, folder=tmp_path)
    with pytest.raises(UserError, match="the prompt is a condition, and UniTune puts a word before it; give texts"):
        SMALL(model, IMAGE, prompt=model.condition("a cat"))
    with pytest.raises(UserError, match="the new word is 'rare word'; give one word without spaces"):
        settings(token="rare word")(model, IMAGE)
    plain = formula_model(lambda x, t: x, 8, NoiseSchedule.linear(100), name="plain")
    with pytest.raises(UserError, match="plain is a formula without weights"):
        SMALL(plain, IMAGE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune_steps": -1}, "tune_steps is -1; it must be at least 0"),
        ({"tune_seed": -1}, "tune_seed is -1; it must be at least 0"),
        ({"keep": -0.1}, "keep is -0.1; it must be at least 0"),
        ({"blur": -0.1}, "blur is -0.1; it must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive"),
        ({"ema_decay": 1.0}, r"ema_decay is 1.0; it must lie in \[0, 1\), 0 for none"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"t0": 1.5}, r"t0 is 1.5; it must lie in \[0, 1\]"),
    ],
)
def test_a_setting_out_of_range_is_an_error_when_it_is_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**changes)

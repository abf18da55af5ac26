"""Imagic: without steps it is plain generation, each stage lowers the loss, and each is kept by what decides it."""

from __future__ import annotations

import dataclasses
import os
import signal
import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from steerdiff import UserError
from steerdiff.guidance import Condition, Model
from steerdiff.guidance.loading import load_model
from steerdiff.io import cache_folder
from steerdiff.methods.finetuned import digest, with_delta
from steerdiff.methods.image_tuning import DenoisingLoss
from steerdiff.methods.imagic import Imagic
from steerdiff.models.delta import Delta, load_delta, save_delta
from steerdiff.samplers import Noise, NoiseSchedule
from steerdiff.train.randomness import SampleRandom

from .. import published_files as files
from ..guidance.toys import Recording, formula_model, pictures, tiny_text_model

SMALL = Imagic(
    eta=0.5,
    embedding_steps=4,
    embedding_rate=0.1,
    network_steps=4,
    network_rate=1e-3,
    batch_size=2,
    steps=3,
    guidance=2.0,
)
IMAGE = pictures(1, 8) * 0.9


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEERDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def settings(**changes: Any) -> Imagic:
    return dataclasses.replace(SMALL, **changes)


def tuned(model: Model, folder: Path, image: Tensor = IMAGE, prompt: Any = "a cat", **changes: Any) -> Delta:
    return settings(**changes).finetune(model, image, prompt=prompt, folder=folder, progress=False)


def weights_of(module: Any) -> str:
    return digest(*cast(nn.Module, module).state_dict().values())


def embedding_of(delta: Delta) -> Tensor:
    return delta.added()["imagic.embedding"]


def loss_of(model: Model, condition: Condition) -> float:
    """The loss of the image at fixed times and noises."""
    numbers = list(range(64))
    with torch.no_grad():
        errors = DenoisingLoss(model, condition, stream="held out").each(
            IMAGE.expand(64, -1, -1, -1), torch.zeros(64, dtype=torch.long), SampleRandom(1, numbers)
        )
    return float(errors.mean())


def test_without_any_steps_it_is_plain_generation_bit_for_bit_whatever_eta_is() -> None:
    model, images, prompts = tiny_text_model(), pictures(2, 8) * 0.9, ["a cat", "a dog"]
    plain = model.sample(prompts, 1, steps=3, solver="ddim", guidance=2.0, seed=5)
    for eta in (0.0, 0.3, 1.0, 1.2):
        edited = settings(embedding_steps=0, network_steps=0, eta=eta)(model, images, prompt=prompts, seed=5)
        assert torch.equal(edited, plain)


def test_without_tuning_the_network_eta_1_is_plain_generation_bit_for_bit_and_eta_0_is_not() -> None:
    model = tiny_text_model()
    plain = model.sample(["a cat"], 1, steps=3, solver="ddim", guidance=2.0, seed=5)
    whole, none = settings(network_steps=0).sweep(model, IMAGE, [1.0, 0.0], prompt="a cat", seed=5)
    assert torch.equal(whole, plain) and not torch.allclose(none, plain, atol=1e-3)


def test_without_tuning_the_embedding_eta_has_no_effect_but_the_network_is_tuned() -> None:
    model = tiny_text_model()
    edits = settings(embedding_steps=0).sweep(model, IMAGE, [0.0, 0.7, 1.2], prompt="a cat", seed=5)
    assert torch.equal(edits[0], edits[1]) and torch.equal(edits[0], edits[2])
    plain = model.sample(["a cat"], 1, steps=3, solver="ddim", guidance=2.0, seed=5)
    assert not torch.equal(edits[0], plain)


def test_each_stage_lowers_the_loss_of_its_image(tmp_path: Path) -> None:
    model = tiny_text_model()
    long = settings(embedding_steps=30, network_steps=30)
    delta = long.finetune(model, IMAGE, prompt="a cat", folder=tmp_path / "run", progress=False)
    target = model.condition("a cat")
    optimised = dataclasses.replace(long, eta=0.0).interpolated(target, delta)
    of_network = loss_of(with_delta(model, delta), optimised)
    assert loss_of(model, target) > loss_of(model, optimised) > of_network


def test_the_embedding_lies_on_the_line_from_the_tuned_one_to_that_of_the_text(tmp_path: Path) -> None:
    model = tiny_text_model()
    delta, target = tuned(model, tmp_path), model.condition("a cat")
    context = cast(Tensor, target.context)
    optimised = context + embedding_of(delta)
    for eta in (0.0, 0.3, 1.0, 1.2):
        found = settings(eta=eta).interpolated(target, delta)
        torch.testing.assert_close(found.context, eta * context + (1 - eta) * optimised, rtol=1e-5, atol=1e-6)
        assert found.context_mask is target.context_mask
    assert not torch.equal(optimised, context)


def test_tuning_leaves_the_model_its_text_encoder_and_its_first_stage_as_they_were(tmp_path: Path) -> None:
    model = tiny_text_model()
    before = weights_of(model.network), weights_of(model.text), cast(Tensor, model.condition("").context).clone()
    settings()(model, IMAGE, prompt="a cat")
    assert (weights_of(model.network), weights_of(model.text)) == before[:2]
    assert torch.equal(cast(Tensor, model.condition("").context), before[2])
    delta = tuned(model, tmp_path)
    weights = dict(cast(nn.Module, model.network).named_parameters())
    assert set(delta.forms) - {"imagic.embedding"} <= set(weights)
    assert all(parameter.grad is None for parameter in weights.values())


def test_each_stage_is_kept_by_what_decides_it(own_cache: Path) -> None:
    model = tiny_text_model()

    def kept() -> tuple[int, int]:
        return tuple(len(list((own_cache / kind).glob("*.safetensors"))) for kind in ("embeddings", "deltas"))

    settings()(model, IMAGE, prompt="a cat")
    assert kept() == (1, 1)
    for changes in ({"eta": 0.9}, {"steps": 4}, {"guidance": 1.0}):  # nothing is tuned again
        settings(**changes)(model, IMAGE, prompt="a cat", seed=3)
    assert kept() == (1, 1)
    settings(network_steps=5)(model, IMAGE, prompt="a cat")  # stage 2 alone
    assert kept() == (1, 2)
    settings(embedding_rate=0.2)(model, IMAGE, prompt="a cat")
    settings()(model, IMAGE, prompt="a dog")
    settings()(model, 0.5 * IMAGE, prompt="a cat")
    assert kept() == (4, 5)


def test_equal_images_of_a_batch_are_tuned_once_and_drawn_with_their_own_seeds(own_cache: Path) -> None:
    model, images = tiny_text_model(), torch.cat([IMAGE, 0.5 * IMAGE, IMAGE])
    together = settings()(model, images, prompt="a cat", seed=[3, 4, 5], negative=["a dog", "a dog", "red"])
    assert len(list((own_cache / "deltas").glob("*.safetensors"))) == 2
    for k, negative in enumerate(["a dog", "a dog", "red"]):
        alone = settings()(model, images[k : k + 1], prompt="a cat", seed=3 + k, negative=negative)
        torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=2e-5)  # float32 sums in another order


def test_a_stopped_run_goes_on_to_the_same_weights_and_a_finished_one_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_text_model()
    whole = tuned(model, tmp_path / "whole", network_steps=6)
    with pytest.raises(UserError, match="already holds a fine-tuning run; resume it"):
        tuned(model, tmp_path / "whole", network_steps=6)
    calls, inner = [], DenoisingLoss.__call__

    def stopping(self: DenoisingLoss, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(self, batch)

    monkeypatch.setattr(DenoisingLoss, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt, match="tuning stopped after 4 steps"):
        tuned(model, tmp_path / "stopped", network_steps=6)
    again = settings(network_steps=6).finetune(
        model, IMAGE, prompt="a cat", folder=tmp_path / "stopped", resume=True, progress=False
    )
    assert len(calls) == 6 and again.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(again.tensors[name], whole.tensors[name]) for name in whole.tensors)


def test_a_file_is_used_like_the_cache_and_knows_its_text_and_its_image(tmp_path: Path, own_cache: Path) -> None:
    model = tiny_text_model()
    path = save_delta(tmp_path / "a.safetensors", tuned(model, tmp_path / "run"))
    assert torch.equal(embedding_of(load_delta(path)), embedding_of(tuned(model, tmp_path / "again")))
    filed = settings(delta=path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edited = filed(model, IMAGE)
    assert torch.equal(edited, settings()(model, IMAGE, prompt="a cat"))
    assert torch.equal(edited, filed(model, IMAGE, prompt="a cat"))
    with pytest.raises(UserError, match="the delta was tuned to 'a cat', and the prompt is 'a dog'; leave it out"):
        filed(model, IMAGE, prompt="a dog")
    with pytest.warns(UserWarning, match="was tuned on another image than those given"):
        assert torch.equal(filed(model, 0.5 * IMAGE), edited)
    other = tiny_text_model()
    cast(nn.Module, other.network).requires_grad_(False).get_parameter("out.2.bias").add_(1)
    with pytest.raises(UserError, match="load the model it was tuned from"):
        filed(other, IMAGE)
    alien = save_delta(tmp_path / "b.safetensors", dataclasses.replace(load_delta(path), method="unitune"))
    with pytest.raises(UserError, match="was tuned by unitune; give a delta of imagic"):
        settings(delta=alien)(model, IMAGE)


@pytest.mark.parametrize("version", [1, 2])  # the second predicts v
def test_a_latent_model_is_tuned_on_the_latent_of_its_image(version: Any, tmp_path: Path) -> None:
    described = files.tiny_sd(version, predicts_v=version == 2)
    files.write_single_file(tmp_path / "sd.safetensors", described)
    model, image = load_model(tmp_path / "sd.safetensors", described), pictures(1, 32) * 0.9
    before = [weights_of(part) for part in (model.network, model.text, model.autoencoder)]
    edited = settings(embedding_steps=2, network_steps=2, steps=4).sweep(model, image, [0.0, 1.0], prompt="a red cat")
    assert edited.shape == (2, 1, 3, 32, 32) and not torch.equal(edited[0], edited[1])
    assert [weights_of(part) for part in (model.network, model.text, model.autoencoder)] == before


def test_a_posterior_is_sampled_once_for_both_stages() -> None:
    class Stage(nn.Module):
        """A first stage whose posterior is wide."""

        config = dataclasses.make_dataclass("Config", [("factor", int, 1), ("in_channels", int, 3)])()

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def latents(self, image: Tensor, eps: Tensor | None = None, *, tile: int | None = None) -> Tensor:
            return image if eps is None else image + eps

        def images(self, latents: Tensor, *, tile: int | None = None) -> Tensor:
            return latents

    model = tiny_text_model(autoencoder=Stage())
    drawn = settings(posterior="sample")._state(model, IMAGE)
    assert torch.equal(drawn, IMAGE + Noise(0, like=IMAGE)())
    assert torch.equal(settings()._state(model, IMAGE), IMAGE)
    edits = [settings(posterior=one)(model, IMAGE, prompt="a cat") for one in ("mean", "sample")]
    assert not torch.equal(*edits)


def test_without_a_text_it_says_that_nothing_is_edited() -> None:
    with pytest.warns(UserWarning, match="no text says what the result shows"):
        settings(embedding_steps=0, network_steps=0)(tiny_text_model(), IMAGE)


def test_what_cannot_be_tuned_is_said_before_anything_is_computed(tmp_path: Path) -> None:
    plain = Recording(lambda x, t: x)
    model = formula_model(plain, 8, NoiseSchedule.linear(100), name="plain")
    with pytest.raises(UserError, match="plain has no text whose embedding could be tuned"):
        settings()(model, IMAGE)
    with pytest.raises(UserError, match="plain is a formula without weights"):
        settings(embedding_steps=0)(model, IMAGE)
    text = tiny_text_model()
    with pytest.raises(UserError, match="2 images were given; Imagic is tuned to one at a time"):
        tuned(text, tmp_path, image=torch.cat([IMAGE, IMAGE]))
    with pytest.raises(UserError, match="both stages have 0 steps"):
        tuned(text, tmp_path, embedding_steps=0, network_steps=0)
    with pytest.raises(UserError, match="etas is empty"):
        settings().sweep(text, IMAGE, [])
    with pytest.raises(UserError, match="2 prompts or labels were given for 1 images"):
        settings()(text, IMAGE, prompt=["a cat", "a dog"])
    assert plain.rows == [] and not (cache_folder() / "tuning").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_steps": -1}, "embedding_steps is -1; it must be at least 0"),
        ({"network_steps": -1}, "network_steps is -1; it must be at least 0"),
        ({"tune_seed": -1}, "tune_seed is -1; it must be at least 0"),
        ({"embedding_rate": 0.0}, "embedding_rate is 0.0; it must be positive"),
        ({"network_rate": -1.0}, "network_rate is -1.0; it must be positive"),
        ({"ema_decay": 1.0}, r"ema_decay is 1.0; it must lie in \[0, 1\), 0 for none"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"posterior": "mode"}, "posterior is 'mode'; known are mean and sample"),
    ],
)
def test_a_setting_out_of_range_is_an_error_when_it_is_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**changes)

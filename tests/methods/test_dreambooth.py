"""DreamBooth: two losses that are independent and add up, classes as they were before, deltas that know their words."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from steerdiff import UserError
from steerdiff.guidance import Model
from steerdiff.guidance.loading import load_model
from steerdiff.io import cache_folder, save_image
from steerdiff.methods.dreambooth import DreamBooth
from steerdiff.methods.dreambooth_tuning import PriorPreservation, class_captions, class_pictures, told
from steerdiff.methods.finetuned import digest, with_delta
from steerdiff.methods.image_tuning import DenoisingLoss, TunedImages, rows_of
from steerdiff.models.clip_text import ClipText
from steerdiff.models.delta import Delta, load_delta, save_delta
from steerdiff.models.text import TextConfig, WordEncoder
from steerdiff.samplers import NoiseSchedule
from steerdiff.train.losses import Batch
from steerdiff.train.randomness import SampleRandom
from steerdiff.train.scene_text import WORDS

from .. import published_files as published
from ..guidance.toys import Recording, formula_model, pictures, tiny_text_model

SMALL = DreamBooth(
    nouns=("dog",),
    n_class=3,
    class_steps=2,
    tune_steps=4,
    learning_rate=1e-3,
    batch_size=2,
    steps=3,
    guidance=2.0,
)
IMAGE = pictures(1, 8) * 0.9
SUBJECT = pictures(3, 8, seed=4) * 0.9


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEERDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def settings(**changes: Any) -> DreamBooth:
    return dataclasses.replace(SMALL, **changes)


def tuned(model: Model, folder: Path, image: Tensor | None = SUBJECT, **changes: Any) -> Delta:
    return settings(**changes).finetune(model, image, folder=folder, progress=False)


def folder_of(path: Path, seed: int, text: str | None = None, n: int = 3) -> Path:
    """A folder of pictures, with texts if asked."""
    for k, image in enumerate(pictures(n, 8, seed=seed)):
        save_image(image, path / f"{k}.png")
        if text is not None:
            (path / f"{k}.txt").write_text(text)
    return path


def same(one: Delta, other: Delta) -> bool:
    tensors = one.tensors.keys() == other.tensors.keys()
    return tensors and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def batch_of(states: Tensor, first: int = 0, seed: int = 0) -> Batch:
    numbers = list(range(first, first + len(states)))
    return Batch(images=states, labels=torch.arange(len(states)), random=SampleRandom(seed, numbers))


def trainable(model: Model) -> Model:
    cast(nn.Module, model.network).requires_grad_(True)
    return model


def gradient(model: Model, loss: Tensor) -> Tensor:
    weights = cast(nn.Module, model.network).parameters()
    return torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(weights))])


def losses(model: Model) -> tuple[DenoisingLoss, DenoisingLoss]:
    shown, kept = told(model, ["a red dog"] * 3, anew=False), told(model, ["a dog"] * 3, anew=False)
    return DenoisingLoss(model, shown), DenoisingLoss(model, kept, stream="prior")


def test_weight_0_is_plain_fine_tuning_bit_for_bit_and_draws_no_class(tmp_path: Path, own_cache: Path) -> None:
    model = tiny_text_model()
    plain = tuned(model, tmp_path / "plain", prior_weight=0.0)
    assert not (own_cache / "class-images").exists()
    assert not same(plain, tuned(model, tmp_path / "prior", prior_weight=1.0))
    # a weight so small that it is lost in float32 beside the subject's gradient: the streams do not mix
    nearly = tuned(model, tmp_path / "nearly", prior_weight=1e-30)
    assert same(plain, nearly)


def test_the_loss_is_the_subjects_plus_lambda_times_the_classs_and_so_are_its_gradients() -> None:
    model = trainable(tiny_text_model())
    subject, prior = losses(model)
    states, batch = TunedImages(states=pictures(3, 8, seed=7)), batch_of(SUBJECT)
    whole, metrics = PriorPreservation(subject, prior, states, 0.7)(batch)
    plain, alone = subject(batch)
    kept = prior.each(states.states, torch.arange(3), batch.random).mean()
    torch.testing.assert_close(whole, plain + 0.7 * kept)
    assert torch.equal(metrics["mse"], alone["mse"]) and torch.equal(metrics["prior_mse"], kept.detach())
    expected = gradient(model, plain) + 0.7 * gradient(model, kept)
    torch.testing.assert_close(gradient(model, whole), expected, rtol=1e-4, atol=1e-6)


def test_a_class_that_is_the_subject_with_the_same_noise_gives_exactly_twice_the_loss() -> None:
    model = tiny_text_model()
    subject, batch = losses(model)[0], batch_of(SUBJECT)
    whole, _ = PriorPreservation(subject, subject, TunedImages(states=SUBJECT), 1.0)(batch)
    assert torch.equal(whole, 2 * subject(batch)[0])


def test_two_forwards_are_one_of_both_together() -> None:
    model, states = tiny_text_model(), pictures(3, 8, seed=7)
    subject, prior = losses(model)
    batch = batch_of(SUBJECT)
    whole, _ = PriorPreservation(subject, prior, TunedImages(states=states), 1.0)(batch)
    outputs: list[tuple[Tensor, ...]] = []

    def noting(x: Tensor, t: Tensor, **given: Tensor) -> Tensor:
        outputs.append((x, t, *given.values()))
        return cast(Tensor, model.network(x, t, **given))

    spied = losses(dataclasses.replace(model, network=noting))
    PriorPreservation(*spied, TunedImages(states=states), 1.0)(batch)
    x, t, context, mask = (torch.cat(both) for both in zip(*outputs, strict=True))
    together = model.network(x, t, context=context, context_mask=mask)
    # v-prediction: the errors of each half are those of the targets that x0 and x, t imply
    root = torch.tensor([model.schedule.alpha_bar(float(one)) for one in t]).sqrt().reshape(-1, 1, 1, 1)
    x0 = torch.cat([SUBJECT, states])
    noise = (1 - root.square()).sqrt()
    target = root * (x - root * x0) / noise - noise * x0
    error = (together - target).square().mean((1, 2, 3))
    torch.testing.assert_close(error[:3].mean() + error[3:].mean(), whole, rtol=1e-4, atol=1e-5)


def test_class_pictures_are_paired_in_turn_whatever_the_batch() -> None:
    model = tiny_text_model()
    subject, prior = losses(model)
    both = PriorPreservation(subject, prior, TunedImages(states=pictures(3, 8, seed=7)), 1.0)
    whole = both(batch_of(SUBJECT, first=4))[0]
    singles = [
        both(Batch(images=SUBJECT[k : k + 1], labels=torch.tensor([k]), random=SampleRandom(0, [4 + k])))[0]
        for k in range(3)
    ]
    torch.testing.assert_close(whole, torch.stack(singles).mean())


def test_prior_preservation_keeps_what_the_class_was_better_than_plain_tuning(tmp_path: Path) -> None:
    model = tiny_text_model()
    of_class = class_pictures(model, ["a dog"] * 3, 0, None, steps=2, guidance=None).images
    numbers = SampleRandom(9, list(range(48)))

    def error(name: str, images: Tensor, prompt: str, **changes: Any) -> float:
        changes = {"tune_steps": 25, "learning_rate": 5e-3, **changes}
        after = with_delta(model, tuned(model, tmp_path / name, **changes))
        loss = DenoisingLoss(after, after.condition(prompt), stream="held out")
        return float(loss.each(images.repeat(16, 1, 1, 1), torch.zeros(48).long(), numbers).mean())

    assert error("a", of_class, "a dog") < 0.9 * error("b", of_class, "a dog", prior_weight=0.0)
    before = float(
        DenoisingLoss(model, model.condition("a dog"), stream="held out")
        .each(SUBJECT.repeat(16, 1, 1, 1), torch.zeros(48).long(), numbers)
        .mean()
    )
    assert error("c", SUBJECT, "a sks dog") < 0.9 * before


def test_the_class_is_drawn_by_the_model_as_it_was_once_and_more_pictures_keep_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, drawn, sample = tiny_text_model(), [], Model.sample

    def noting(self: Model, prompt: Any, *args: Any, **options: Any) -> Tensor:
        drawn.extend(prompt)
        return sample(self, prompt, *args, **options)

    monkeypatch.setattr(Model, "sample", noting)
    first = class_pictures(model, ["a dog"] * 17, 3, None, steps=2, guidance=1.5)
    assert len(drawn) == 17
    expected = sample(model, ["a dog"], 1, steps=2, guidance=1.5, seed=3 * 1_000_003).clamp(-1, 1)
    torch.testing.assert_close(first.images[:1], expected, rtol=0, atol=1.01 / 255)  # rounded to 8 bits
    more = class_pictures(model, ["a dog"] * 20, 3, None, steps=2, guidance=1.5)
    assert len(drawn) == 17 + 4 and torch.equal(more.images[:17], first.images)
    class_pictures(model, ["a dog"] * 20, 3, None, steps=2, guidance=1.5)
    assert len(drawn) == 17 + 4


def test_classes_of_the_embedded_domain_are_whole_captions_and_others_the_template() -> None:
    emoji = WordEncoder(TextConfig(words=WORDS, width=8, depth=1, heads=2))
    captions = class_captions(emoji, "cat", 40, 0, "a {}")
    assert all(" cat on " in caption for caption in captions) and len(set(captions)) > 15
    assert class_captions(tiny_text_model().text, "dog", 2, 0, "a photo of {}") == ["a photo of dog"] * 2


def test_a_new_identifier_is_known_after_the_delta_and_the_model_stays_as_it_was(tmp_path: Path) -> None:
    model = tiny_text_model()
    before = [digest(*cast(nn.Module, part).state_dict().values()) for part in (model.network, model.text)]
    delta = load_delta(save_delta(tmp_path / "a.safetensors", tuned(model, tmp_path / "run")))
    assert delta.forms["text.words.sks"] == "added" and delta.settings["shows"] == "a sks dog"
    assert {name for name in delta.forms if name.startswith("text.")} == {"text.words.sks"}
    with_delta(model, delta).sample("a sks dog", steps=2)
    with pytest.raises(UserError, match="does not know: 'sks'"):
        model.sample("a sks dog", steps=2)
    assert [digest(*cast(nn.Module, part).state_dict().values()) for part in (model.network, model.text)] == before


def test_the_text_encoder_is_tuned_only_if_asked_and_then_the_new_word_too(tmp_path: Path) -> None:
    model = tiny_text_model()
    plain, both = tuned(model, tmp_path / "a"), tuned(model, tmp_path / "b", tunes_text=True)
    assert not any(name.startswith("text.layers") for name in plain.forms)
    assert both.forms["text.layers.0.qkv.weight"] == "difference"
    assert not torch.equal(both.added()["text.words.sks"], plain.added()["text.words.sks"])
    drawn = [with_delta(model, one).sample("a sks dog", steps=2, seed=1) for one in (plain, both)]
    assert not torch.allclose(*drawn, atol=1e-3)


@pytest.mark.parametrize("text", [False, True])
def test_adapters_change_attention_alone_and_their_delta_is_small(tmp_path: Path, text: bool) -> None:
    model = tiny_text_model()
    full = save_delta(tmp_path / "full.safetensors", tuned(model, tmp_path / "a", tunes_text=text))
    delta = tuned(model, tmp_path / "b", lora=1, tunes_text=text)
    thin = save_delta(tmp_path / "thin.safetensors", delta)
    assert thin.stat().st_size < full.stat().st_size / 3
    changed = {name for name in delta.forms if name != "text.words.sks"}
    assert {delta.forms[name] for name in changed} == {"low-rank"} and delta.rank == 1
    assert all(".attn" in name or ".qkv" in name for name in changed)
    assert any(name.startswith("text.") for name in changed) == text
    weights = dict(cast(nn.Module, with_delta(model, delta).network).named_parameters())
    for name, weight in cast(nn.Module, model.network).named_parameters():
        assert torch.equal(weights[name], weight) == (name not in changed), name


def test_other_matrices_get_adapters_by_their_names(tmp_path: Path) -> None:
    delta = tuned(tiny_text_model(), tmp_path, lora=2, lora_in=("out_layers",))
    assert all("out_layers" in name for name in delta.forms if name != "text.words.sks")


def test_several_subjects_are_taught_in_one_run_each_by_its_name(tmp_path: Path) -> None:
    model = tiny_text_model()
    folders = folder_of(tmp_path / "first", 1), folder_of(tmp_path / "second", 2)
    both = settings(images=folders, identifiers=("lynx", "ibex"), nouns=("dog", "cat"), n_class=4)
    (delta,) = both.deltas(model)
    assert delta.settings["captions"] == ["a lynx dog"] * 3 + ["a ibex cat"] * 3
    assert {"text.words.lynx", "text.words.ibex"} <= set(delta.forms)
    pictured = both._class_pictures(model, both._pictures(model, None, None), None)
    assert pictured.captions == ("a dog", "a cat", "a dog", "a cat")
    first, second = (both(model, prompt=prompt, seed=1) for prompt in ("a lynx dog", "a ibex cat"))
    assert not torch.allclose(first, second, atol=1e-3)
    assert torch.equal(both(model, seed=1), first)  # the first subject by itself


def test_captions_beside_pictures_are_read_and_say_what_the_class_is(tmp_path: Path) -> None:
    model = tiny_text_model()
    folder = folder_of(tmp_path / "subject", 1, "red sks cat")
    method = settings(images=(folder,), captioned=True, nouns=())
    assert method._pictures(model, None, None).captions == ("red sks cat",) * 3
    assert method._nouns(["red sks cat"]) == ("cat",)
    (delta,) = method.deltas(model)
    assert delta.settings["shows"] == "a sks cat"


def test_mirror_images_are_samples_too_and_the_captions_follow(tmp_path: Path) -> None:
    model = tiny_text_model()
    shown = settings()._pictures(model, SUBJECT, ["a dog", "a cat", "red"])
    states = shown.states(model, flip=True).states
    assert torch.equal(states[3:], SUBJECT.flip(3)) and shown.told(flip=True)[3:] == ("a dog", "a cat", "red")
    assert not same(tuned(model, tmp_path / "a"), tuned(model, tmp_path / "b", flip=True))


def test_each_image_of_a_call_is_a_subject_of_its_own_and_equal_ones_are_tuned_once(own_cache: Path) -> None:
    model, images = tiny_text_model(), torch.cat([IMAGE, 0.5 * IMAGE, IMAGE])
    arguments = {"prompt": "a sks dog", "target": ["a sks dog", "a red sks dog", "red"]}
    together = settings()(model, images, **arguments, seed=[3, 4, 5])  # type: ignore[arg-type]
    assert len(list((own_cache / "deltas").glob("*.safetensors"))) == 2
    for k in range(3):
        alone = settings()(model, images[k : k + 1], prompt="a sks dog", target=arguments["target"][k], seed=3 + k)
        torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=2e-5)  # float32 sums in another order


def test_without_steps_it_is_plain_drawing_bit_for_bit() -> None:
    model = tiny_text_model()
    plain = model.sample(["a cat"], 2, steps=3, solver="ddim", guidance=2.0, seed=5)
    assert torch.equal(settings(tune_steps=0)(model, prompt=["a cat"] * 2, seed=5), plain)
    assert torch.equal(settings(tune_steps=0)(model, pictures(2, 8), prompt="a cat", seed=5), plain)


def test_a_file_is_used_like_the_cache_and_fits_its_model_alone(tmp_path: Path) -> None:
    model, folder = tiny_text_model(), folder_of(tmp_path / "subject", 1)
    method = settings(images=(folder,))
    delta = method.finetune(model, folder=tmp_path / "run", progress=False)
    path = save_delta(tmp_path / "a.safetensors", delta)
    assert torch.equal(settings(delta=path)(model, seed=2), method(model, seed=2))
    assert torch.equal(settings(delta=path)(model, seed=2), method(model, prompt="a sks dog", seed=2))
    other = tiny_text_model()
    cast(nn.Module, other.network).get_parameter("out.2.bias").add_(1)
    with pytest.raises(UserError, match="load the model it was tuned from"):
        settings(delta=path)(other)
    alien = save_delta(tmp_path / "b.safetensors", dataclasses.replace(delta, method="unitune"))
    with pytest.raises(UserError, match="was tuned by unitune; give a delta of dreambooth"):
        settings(delta=alien)(model)


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, options = tiny_text_model(), {"tunes_text": True, "ema_decay": 0.5}
    whole = tuned(model, tmp_path / "whole", **options)
    calls, inner = [], PriorPreservation.__call__

    def stopping(self: PriorPreservation, batch: Any) -> Any:
        calls.append(1)
        assert self.prior.stream != self.subject.stream  # else their noises would be the same
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(self, batch)

    monkeypatch.setattr(PriorPreservation, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt, match="tuning stopped after 2 steps"):
        tuned(model, tmp_path / "stopped", **options)
    again = settings(**options).finetune(model, SUBJECT, folder=tmp_path / "stopped", resume=True, progress=False)
    assert len(calls) == 4 and same(again, whole)


def test_recomputing_activations_changes_nothing_and_bf16_little(tmp_path: Path) -> None:
    model, method = tiny_text_model(), settings(lora=2, tunes_text=True)
    plain, again, coarse = (
        method.finetune(model, SUBJECT, folder=tmp_path / name, progress=False, **options)
        for name, options in (("a", {}), ("b", {"checkpointing": True}), ("c", {"bf16": True}))  # type: ignore[arg-type]
    )
    drawn = [with_delta(model, one).sample("a sks dog", steps=2, seed=1) for one in (plain, again, coarse)]
    torch.testing.assert_close(drawn[1], drawn[0], rtol=0, atol=2e-3)  # deltas are rounded to float16
    torch.testing.assert_close(drawn[2], drawn[0], rtol=0, atol=0.1)
    assert not same(plain, coarse)


@pytest.mark.parametrize("changes", [{}, {"tunes_text": True, "lora": 2}])
def test_a_latent_model_with_a_vocabulary_is_taught_with_its_text_encoder(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    described = published.tiny_sd(1)
    published.write_single_file(tmp_path / "sd.safetensors", described)
    model, image = load_model(tmp_path / "sd.safetensors", described), pictures(2, 32) * 0.9
    assert isinstance(model.text, ClipText)
    delta = tuned(model, tmp_path / "run", image, tune_steps=2, **changes)
    assert not delta.added() and any(name.startswith("text.") for name in delta.forms) == bool(changes)
    path = save_delta(tmp_path / "a.safetensors", delta)
    drawn = settings(delta=path, steps=4)(model, prompt=["a sks dog", "a sks dog in a bucket"])
    assert drawn.shape == (2, 3, 32, 32)
    assert not torch.equal(drawn, settings(tune_steps=0, steps=4)(model, prompt=["a sks dog", "a sks dog in a bucket"]))


def test_conditions_of_frozen_and_tuned_texts_are_the_same_and_read_once_a_text() -> None:
    model, captions = tiny_text_model(), ["a cat", "a dog", "a cat"]
    places = torch.tensor([2, 1, 0])
    frozen, anew = (told(model, captions, anew=one)(places).context for one in (False, True))
    torch.testing.assert_close(frozen, anew)
    torch.testing.assert_close(frozen, rows_of(model.condition(captions), places).context)


def test_what_cannot_be_taught_is_said_before_anything_is_computed(tmp_path: Path) -> None:
    network = Recording(tiny_text_model().network)
    model = tiny_text_model(network=network)
    plain = formula_model(lambda x, t: x, 8, NoiseSchedule.linear(100), name="plain")
    with pytest.raises(UserError, match="there is no subject; give images"):
        settings()(tiny_text_model(), prompt="a cat")
    with pytest.raises(UserError, match="plain has no text encoder"):
        tuned(plain, tmp_path)
    with pytest.raises(UserError, match="tiny is a formula without weights"):
        tuned(model, tmp_path)
    with pytest.raises(UserError, match="does not know: 'lion'"):
        tuned(tiny_text_model(), tmp_path, nouns=("lion",))
    with pytest.raises(UserError, match="no caption says what 'sks' is; give nouns"):
        tuned(tiny_text_model(), tmp_path, nouns=())
    with pytest.raises(UserError, match="has no caption"):
        settings(images=(folder_of(tmp_path / "bare", 1),), captioned=True).deltas(tiny_text_model())
    with pytest.raises(UserError, match="holds no images"):
        (tmp_path / "empty").mkdir()
        settings(images=(tmp_path / "empty",)).deltas(tiny_text_model())
    with pytest.raises(UserError, match="target has 2 texts for 1 images"):
        settings()(tiny_text_model(), IMAGE, prompt="a sks dog", target=["a", "cat"])
    with pytest.raises(UserError, match="given as text states; give the text itself"):
        condition = tiny_text_model().condition("a dog")
        settings()(tiny_text_model(), IMAGE, prompt=condition, target="a dog")
    with pytest.raises(UserError, match="tune_steps is 0, which tunes nothing"):
        tuned(tiny_text_model(), tmp_path, tune_steps=0)
    assert network.rows == [] and not (cache_folder() / "class-images").exists()


def test_few_pictures_are_a_warning(tmp_path: Path) -> None:
    method = settings(images=(folder_of(tmp_path / "few", 1, n=2),))
    with pytest.warns(UserWarning, match="few holds 2 pictures; 3 to 5 show what belongs to the subject"):
        method.deltas(tiny_text_model())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identifiers": ("a", "b")}, "2 identifiers, 1 nouns and 1 subjects"),
        ({"images": (Path("x"), Path("y")), "identifiers": ("a", "a"), "nouns": ()}, "identifiers are given twice"),
        ({"template": "a photo"}, "template is 'a photo'; it needs one {}"),
        ({"prior_weight": -1.0}, "prior_weight is -1.0; it must be at least 0"),
        ({"n_class": 0}, "n_class is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"tune_steps": -1}, "tune_steps is -1; it must be at least 0"),
        ({"lora": 0}, "lora is 0; it is a rank of at least 1"),
    ],
)
def test_a_setting_out_of_range_is_an_error_when_it_is_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**changes)

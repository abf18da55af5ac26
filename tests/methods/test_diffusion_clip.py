"""DiffusionCLIP: neutral settings are plain DDIM, tuning resumes exactly, and what is tuned fits only its model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from torch import Tensor

from steerdiff import UserError
from steerdiff.guidance import Model
from steerdiff.io import cache_folder, save_image
from steerdiff.methods import DiffusionCLIP
from steerdiff.methods.diffusion_clip_tuning import EfficientTuning, QuickTuning
from steerdiff.methods.edit_tuning import EditLoss, LatentPairs
from steerdiff.methods.finetuned import copy_of, digest, identity, with_delta
from steerdiff.models.delta import Delta, load_delta, make_delta, save_delta
from steerdiff.samplers import CLEAN, DDIM, Level, Noise, NoiseSchedule, Path, integrate
from steerdiff.train.losses import Batch
from steerdiff.train.randomness import SampleRandom

from ..guidance.toys import formula_model, gaussian_eps, pictures, tiny_text_model
from .tiny_clips import load_tiny, tiny_clip

SMALL = DiffusionCLIP(
    source_text="cat",
    target_text="dog",
    t0=0.5,
    n_inv=4,
    n_test=4,
    n_train=3,
    n_images=2,
    epochs=2,
    image_steps=2,
    learning_rate=1e-3,
)
IMAGE = pictures(2, 8) * 0.9


@pytest.fixture(autouse=True)
def own_cache(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> FilePath:
    monkeypatch.setenv("STEERDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("steerdiff.methods.diffusion_clip.load_cached", load_tiny)
    return tmp_path / "cache"


def untrained(model: Model, **settings: Any) -> Delta:
    weights = model.network.state_dict()  # type: ignore[union-attr]
    return make_delta(weights, weights, base=identity(model), method="diffusionclip", settings=settings)


def tuned(model: Model, folder: FilePath, **changes: Any) -> Delta:
    return dataclasses.replace(SMALL, **changes).finetune(model, folder=folder, progress=False)


def round_trip(model: Model, image: Tensor, method: DiffusionCLIP) -> Tensor:
    """Inversion and sampling by hand, with numbers of their own."""
    top = min(round((method.t0 or 0.5) * model.schedule.T), model.schedule.T - 1)

    def levels(n: int) -> list[Level]:
        return [model.schedule.level(int(i / (n - 1) * top + 1e-9)) for i in range(n)]

    denoise = model.denoiser()
    denoise = model.denoiser(clip="none")
    up = Path.from_levels(levels(method.n_inv), T=model.schedule.T, kind="invert")
    down = Path.from_levels([*levels(method.n_test)[::-1], CLEAN], T=model.schedule.T)
    return integrate(denoise, DDIM(), down, integrate(denoise, DDIM(), up, image))


def test_degree_zero_and_an_untrained_copy_are_inversion_and_ddim_of_the_original_bit_for_bit(
    tmp_path: FilePath,
) -> None:
    model = tiny_text_model()
    expected = round_trip(model, IMAGE, SMALL)
    assert torch.equal(dataclasses.replace(SMALL, degree=0.0)(model, IMAGE), expected)
    file = save_delta(tmp_path / "none.safetensors", untrained(model))
    for degree in (0.0, 1.0):
        assert torch.equal(dataclasses.replace(SMALL, delta=file, degree=degree)(model, IMAGE), expected)
    half = dataclasses.replace(SMALL, delta=file, degree=0.5)(model, IMAGE)
    torch.testing.assert_close(half, expected)
    assert not torch.equal(SMALL(model, IMAGE), expected)


def test_the_sequences_are_those_of_the_paper() -> None:
    schedule = NoiseSchedule.linear(1000)
    published = DiffusionCLIP()
    for n in (6, 40):
        expected = [int(500 * i / (n - 1) + 1e-9) for i in range(n)]
        path = published.path(schedule, n)
        assert [level.t for level in path.levels] == [*expected[::-1], -1] and len(path) == n
        assert len(path.inverted()) == n - 1 and path.inverted().start.t == 0
    assert dataclasses.replace(published, t0=1.0).path(schedule, 6).start.t == 999
    assert dataclasses.replace(published, t0=0.301).path(schedule, 6).start.t == 301


def test_more_levels_give_a_round_trip_closer_to_the_image() -> None:
    schedule = NoiseSchedule.linear(1000)
    model = formula_model(gaussian_eps(schedule, 0.1, 0.4), 8, schedule)
    errors = []
    for n in (10, 20, 40, 80, 160):
        back = DiffusionCLIP(n_inv=n, n_test=n, degree=0.0)(model, IMAGE)
        errors.append(float((back - IMAGE).abs().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-2] / errors[-1] == pytest.approx(2, abs=0.35)  # first order


def test_the_degree_is_linear_in_the_predicted_noise(tmp_path: FilePath) -> None:
    model = tiny_text_model()
    delta = tuned(model, tmp_path)
    level, x = model.schedule.level(30), IMAGE
    original, changed = model.denoiser(clip="none"), with_delta(model, delta).denoiser(clip="none")
    ends = original(x, level).eps, changed(x, level).eps
    assert not torch.equal(*ends)
    for degree in (0.0, 0.25, 0.5, 1.0):
        method = dataclasses.replace(SMALL, degree=degree)
        mixed = method._mixed((changed,), original, model.schedule.T)(x, level)
        torch.testing.assert_close(mixed.eps, degree * ends[1] + (1 - degree) * ends[0])


def pairs_of(model: Model, updates: int = 1, batch_size: int = 1) -> LatentPairs:
    images = pictures(2, 8, seed=3) * 0.9
    up = SMALL.path(model.schedule, SMALL.n_inv).inverted()
    latents = integrate(model.denoiser(clip="none"), DDIM(), up, images)
    features = tiny_clip().image_features(images)
    return LatentPairs(
        images=images, latents=latents, features=features, captions=None, batch_size=batch_size, updates=updates
    )


def edit_loss(**weights: float) -> EditLoss:
    clip = tiny_clip()
    return EditLoss(clip=clip, direction=SMALL.direction(clip), **weights)


def test_the_efficient_variant_without_updates_walks_plain_ddim_and_leaves_the_weights() -> None:
    model = copy_of(tiny_text_model(), shares=False)
    before = digest(*model.network.state_dict().values())  # type: ignore[union-attr]
    path = SMALL.path(model.schedule, SMALL.n_train)
    pairs = pairs_of(model, updates=len(path))
    descend = EfficientTuning(model, path, pairs, edit_loss())
    denoise = model.denoiser(clip="none")
    for image in range(2):
        x = pairs.latents[image : image + 1]
        for k in range(len(path)):
            number = image * len(path) + k
            images, labels = pairs.batch([number])
            loss, _ = descend(Batch(images, labels, SampleRandom(0, [number])))
            expected = DDIM().step(denoise, x, path[k], None, Noise(0, like=x))
            x = expected.x
            assert descend.x is not None and torch.equal(descend.x, x)
            predicted = expected.prediction
            assert predicted is not None
            alone, _ = edit_loss()(predicted.x0, images, pairs.features[image : image + 1])
            torch.testing.assert_close(loss, alone[0])
    assert digest(*model.network.state_dict().values()) == before  # type: ignore[union-attr]


def test_the_gradient_of_one_efficient_update_is_that_of_a_loss_of_one_step() -> None:
    model = copy_of(tiny_text_model(), shares=False)
    network: Any = model.network
    network.requires_grad_(True)
    path = SMALL.path(model.schedule, SMALL.n_train)
    pairs = pairs_of(model, updates=len(path))
    images, labels = pairs.batch([0])
    loss, _ = EfficientTuning(model, path, pairs, edit_loss())(Batch(images, labels, SampleRandom(0, [0])))
    loss.backward()  # type: ignore[no-untyped-call]
    ours = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad(set_to_none=True)
    x0 = model.denoiser(clip="none")(pairs.latents[:1], path.start).x0
    vectors, source = tiny_clip().image_features(x0), pairs.features[:1]
    moved = torch.nn.functional.normalize(vectors - source, dim=-1)
    cosine = (moved * SMALL.direction(tiny_clip())).sum()
    (3 * -((1 + cosine) / 2).log() + (x0 - images).abs().mean()).backward()  # type: ignore[no-untyped-call]
    theirs = [p.grad for p in network.parameters() if p.grad is not None]
    assert len(ours) == len(theirs) > 10
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-4)  # the code's 1e-7 beside the length


def test_quick_tuning_sees_the_end_of_all_moves_and_recomputing_gives_the_same_gradient() -> None:
    grads = []
    for checkpointing in (False, True):
        model = copy_of(tiny_text_model(), shares=False)
        network: Any = model.network
        network.requires_grad_(True)
        path, pairs = SMALL.path(model.schedule, SMALL.n_train), pairs_of(model)
        images, labels = pairs.batch([0])
        descend = QuickTuning(model, path, pairs, edit_loss(), checkpointing=checkpointing)
        loss, metrics = descend(Batch(images, labels, SampleRandom(0, [0])))
        loss.backward()  # type: ignore[no-untyped-call]
        grads.append([p.grad for p in network.parameters()])
        end = integrate(model.denoiser(clip="none"), DDIM(), path, pairs.latents[:1])
        assert float(metrics["l1"]) == pytest.approx(float((end - images).abs().mean()), rel=1e-5)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_the_loss_of_an_image_does_not_depend_on_its_batch() -> None:
    loss = edit_loss(l1_weight=0.5)
    edited, source = pictures(3, 8, seed=1), pictures(3, 8, seed=2)
    features = tiny_clip().image_features(source)
    together, _ = loss(edited, source, features)
    assert together.shape == (3,)
    for k in range(3):
        alone, _ = loss(edited[k : k + 1], source[k : k + 1], features[k : k + 1])
        torch.testing.assert_close(together[k : k + 1], alone)


def test_views_are_alike_for_image_and_source_and_each_image_has_its_own() -> None:
    loss, plain = edit_loss(views=4), edit_loss()
    edited, source = pictures(2, 8, seed=1), pictures(2, 8, seed=2)
    features = tiny_clip().image_features(source)
    random = SampleRandom(3, [7, 8])
    together, _ = loss(edited, source, features, random)
    assert not torch.allclose(together, plain(edited, source, features)[0])
    torch.testing.assert_close(loss(edited, source, features)[0], plain(edited, source, features)[0])
    for k in range(2):
        one = slice(k, k + 1)
        alone, _ = loss(edited[one], source[one], features[one], SampleRandom(3, [7 + k]))
        torch.testing.assert_close(together[one], alone)
    same, _ = loss(source, source, features, random)  # nothing moved in any view: cosine 0
    torch.testing.assert_close(same, torch.full((2,), 3 * math.log(2)), rtol=0, atol=0.2)


def test_only_what_looks_at_the_prompt_is_tuned_where_that_is_asked_for(tmp_path: FilePath) -> None:
    model = tiny_text_model()
    delta = tuned(model, tmp_path, tunes="attention", uses_prompt=True)
    assert delta.forms and all(".attn2." in name for name in delta.forms)


def test_below_until_the_original_finishes_without_a_prompt_in_tuning_and_in_editing(tmp_path: FilePath) -> None:
    model = tiny_text_model()
    delta = tuned(model, tmp_path, until=0.3)
    file = save_delta(tmp_path / "delta.safetensors", delta)
    method = dataclasses.replace(SMALL, delta=file, uses_prompt=True)
    assert method.settled((delta,)).until == 0.3
    original, changed = model.denoiser(clip="none"), with_delta(model, delta).denoiser("a cat", clip="none")
    mixed = method.settled((delta,))._finish(model).after(changed)
    for t, expected in ((50, changed), (30, changed), (29, original), (0, original)):
        level = model.schedule.level(t)
        assert torch.equal(mixed(IMAGE, level).eps, expected(IMAGE, level).eps)
    down = method.path(model.schedule, method.n_test)
    up = method.path(model.schedule, method.n_inv).inverted()
    latent = integrate(model.denoiser("a cat", clip="none"), DDIM(), up, IMAGE)
    by_hand = integrate(mixed, DDIM(), down, latent)
    assert torch.equal(method(model, IMAGE, prompt="a cat"), by_hand)
    path, pairs = method.path(model.schedule, method.n_train), pairs_of(model)
    images, labels = pairs.batch([0])
    descend = QuickTuning(model, path, pairs, edit_loss(), finish=method.settled((delta,))._finish(model))
    _, metrics = descend(Batch(images, labels, SampleRandom(0, [0])))
    end = integrate(model.denoiser(clip="none"), DDIM(), path, pairs.latents[:1])
    assert float(metrics["l1"]) == pytest.approx(float((end - images).abs().mean()), rel=1e-5)


def test_the_efficient_variant_leaves_out_the_moves_that_the_original_makes(tmp_path: FilePath) -> None:
    model = tiny_text_model()
    method = dataclasses.replace(SMALL, variant="efficient", until=0.2, n_train=5)
    assert [move.here.t for move in method.tuning_path(model.schedule)] == [50, 37, 25]
    assert len(dataclasses.replace(method, variant="quick").tuning_path(model.schedule)) == 5
    method.finetune(model, folder=tmp_path, progress=False)
    steps = (tmp_path / "checkpoints").iterdir()
    assert [path.name for path in steps] == [f"step-{3 * 2 * 2:08d}.pt"]  # moves, images, epochs


def test_an_identity_is_asked_for_where_it_has_a_weight(tmp_path: FilePath) -> None:
    model, seen = tiny_text_model(), list[int]()

    def unlike(a: Tensor, b: Tensor) -> Tensor:
        seen.append(len(a))
        return (a - b).square().flatten(1).mean(1)

    method = dataclasses.replace(SMALL, id_weight=1.0)
    method.finetune(model, folder=tmp_path / "run", progress=False, identity=unlike)
    assert len(seen) == SMALL.n_images * SMALL.epochs
    with pytest.raises(UserError, match="nothing compares faces; call finetune with identity="):
        method.finetune(model, folder=tmp_path / "other", progress=False)
    with pytest.raises(UserError, match="id_weight needs what compares faces"):
        method(model, IMAGE)


class Killed(Exception):
    """What stands for a crash."""


@pytest.mark.parametrize("variant", ["quick", "efficient"])
def test_a_killed_and_resumed_tuning_ends_with_the_same_delta(
    variant: Any, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_text_model()
    method = dataclasses.replace(SMALL, variant=variant)
    whole = method.finetune(model, folder=tmp_path / "whole", progress=False)
    real = DiffusionCLIP._config

    def often(self: DiffusionCLIP, *args: Any) -> Any:
        return dataclasses.replace(real(self, *args), checkpoint_every=2)

    calls = [0]

    def dies(loss: Callable[..., Any], after: int) -> Callable[..., Any]:
        def call(self: Any, batch: Batch) -> Any:
            calls[0] += 1
            if calls[0] > after:
                raise Killed
            return loss(self, batch)

        return call

    kind = QuickTuning if variant == "quick" else EfficientTuning
    monkeypatch.setattr(DiffusionCLIP, "_config", often)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "__call__", dies(kind.__call__, 3))
        with pytest.raises(Killed):
            method.finetune(model, folder=tmp_path / "killed", progress=False)
    again = method.finetune(model, folder=tmp_path / "killed", resume=True, progress=False)
    assert whole.forms == again.forms and len(whole.tensors) > 10
    assert all(torch.equal(whole.tensors[name], again.tensors[name]) for name in whole.tensors)
    assert whole.scales == again.scales


def test_a_run_is_not_taken_up_with_other_settings_or_unasked(tmp_path: FilePath) -> None:
    model = tiny_text_model()
    tuned(model, tmp_path)
    with pytest.raises(UserError, match="already holds a fine-tuning run; resume it"):
        tuned(model, tmp_path)
    other = dataclasses.replace(SMALL, clip_weight=1.0)
    with pytest.raises(UserError, match="was started with other about; keep them"):
        other.finetune(model, folder=tmp_path, resume=True, progress=False)


def test_tuning_changes_all_weights_a_little_and_not_the_model(tmp_path: FilePath) -> None:
    model = tiny_text_model()
    network: Any = model.network
    before = digest(*network.state_dict().values())
    delta = tuned(model, tmp_path)
    assert digest(*network.state_dict().values()) == before
    assert not any(p.requires_grad for p in network.parameters())
    assert set(delta.forms) >= {name for name, p in network.named_parameters() if p.ndim >= 2 and "to_k" not in name}
    steps = SMALL.n_images * SMALL.epochs
    assert max(delta.scales.values()) < 1.3 * 1e-3 * steps * 1.01  # Adam moves by its rate at most, at first


def test_the_learning_rate_grows_by_the_factor_after_every_epoch(tmp_path: FilePath) -> None:
    pairs = pairs_of(tiny_text_model(), updates=3)
    config = dataclasses.replace(SMALL, epochs=3, rate_gamma=1.3)._config(tmp_path, pairs, {}, False)
    assert config.steps == 3 * 2 * 3 and config.clip_norm is None and config.weight_decay == 0
    factors = [config.rate_at(step) for step in range(config.steps)]
    assert factors == [1.0] * 6 + [1.3] * 6 + [1.3**2] * 6


def test_the_second_call_takes_the_delta_from_the_cache(own_cache: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_text_model()
    first = SMALL(model, IMAGE)
    assert len(list((own_cache / "deltas").glob("diffusionclip-*.safetensors"))) == 1
    assert not list((own_cache / "tuning").glob("*"))

    def never(*args: Any, **options: Any) -> Delta:
        raise AssertionError("tuned again")

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionCLIP, "finetune", never)
        assert torch.equal(SMALL(model, IMAGE), first)
        for same in ({"degree": 0.5}, {"n_test": 5}, {"start": "noise"}):
            assert not torch.equal(dataclasses.replace(SMALL, **same)(model, IMAGE), first)
        for other in ({"learning_rate": 2e-3}, {"clip": "another"}, {"n_images": 1}, {"tune_seed": 1}):
            with pytest.raises(AssertionError, match="tuned again"):
                dataclasses.replace(SMALL, **other)(model, IMAGE)


def test_a_broken_file_in_the_cache_is_made_again_with_a_warning(own_cache: FilePath) -> None:
    model = tiny_text_model()
    first = SMALL(model, IMAGE)
    (file,) = (own_cache / "deltas").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.warns(UserWarning, match="a file of the cache is damaged and is made again"):
        assert torch.equal(SMALL(model, IMAGE), first)
    assert load_delta(file).method == "diffusionclip"
    assert cache_folder() == own_cache


def test_a_delta_of_another_model_is_refused(tmp_path: FilePath) -> None:
    model, other = tiny_text_model(), tiny_text_model()
    with torch.no_grad():
        next(other.network.parameters()).add_(0.01)  # type: ignore[union-attr]
    file = save_delta(tmp_path / "delta.safetensors", untrained(model))
    message = "the delta was tuned from weights .* and this model has .*; load the model it was tuned from"
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, delta=file)(other, IMAGE)
    delta = tuned(model, tmp_path / "run")
    with pytest.raises(UserError, match=message):
        with_delta(with_delta(model, delta), delta)


def test_a_delta_of_another_method_is_refused(tmp_path: FilePath) -> None:
    model = tiny_text_model()
    file = save_delta(tmp_path / "delta.safetensors", dataclasses.replace(untrained(model), method="asyrp"))
    with pytest.raises(UserError, match=r"was tuned by asyrp; give a delta of diffusionclip"):
        dataclasses.replace(SMALL, delta=file)(model, IMAGE)


def test_what_a_delta_was_tuned_with_holds_where_the_settings_leave_it_open(tmp_path: FilePath) -> None:
    model = tiny_text_model()
    file = save_delta(tmp_path / "delta.safetensors", untrained(model, t0=0.3, uses_prompt=True))
    open_ = dataclasses.replace(SMALL, delta=file, t0=None)
    said = dataclasses.replace(SMALL, delta=file, t0=0.3, uses_prompt=True)
    assert torch.equal(open_(model, IMAGE, prompt="a cat"), said(model, IMAGE, prompt="a cat"))
    unsaid = dataclasses.replace(said, uses_prompt=False)(model, IMAGE, prompt="a cat")
    assert not torch.equal(said(model, IMAGE, prompt="a cat"), unsaid)


def test_weights_one_and_zero_are_the_first_model_alone(tmp_path: FilePath) -> None:
    model = tiny_text_model()
    files = [
        save_delta(tmp_path / f"{target}.safetensors", tuned(model, tmp_path / target, target_text=target))
        for target in ("dog", "a red dog")
    ]
    alone = [dataclasses.replace(SMALL, delta=file)(model, IMAGE) for file in files]
    both = dataclasses.replace(SMALL, delta=files[0], more=(files[1],))
    for k, mix in enumerate((("0:1,0",), ("0:0,3",))):
        assert torch.equal(dataclasses.replace(both, mix=mix)(model, IMAGE), alone[k])
    late = ("0:0,1", "0.3:1,0")
    mixed = dataclasses.replace(both, mix=late)(model, IMAGE)
    assert torch.equal(dataclasses.replace(both, mix=late[::-1])(model, IMAGE), mixed)
    assert not any(torch.equal(mixed, one) for one in alone)
    equal = dataclasses.replace(both, mix=("0:0.5,0.5",))(model, IMAGE)
    assert torch.equal(both(model, IMAGE), equal)


def test_translation_and_stochastic_starts_noise_to_one_time_below_t0() -> None:
    model = tiny_text_model()
    plain = dataclasses.replace(SMALL, degree=0.0)
    down, denoise = plain.path(model.schedule, plain.n_test), model.denoiser(clip="none")
    noise = Noise(5, like=IMAGE)
    below = model.schedule.level(down.start.t - 1)
    x = IMAGE
    for _ in range(2):
        x = integrate(denoise, DDIM(), down, model.schedule.q_sample(x, below, noise()))
    assert torch.equal(dataclasses.replace(plain, start="noise", repeats=2)(model, IMAGE, seed=5), x)
    few = plain.path(model.schedule, plain.n_train)
    own = Noise(5, like=IMAGE).fork("translations")
    renewed = integrate(denoise, DDIM(), few, model.schedule.q_sample(IMAGE, below, own()))
    translated = dataclasses.replace(plain, translations=1)(model, IMAGE, seed=5)
    assert torch.equal(translated, plain(model, renewed.clamp(-1, 1)) if renewed.abs().max() <= 1 else translated)
    assert not torch.equal(translated, plain(model, IMAGE))


def test_training_images_may_come_from_a_folder_with_captions(tmp_path: FilePath) -> None:
    model = tiny_text_model()
    for k, image in enumerate(pictures(3, 8, seed=9)):
        save_image(image, tmp_path / "in" / f"{k}.png")
    method = dataclasses.replace(SMALL, images=tmp_path / "in")
    first = method(model, IMAGE)
    assert not torch.equal(first, SMALL(model, IMAGE))
    with pytest.raises(UserError, match="has no caption"):
        dataclasses.replace(method, uses_prompt=True)(model, IMAGE)
    for k in range(3):
        (tmp_path / "in" / f"{k}.txt").write_text("a cat")
    assert not torch.equal(dataclasses.replace(method, uses_prompt=True)(model, IMAGE), first)


def test_a_model_without_text_is_tuned_on_its_own_samples(tmp_path: FilePath) -> None:
    model = dataclasses.replace(tiny_text_model(), text=None, name="plain")
    network: Any = model.network

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.inner(x, t, context=torch.zeros(len(x), 6, 16))
            return out

    model = dataclasses.replace(model, network=Plain().requires_grad_(False))
    assert torch.isfinite(SMALL(model, IMAGE)).all()


def test_texts_are_asked_for_where_something_has_to_be_tuned() -> None:
    model = tiny_text_model()
    with pytest.raises(UserError, match="source_text is empty; say what the image shows"):
        dataclasses.replace(SMALL, source_text="")(model, IMAGE)
    with pytest.raises(UserError, match="source_text and target_text are both 'dog'"):
        dataclasses.replace(SMALL, source_text="dog")(model, IMAGE)


def test_a_formula_has_no_weights_to_tune() -> None:
    model = formula_model(lambda x, t: 0.6 * x, 8, NoiseSchedule.linear(100), name="formula")
    with pytest.raises(UserError, match="formula is a formula without weights that could be tuned"):
        SMALL(model, IMAGE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"degree": 1.5}, r"degree is 1.5; it must lie in \[0, 1\]"),
        ({"t0": 0.0}, r"t0 is 0.0; it must lie in \(0, 1\]"),
        ({"until": 0.6}, "until is 0.6; it must be at least 0 and below t0"),
        ({"n_inv": 1}, "n_inv is 1; it must be at least 2"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"start": "half"}, "start is 'half'; known are invert, noise"),
        ({"variant": "slow"}, "variant is 'slow'; known are quick, efficient"),
        ({"tunes": "some"}, "tunes is 'some'; known are all and attention"),
        ({"views": 0}, "views is 0; it must be at least 1"),
        ({"templates": "all"}, "templates is 'all'; known are auto and none"),
        ({"repeats": 2}, "repeats is 2, but an inverted image gives the same each time; use start noise"),
        ({"translations": -1}, "translations is -1; it must be at least 0"),
        ({"more": (FilePath("b"),)}, "more deltas are given but no first one"),
        ({"mix": ("0:1,0",)}, "mix has '0:1,0'; it needs 1 weights, one for each delta"),
        ({"mix": ("half",)}, "mix has 'half'; write the share of t from which it holds and weights"),
        ({"mix": ("0:-1",)}, "weights are at least 0, and not all 0"),
        ({"mix": ("0.3:1",)}, "mix begins at 0.3; say also what holds from 0 on"),
    ],
)
def test_a_bad_setting_is_an_error_when_it_is_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_more_levels_than_there_are_times_are_an_error() -> None:
    with pytest.raises(UserError, match="60 levels do not fit below t0 = 0.5, which is time 50"):
        dataclasses.replace(SMALL, n_test=60)(tiny_text_model(), IMAGE)


def test_tuning_brings_the_edit_into_the_direction_of_the_texts(tmp_path: FilePath) -> None:
    model = tiny_text_model()
    method = dataclasses.replace(SMALL, epochs=20, rate_gamma=1.0, l1_weight=0.0, learning_rate=2e-3)
    method.finetune(model, folder=tmp_path, progress=False)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    cosine = rows[0].split(",").index("cosine")
    first, last = (float(rows[k].split(",")[cosine]) for k in (1, -1))
    assert last > first + 0.3 and math.isfinite(last)

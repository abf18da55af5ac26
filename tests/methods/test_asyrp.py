"""Asyrp: no shift is plain DDIM, shifts are scaled and add up, tuning resumes exactly, phases follow their rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from torch import Tensor

from steerdiff import UserError
from steerdiff.guidance import Model
from steerdiff.guidance.phases import PhaseCurves, phase_curves
from steerdiff.methods.asyrp import Asyrp
from steerdiff.methods.asyrp_tuning import AsyrpTuning
from steerdiff.methods.boosted_ddim import BoostedDDIM
from steerdiff.methods.edit_tuning import training_images
from steerdiff.methods.finetuned import digest, identity
from steerdiff.models.delta import Delta, load_delta, make_delta, save_delta
from steerdiff.models.delta_h import DeltaHConfig, build_delta_h, delta_h_config
from steerdiff.samplers import DDIM, Move, Noise, NoiseSchedule, Path, integrate

from ..guidance.toys import Recording, formula_model, gaussian_eps, pictures, tiny_text_model
from .tiny_clips import load_tiny

SMALL = Asyrp(
    source_text="cat",
    target_text="dog",
    n_inv=8,
    n_test=8,
    n_train=8,
    n_images=3,
    epochs=1,
    image_steps=2,
    t_edit=40.0,
    t_boost=0.0,
    gain=3.0,
)
IMAGE = pictures(2, 8) * 0.9


class Squares:
    """A distance that grows with every difference."""

    name, weights_hash = "squares", None

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().flatten(1).mean(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> FilePath:
    monkeypatch.setenv("STEERDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("steerdiff.methods.asyrp.load_cached", load_tiny)
    monkeypatch.setattr("steerdiff.methods.asyrp.perceptual", lambda *_: Squares())
    monkeypatch.setattr("steerdiff.methods.edit_tuning.templates_for", lambda *_: ("a {}", "a red {}"))
    return tmp_path / "cache"


def untrained(model: Model, seed: int = 0, zero: bool = False, **settings: Any) -> Delta:
    """A delta whose shift is as it was at its start."""
    config = delta_h_config(model.network, gain=3.0)
    shift = build_delta_h(config, seed=seed, zero=zero)
    facts = {"cosine": 0.9, "t_edit": 40.0, "t_boost": 0.0, "n_train": 8, "uses_prompt": False}
    known = {**facts, **settings, "delta_h": config.to_dict()}
    return make_delta({}, shift.state_dict(), base=identity(model), method="asyrp", settings=known)


def stored(folder: FilePath, delta: Delta, name: str = "delta") -> FilePath:
    return save_delta(folder / f"{name}.safetensors", delta)


def edited(delta: FilePath, **changes: Any) -> Tensor:
    return dataclasses.replace(SMALL, delta=delta, **changes)(tiny_text_model(), IMAGE)


def round_trip(model: Model, image: Tensor, n: int = 8, t_boost: float = 0.0) -> Tensor:
    """Inversion, DDIM, and DDPM's noise (eta = 1) in the moves from below ``t_boost``, by hand."""
    path, denoise = Path.respaced(model.schedule, n), model.denoiser(clip="none")
    x = integrate(denoise, DDIM(), path.inverted(), image)
    noise = Noise(0, like=image)
    for move in path:
        x = DDIM(eta=float(move.here.t < t_boost)).step(denoise, x, move, None, noise).x
    return x


def round_trip_of(model: Model, n_inv: int, n_test: int) -> Tensor:
    return dataclasses.replace(SMALL, degree=0.0, n_inv=n_inv, n_test=n_test)(model, IMAGE)


@pytest.mark.parametrize("t_boost", [0.0, 30.0])
def test_no_shift_is_inversion_and_ddim_bit_for_bit_with_fresh_noise_in_the_tail(
    tmp_path: FilePath, t_boost: float
) -> None:
    model = tiny_text_model()
    expected = round_trip(model, IMAGE, t_boost=t_boost)
    zero, random = stored(tmp_path, untrained(model, zero=True), "zero"), stored(tmp_path, untrained(model))
    assert torch.equal(dataclasses.replace(SMALL, degree=0.0, t_boost=t_boost)(model, IMAGE), expected)
    assert torch.equal(edited(random, degree=0.0, t_boost=t_boost), expected)
    assert torch.equal(edited(zero, t_boost=t_boost), expected)
    assert not torch.equal(edited(random, t_boost=t_boost), expected)
    assert torch.equal(expected, round_trip(model, IMAGE)) == (t_boost == 0)


def test_the_edit_ends_at_t_edit(tmp_path: FilePath) -> None:
    model = tiny_text_model()
    delta, plain = stored(tmp_path, untrained(model)), round_trip(model, IMAGE)
    assert torch.equal(edited(delta, t_edit=100.0), plain)
    early, late = edited(delta, t_edit=80.0), edited(delta, t_edit=0.0)
    assert not torch.equal(early, plain) and not torch.equal(late, plain) and not torch.equal(early, late)


def test_the_way_begins_at_t_begin_in_any_spacing(tmp_path: FilePath) -> None:
    model = tiny_text_model()
    even = dataclasses.replace(SMALL, t_begin=50.0).path(model, 11)
    assert [move.here.t for move in even] == [50, 40, 30, 20, 10, 0]
    karras = dataclasses.replace(SMALL, t_begin=50.0, spacing="karras").path(model, 11)
    assert len(karras) == 11 and karras.start.t == pytest.approx(50, abs=1e-3) and karras.end.clean
    assert dataclasses.replace(SMALL, spacing="karras").path(model, 11).start.t == 99
    with pytest.raises(UserError, match="of 8 levels fewer than 2 are below t_begin = 3.0; use more"):
        dataclasses.replace(SMALL, t_begin=3.0)(model, IMAGE)
    delta = untrained(model, spacing="karras", t_begin=60.0)
    settled = SMALL.settled([delta])
    assert settled.spacing == "karras" and settled.t_begin == 60


def test_the_shift_is_scaled_so_that_more_moves_edit_as_far(tmp_path: FilePath) -> None:
    model = tiny_text_model()
    delta = stored(tmp_path, untrained(model))
    few, many, too_strong = (
        edited(delta, n_inv=40, n_test=n, degree=k) - round_trip_of(model, 40, n)
        for n, k in ((8, 0.1), (40, 0.1), (40, 1.0))
    )
    assert 0.5 < many.norm() / few.norm() < 2 and too_strong.norm() > 3 * many.norm()


def test_the_degree_is_linear_where_it_is_small_and_its_sign_turns_the_edit_round(tmp_path: FilePath) -> None:
    model = tiny_text_model()
    delta, plain = stored(tmp_path, untrained(model)), round_trip(model, IMAGE)
    ways = {k: edited(delta, degree=k) - plain for k in (0.001, 0.002, -0.001)}
    near = 0.05 * float(ways[0.001].abs().max())
    torch.testing.assert_close(ways[0.002], 2 * ways[0.001], rtol=0.05, atol=2 * near)
    torch.testing.assert_close(ways[-0.001], -ways[0.001], rtol=0.05, atol=near)
    sizes = [float((edited(delta, degree=k) - plain).norm()) for k in (0.1, 0.5, 1.0, 2.0)]
    assert sizes == sorted(sizes)


def test_several_attributes_add_up_in_any_order(tmp_path: FilePath) -> None:
    model = tiny_text_model()
    files = [stored(tmp_path, untrained(model, k, cosine=0.5 + k / 10, t_edit=30.0 + k), str(k)) for k in range(3)]
    degrees = (1.0, -0.5, 2.0)
    one = edited(files[0], more=tuple(files[1:]), degree=degrees[0], degrees=degrees[1:], t_edit=None)
    turned = edited(files[2], more=(files[0], files[1]), degree=2.0, degrees=(1.0, -0.5), t_edit=None)
    torch.testing.assert_close(one, turned, rtol=0, atol=2e-5)
    assert not torch.equal(one, edited(files[0], more=tuple(files[1:]), t_edit=None))
    settled = dataclasses.replace(SMALL, t_edit=None).settled([load_delta(file) for file in files])
    assert settled.t_edit == 32.0  # of the attribute whose texts are most alike
    twice = edited(files[0], more=(files[0],))  # k / sqrt(2) twice
    torch.testing.assert_close(twice, edited(files[0], degree=2**0.5), rtol=0, atol=2e-5)


def test_the_symmetric_process_hardly_edits(tmp_path: FilePath) -> None:
    model = tiny_text_model()
    delta, plain = stored(tmp_path, untrained(model)), round_trip(model, IMAGE, 40)
    asymmetric, symmetric = (edited(delta, n_inv=40, n_test=40, symmetric=flag) for flag in (False, True))
    assert (symmetric - plain).norm() < 0.5 * (asymmetric - plain).norm()


def test_a_delta_of_another_model_or_method_is_refused(tmp_path: FilePath) -> None:
    model = tiny_text_model()
    delta = untrained(model)
    other = stored(tmp_path, dataclasses.replace(delta, base="0" * 64), "other")
    with pytest.raises(UserError, match="the delta was tuned from weights 000000000000 and this model has"):
        edited(other)
    foreign = stored(tmp_path, dataclasses.replace(delta, method="diffusionclip"), "foreign")
    with pytest.raises(UserError, match="was tuned by diffusionclip; give a delta of asyrp"):
        edited(foreign)
    wide = {**delta.settings, "delta_h": DeltaHConfig(channels=64, time_channels=128).to_dict()}
    with pytest.raises(UserError, match="the delta shifts 64 channels and the model has 32; tune again"):
        edited(stored(tmp_path, dataclasses.replace(delta, settings=wide), "wide"))
    with pytest.raises(UserError, match="'plain' is a formula|without a bottleneck|is a formula without weights"):
        SMALL(formula_model(lambda x, t: x, 8, NoiseSchedule.linear(100), name="plain"), IMAGE)


@pytest.mark.parametrize("form", ["ddpm", "adm", "direct"])
def test_tuning_trains_the_shift_alone(form: Any, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_text_model()
    network: Any = model.network
    before = digest(*network.state_dict().values())
    tuned: list[AsyrpTuning] = []
    real = AsyrpTuning.__call__

    def watched(self: AsyrpTuning, batch: Any) -> Any:
        tuned.append(self)
        return real(self, batch)

    monkeypatch.setattr(AsyrpTuning, "__call__", watched)
    delta = dataclasses.replace(SMALL, form=form).finetune(model, folder=tmp_path, progress=False)
    assert digest(*network.state_dict().values()) == before
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())
    start = build_delta_h(DeltaHConfig.from_dict(delta.settings["delta_h"])).state_dict()
    moved = {name for name, value in delta.added().items() if not torch.allclose(value, start[name], atol=1e-6)}
    assert moved == set(start)
    moves = [move for move in Path.respaced(model.schedule, 8) if move.here.t >= 40]
    assert len(tuned) == 3 * len(moves)  # an update at every move of every image
    assert tuned[0].path.start.t == 99 and tuned[0].path[-1].here.t >= 40 > tuned[0].path.end.t


def test_runs_with_other_boosting_share_one_tuning(own_cache: FilePath) -> None:
    ruled = {"t_edit": None, "t_boost": None, "threshold_edit": 0.05, "threshold_boost": 0.2, "curve_steps": 20}
    model, by_rule = tiny_text_model(), dataclasses.replace(SMALL, **ruled)
    found = by_rule.deltas(model)[0]
    again = dataclasses.replace(by_rule, t_boost=0.0).deltas(model)[0]
    assert len(list((own_cache / "deltas").glob("*.safetensors"))) == 1
    assert again.settings["t_boost"] == found.settings["t_boost"] > 0


def test_each_trajectory_is_the_asymmetric_one_of_its_image(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_text_model()
    states: list[tuple[Tensor, Tensor]] = []
    real = AsyrpTuning.__call__

    def watched(self: AsyrpTuning, batch: Any) -> Any:
        result = real(self, batch)
        states.append((self.edited.clone(), self.original.clone()))
        assert not self.edited.requires_grad
        return result

    monkeypatch.setattr(AsyrpTuning, "__call__", watched)
    still = dataclasses.replace(SMALL, learning_rate=1e-30, batch_size=3)
    delta = still.finetune(model, folder=tmp_path / "run", progress=False)
    images, _ = training_images(still, model)
    path = Path.respaced(model.schedule, 8)
    latent = integrate(model.denoiser(clip="none"), DDIM(), path.inverted(), images)
    part = path[: len(states)]
    plain = integrate(model.denoiser(clip="none"), DDIM(), part, latent)
    torch.testing.assert_close(states[-1][1], plain, rtol=0, atol=1e-5)
    shifted = dataclasses.replace(still, delta=stored(tmp_path, delta))
    denoise = shifted.settled([delta])._edited(model, [delta], model.denoiser(clip="none"), None)
    expected = integrate(denoise, DDIM(), part, latent)
    torch.testing.assert_close(states[-1][0], expected, rtol=0, atol=2e-3)  # the delta is stored in float16
    assert (expected - plain).abs().max() > 0.05


def test_tuning_lowers_its_loss(tmp_path: FilePath) -> None:
    longer = dataclasses.replace(SMALL, epochs=12, rate_every=12, batch_size=3, learning_rate=0.1)
    longer.finetune(tiny_text_model(), folder=tmp_path, progress=False)
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    losses = [float(row[rows[0].index("loss")]) for row in rows[1:]]
    assert losses[-1] < 0.9 * losses[0]


class Killed(Exception):
    """Stands for the end of a process."""


def test_a_killed_and_resumed_tuning_ends_with_the_same_delta(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_text_model()
    whole = SMALL.finetune(model, folder=tmp_path / "whole", progress=False)
    run, real, calls = Asyrp._run, AsyrpTuning.__call__, [0]

    def often(self: Asyrp, *args: Any) -> Any:
        return dataclasses.replace(run(self, *args), checkpoint_every=2)  # in the middle of a trajectory

    def dies(self: AsyrpTuning, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] > 3:
            raise Killed
        return real(self, batch)

    monkeypatch.setattr(Asyrp, "_run", often)
    with monkeypatch.context() as patch:
        patch.setattr(AsyrpTuning, "__call__", dies)
        with pytest.raises(Killed):
            SMALL.finetune(model, folder=tmp_path / "killed", progress=False)
    again = SMALL.finetune(model, folder=tmp_path / "killed", resume=True, progress=False)
    assert whole.forms == again.forms and whole.scales == again.scales and len(whole.tensors) == 8
    assert all(torch.equal(whole.tensors[name], again.tensors[name]) for name in whole.tensors)


def test_without_a_delta_the_edit_is_tuned_once_and_kept(own_cache: FilePath) -> None:
    calls = Recording(tiny_text_model().network)
    first = SMALL(tiny_text_model(), IMAGE)
    assert len(list((own_cache / "deltas").glob("asyrp-*.safetensors"))) == 1
    model = tiny_text_model()
    model.network.register_forward_pre_hook(lambda *_: calls.rows.append(1))  # type: ignore[union-attr]
    assert torch.equal(SMALL(model, IMAGE), first)
    assert len(calls.rows) == 7 + 8  # up and down, and nothing else


CURVES = PhaseCurves(
    times=(0.0, 10.0, 20.0, 30.0), predicted=(0.0, 0.1, 0.3, 0.6), noisy=(0.0, 0.5, 1.2, 1.3), distance="d", images=1
)


def test_the_phases_are_the_first_times_beyond_their_thresholds() -> None:
    assert CURVES.t_edit(0.3) == 20 and CURVES.t_edit(0.33) == 30 and CURVES.t_edit(0.33, 0.9) == 20
    assert CURVES.t_boost(1.2) == 20
    by_cosine = [CURVES.t_edit(0.6, cosine) for cosine in (0.1, 0.3, 0.5, 0.8, 1.0)]
    by_threshold = [CURVES.t_edit(threshold) for threshold in (0.05, 0.2, 0.4, 0.6)]
    assert by_cosine == sorted(by_cosine) and by_threshold == sorted(by_threshold) and by_cosine[0] < by_cosine[-1]
    with pytest.raises(UserError, match=r"the d of P_t from the image reaches 0.6 and not 0.7; lower threshold_edit"):
        CURVES.t_edit(0.7)
    with pytest.raises(UserError, match=r"the d of x_t from the image reaches 1.3 and not 2; lower threshold_boost"):
        CURVES.t_boost(2)


def test_the_curves_of_an_exact_model_rise_and_do_not_depend_on_the_batch() -> None:
    schedule = NoiseSchedule.linear(1000)
    model = formula_model(gaussian_eps(schedule, 0.1, 0.4), 8, schedule)
    images = pictures(3, 8) * 0.9
    curves = phase_curves(model, images, Squares(), steps=20)
    assert curves.times[0] == 0 and curves.times[-1] == 999 and curves.images == 3 and curves.distance == "squares"
    for curve in (curves.predicted, curves.noisy):
        assert len(curve) == 20 and list(curve) == sorted(curve) and curve[-1] > curve[0]
    assert curves.noisy[0] == 0
    parts = phase_curves(model, images, Squares(), steps=20, batch=2)
    assert parts.predicted == pytest.approx(curves.predicted, rel=1e-5)
    top = integrate(model.denoiser(clip="none"), DDIM(), Path.respaced(schedule, 20).inverted(), images)
    last = model.denoiser(clip="none")(top, schedule.level(999)).x0
    assert curves.predicted[-1] == pytest.approx(float(Squares()(last, images).mean()), rel=1e-4)
    assert curves.noisy[-1] == pytest.approx(float(Squares()(top, images).mean()), rel=1e-4)


def test_open_phases_are_found_by_the_rule_and_kept_in_the_delta_and_curves_in_the_cache(
    tmp_path: FilePath, own_cache: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Asyrp, "cosine_of_texts", lambda *_: 0.8)
    open_phases = dataclasses.replace(
        SMALL, t_edit=None, t_boost=None, curve_steps=10, threshold_edit=0.2, threshold_boost=0.1, curve_images=2
    )
    model = tiny_text_model()
    delta = open_phases.finetune(model, folder=tmp_path / "run", progress=False)
    curves = open_phases.curves(model)
    assert curves.images == 2
    assert delta.settings["t_edit"] == curves.t_edit(0.2, 0.8) and delta.settings["t_boost"] == curves.t_boost(0.1)
    assert delta.settings["cosine"] == 0.8
    assert len(list((own_cache / "phase-curves").glob("*.safetensors"))) == 1
    settled = dataclasses.replace(open_phases, t_boost=5.0).settled([delta])
    assert settled.t_edit == delta.settings["t_edit"] and settled.t_boost == 5.0


def test_texts_that_point_away_from_each_other_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Opposed:
        def text_features(self, texts: list[str]) -> Tensor:
            return torch.tensor([[1.0, 0.0] if "cat" in text else [-1.0, 0.0] for text in texts])

    clip: Any = Opposed()
    with pytest.raises(UserError, match="'cat' and 'dog' have the cosine -1.00 in this CLIP.*cosine=templates"):
        SMALL.cosine_of_texts(clip)


def test_boosting_is_ddim_with_eta_one_below_its_time() -> None:
    model, noise = tiny_text_model(), Noise(3, like=IMAGE)
    denoise = model.denoiser(clip="none")
    for here, eta in ((50, 0.0), (30, 0.0), (29, 1.0)):
        move = Move(here=model.schedule.level(here), there=model.schedule.level(here - 5))
        ours = BoostedDDIM(t_boost=30.0).step(denoise, IMAGE, move, None, Noise(3, like=IMAGE)).x
        assert torch.equal(ours, DDIM(eta=eta).step(denoise, IMAGE, move, None, Noise(3, like=IMAGE)).x)
    assert noise.seeds == (3, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Asyrp(source="face"), "source is 'face'; known are predicted, image"),  # type: ignore[arg-type]
        (lambda: Asyrp(source="image", views=2), "views is 2; views of P_t are compared with views of P_t"),
        (lambda: Asyrp(n_test=1), "n_test is 1; it must be at least 2"),
        (lambda: Asyrp(degree=float("nan")), "degree is nan; it must be a finite number"),
        (lambda: Asyrp(more=(FilePath("a"),)), "more deltas are given but no first one; give delta too"),
        (
            lambda: Asyrp(delta=FilePath("a"), more=(FilePath("b"),), degrees=(1.0, 2.0)),
            "2 degrees are given for 1 further deltas; give one for each",
        ),
        (lambda: Asyrp(t_boost=-1.0), "t_boost is -1.0; it must be at least 0, in trained times"),
        (lambda: Asyrp(n_test=8, n_inv=8)(tiny_text_model(), IMAGE), "source_text is empty; say what the image shows"),
        (
            lambda: dataclasses.replace(SMALL, t_edit=99.5)(tiny_text_model(), IMAGE),
            "no move of tuning begins above t_edit = 99.5; lower it",
        ),
    ],
)
def test_wrong_settings_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()

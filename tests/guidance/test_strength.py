"""Guidance as data: where it acts, how strongly, on which images; and what is refused before anything is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from steerdiff import UserError
from steerdiff.guidance import ClassifierFree, Condition, Guidance, Model, Weighted, load, scale_of, w_of
from steerdiff.guidance.scales import scale_at
from steerdiff.guidance.strength import LevelGuided
from steerdiff.samplers import Level, NetworkDenoiser, NoiseSchedule
from steerdiff.samplers.rows import RowDenoiser

from .. import published_files as files
from .test_latent_model import latent_model
from .toys import Recording, pictures, tiny_text_model


def x0(model: Model, t: float, scale: Any, x: Tensor | None = None) -> Tensor:
    x = pictures(2, 8) if x is None else x
    return model.denoiser("a cat", scale=scale)(x, model.schedule.level(t)).x0


# conventions


def test_the_two_conventions_mean_the_same_formula() -> None:
    cond, uncond = torch.tensor(0.7), torch.tensor(-0.2)
    for w in (-1.0, 0.0, 0.3, 6.5):
        paper = (1 + w) * cond - w * uncond
        torch.testing.assert_close(uncond + scale_of(w) * (cond - uncond), paper)
        assert w_of(scale_of(w)) == pytest.approx(w)
    assert (scale_of(0.0), scale_of(6.5), w_of(1.0)) == (1.0, 7.5, 0.0)  # plainly conditional; Stable Diffusion's


def test_a_plain_guidance_is_its_strength_bit_for_bit() -> None:
    model = tiny_text_model()
    for scale in (0.0, 1.0, 3.0, None):
        plain, data = model.denoiser("a cat", scale=scale), model.denoiser("a cat", scale=Guidance(scale=scale))
        assert isinstance(data, NetworkDenoiser)  # nothing is wrapped
        x, level = pictures(2, 8), model.schedule.level(50)
        assert torch.equal(plain(x, level).x0, data(x, level).x0)
    assert torch.equal(
        model.sample("a cat", steps=3, guidance=2.0), model.sample("a cat", steps=3, guidance=Guidance(scale=2.0))
    )


# over the levels


def test_outside_the_interval_only_the_conditional_branch_runs() -> None:
    network = Recording(tiny_text_model().network)
    model = tiny_text_model(network=network)  # T = 100
    guidance = Guidance(scale=4.0, interval=(33 / 99, 66 / 99))
    full, none = {t: x0(model, t, 4.0) for t in (33, 66)}, {t: x0(model, t, 1.0) for t in (32, 67, 99, 0)}
    network.rows.clear()
    for t, expected in full.items():
        assert torch.equal(x0(model, t, guidance), expected), t
    for t, expected in none.items():
        assert torch.equal(x0(model, t, guidance), expected), t
    assert network.rows == [4, 4, 2, 2, 2, 2]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigma", "early", "late"])
def test_a_schedule_weakens_what_departs_from_the_conditional_output(schedule: Any) -> None:
    model = tiny_text_model()
    also = (Weighted("a dog", -1.5),)
    for t in (10.0, 40.0, 95.0):
        factor = scale_at(schedule, model.schedule.level(t), 100)
        weakened = Guidance(scale=1 + factor * 3, also=(Weighted("a dog", -1.5 * factor),))
        scheduled = x0(model, t, Guidance(scale=4.0, schedule=schedule, also=also))
        torch.testing.assert_close(scheduled, x0(model, t, weakened), rtol=0, atol=1e-6)


def test_a_strength_may_be_any_function_of_the_level() -> None:
    model = tiny_text_model()
    asked: list[float] = []

    def strength(level: Level) -> float:
        asked.append(level.t)
        return 5.0 if level.sigma > 1 else 0.0

    for t in (5, 80):
        scale = 5.0 if model.schedule.level(t).sigma > 1 else 0.0
        assert torch.equal(x0(model, t, strength), x0(model, t, scale))
    assert asked == [5, 80]
    drawn = model.sample("a cat", steps=4, guidance=strength)
    assert not torch.equal(drawn, model.sample("a cat", steps=4, guidance=5.0))
    with pytest.raises(UserError, match=r"guidance is inf at t = 5; it must be a finite number"):
        x0(model, 5, lambda level: float("inf"))


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(scale=lambda level: 1 + level.t / 20),
        Guidance(scale=torch.tensor([2.0, 0.5, 3.0, 4.0]), interval=(0.2, 0.7), also=(Weighted("a dog", -1.0),)),
        Guidance(scale=3.0, schedule="linear", rescale=0.5, also=(Weighted("a dog", torch.tensor([1.0, 0, -1, 2])),)),
    ],
)
def test_images_at_other_levels_are_guided_as_if_alone(guidance: Guidance) -> None:
    model = tiny_text_model()
    x, levels = pictures(4, 8), [model.schedule.level(t) for t in (5, 40, 40, 90)]
    denoise = model.denoiser("a cat", scale=guidance)
    assert isinstance(denoise, RowDenoiser) and isinstance(denoise, LevelGuided)
    together = denoise.rows(x, levels)
    bound = guidance.bound(model)
    for i, level in enumerate(levels):
        alone = model.denoiser("a cat", scale=bound[i : i + 1])(x[i : i + 1], level)
        torch.testing.assert_close(together.x0[i : i + 1], alone.x0, rtol=0, atol=2e-5)
    same = [levels[1]] * 4
    torch.testing.assert_close(denoise.rows(x, same).x0, denoise(x, levels[1]).x0, rtol=0, atol=2e-5)


def test_nothing_in_a_step_waits_for_the_device() -> None:
    """On the meta device every read of a value would be an error."""

    def network(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return x + context.sum((1, 2)).reshape(-1, 1, 1, 1)

    def told(value: float) -> Condition:
        return Condition(context=torch.full((1, 1, 1), value, device="meta"))

    scale, weight = torch.tensor([2.0, 3.0]), torch.tensor([1.0, -1.0])
    guide = ClassifierFree(
        network=network, cond=told(0.4), uncond=told(0.0), scale=scale, also=((told(0.1), weight),), rescale=0.7
    )
    schedule = NoiseSchedule.cosine(100)
    for guidance in (
        Guidance(scale=scale, interval=(0.1, 0.5), schedule="linear"),
        Guidance(scale=lambda level: level.t / 10),
    ):
        denoise = LevelGuided(denoise=NetworkDenoiser(network=guide), guidance=guidance, T=100)
        x = torch.zeros(2, 3, 4, 4, device="meta")
        for t in (5, 30, 90):
            assert denoise(x, schedule.level(t)).x0.shape == x.shape
        assert denoise.rows(x, [schedule.level(30), schedule.level(90)]).x0.device.type == "meta"


# sampling


def test_each_image_of_a_run_has_the_strength_and_prompts_that_it_has_alone() -> None:
    model = tiny_text_model()
    scales, weights = [1.0, 2.0, 5.0, 0.0], torch.tensor([0.0, 1.0, -1.0, 2.0])
    also = (Weighted(["a red cat", "a red dog"], weights),)
    guidance = Guidance(scale=torch.tensor(scales), also=also, interval=(0.1, 0.9))
    options = {"steps": 3, "clip": "none", "spacing": "linspace"}
    together = model.sample(["a cat", "a dog"], n=2, guidance=guidance, **options)  # type: ignore[arg-type]
    in_parts = model.sample(["a cat", "a dog"], n=2, guidance=guidance, batch=3, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(in_parts, together, rtol=0, atol=1e-5)
    for k, (prompt, further) in enumerate([("a cat", "a red cat")] * 2 + [("a dog", "a red dog")] * 2):
        own = Guidance(scale=scales[k], also=(Weighted(further, float(weights[k])),), interval=(0.1, 0.9))
        alone = model.sample(prompt, guidance=own, seed=k, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=1e-5)
    listed = model.sample(["a cat", "a dog"], n=2, guidance=scales, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(listed[2:3], model.sample("a dog", guidance=5.0, seed=2, **options))  # type: ignore[arg-type]


def test_every_field_of_guidance_changes_the_image() -> None:
    base = Guidance(scale=6.0)
    others: dict[str, Any] = {
        "scale": 5.0,
        "also": (Weighted("a dog", 2.0),),
        "rescale": 0.7,
        "interval": (0.5, 1.0),
        "schedule": "linear",
    }
    assert set(others) == {field.name for field in dataclasses.fields(Guidance)} - {"split"}  # which only saves memory
    model = tiny_text_model()
    plain = model.sample("a cat", steps=4, guidance=base)
    for name, value in others.items():
        changed = model.sample("a cat", steps=4, guidance=dataclasses.replace(base, **{name: value}))
        assert not torch.equal(changed, plain), name
    network = Recording(model.network)
    split = tiny_text_model(network=network).sample("a cat", steps=4, guidance=dataclasses.replace(base, split=True))
    torch.testing.assert_close(split, plain, rtol=0, atol=5e-5)  # float32 sums in another order, times a guidance of 6
    assert network.rows == [1] * 8


def test_further_prompts_act_without_a_prompt_and_beside_a_negative_one() -> None:
    network = Recording(tiny_text_model().network)
    model = tiny_text_model(network=network)
    guidance = Guidance(scale=3.0, also=(Weighted("a dog", 3.0),))
    alone = model.sample(n=2, steps=2, guidance=guidance)
    assert network.rows == [4, 4]  # the empty prompt and the further one
    torch.testing.assert_close(alone, model.sample("a dog", n=2, steps=2, guidance=3.0), rtol=0, atol=1e-5)
    network.rows.clear()
    model.sample("a cat", n=2, steps=2, negative="a red dog", guidance=guidance)
    assert network.rows == [6, 6]


def test_labels_are_summed_through_conditions() -> None:
    def labelled(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return 0.8 * x + 0.1 * y.reshape(-1, 1, 1, 1)

    model = latent_model(network=labelled, num_classes=3, null_class=3)
    x = torch.zeros(1, 3, 4, 4)
    guidance = Guidance(scale=2.0, also=(Weighted(model.condition(y=2), -1.0),))
    eps = model.denoiser(y=0, scale=guidance)(x, model.schedule.level(500)).eps
    torch.testing.assert_close(eps, torch.full_like(x, 0.3 + 2 * (0.0 - 0.3) - (0.2 - 0.3)))


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("sd")
    files.write_folder(folder / "sd", files.tiny_sd(2, predicts_v=True))
    return load(folder / "sd")


def test_guidance_steers_a_tiny_stable_diffusion(stable_diffusion: Model) -> None:
    sd = stable_diffusion
    everything = Guidance(scale=7.5, also=(Weighted("a red, red dog", -3.0),), rescale=0.7, interval=(0.4, 1.0))
    drawn = sd.sample("a cat", steps=2, guidance=everything)
    assert drawn.shape == (1, 3, 32, 32)
    x, level = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), sd.schedule.level(500)

    def predicted(**fields: Any) -> Tensor:
        return sd.denoiser("a cat", scale=Guidance(scale=7.5, **fields))(x, level).x0

    plain = predicted()
    assert not torch.equal(predicted(also=everything.also), plain)
    assert not torch.equal(predicted(rescale=0.7), plain)
    assert torch.equal(predicted(interval=(0.0, 0.4)), sd.denoiser("a cat", scale=1.0)(x, level).x0)
    torch.testing.assert_close(predicted(split=True), plain, rtol=0, atol=1e-4)  # float32 sums in another order


# thresholding


def test_dynamic_thresholding_and_its_quantile_change_pixels() -> None:
    model = tiny_text_model()
    images = [
        model.sample("a cat", steps=3, guidance=30.0, **options)  # type: ignore[arg-type]
        for options in ({}, {"clip": "dynamic"}, {"clip": "dynamic", "quantile": 0.8}, {"clip": "none"})
    ]
    for i, one in enumerate(images):
        assert not any(torch.equal(one, other) for other in images[:i])
    published = model.sample("a cat", steps=3, guidance=30.0, clip="dynamic", quantile=0.995)
    assert torch.equal(published, images[1])


@pytest.mark.parametrize("call", [Model.sample, Model.denoiser])
def test_latents_are_not_thresholded_dynamically(call: Callable[..., Any]) -> None:
    with pytest.raises(
        UserError, match="clip is 'dynamic', which is for pixels, and toy draws latents; use clip='none'"
    ):
        call(latent_model(), clip="dynamic")


# errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Guidance(scale=float("nan")), "guidance is nan; it must be a finite number"),
        (lambda: Guidance(scale=torch.zeros(2, 2)), "guidance is tensor"),
        (lambda: Guidance.of([]), r"guidance is tensor\(\[\]"),
        (lambda: Guidance(also=(Weighted("a", float("inf")),)), "a prompt's weight is inf"),
        (lambda: Guidance(rescale=-0.1), r"rescale is -0.1; it must lie in \[0, 1\]"),
        (lambda: Guidance(interval=(0.6, 0.5)), "the interval of guidance is 0.6 to 0.5; give two shares"),
        (lambda: Guidance(interval=(0.0, 1.5)), "the interval of guidance is 0 to 1.5"),
        (lambda: Guidance(schedule="quadratic"), "schedule is 'quadratic'; known are constant, linear"),  # type: ignore[arg-type]
    ],
)
def test_what_guidance_cannot_be_is_named(make: Callable[[], Guidance], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance": [1.0, 2.0, 3.0], "n": 2}, "3 guidance scales or weights were given for 2 images"),
        (
            {"guidance": Guidance(also=(Weighted("a dog", torch.ones(3)),)), "n": 2},
            "3 guidance scales or weights were given for 2 images",
        ),
        ({"guidance": Guidance(also=(Weighted("a dgo", 1.0),))}, "does not know: 'dgo'"),
        (
            {"guidance": Guidance(interval=(0.501, 0.502)), "spacing": "linspace"},
            "nothing is guided: none of the 4 times, 0 to 99 of 100, lies in the interval 0.501 to 0.502",
        ),
        ({"guidance": lambda level: float("nan")}, "guidance is nan at t ="),
        ({"quantile": 0.9}, "a quantile belongs to clip='dynamic', and clip is 'clip'"),
        ({"quantile": 1.5, "clip": "dynamic"}, r"quantile is 1.5; it must lie in \(0, 1\]"),
    ],
)
def test_what_does_not_fit_a_run_is_an_error_before_the_network_is_called(
    arguments: dict[str, Any], message: str
) -> None:
    network = Recording(tiny_text_model().network)
    with pytest.raises(UserError, match=message):
        tiny_text_model(network=network).sample("a cat", **{"steps": 4, **arguments})
    assert network.rows == []

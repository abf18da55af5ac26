"""Classifier guidance as a method: its two forms, zero scale, names, images, and the classes of results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steerdiff import UserError
from steerdiff.guidance import ClassifierGuidance, Model
from steerdiff.guidance.noisy_classifier import NoisyClassifier
from steerdiff.methods import ClassifierGuided
from steerdiff.methods.classifier_guided import PRESETS
from steerdiff.samplers import DDIM, DDPM, Noise, NoiseSchedule, Path, integrate

from ..guidance.test_noisy_classifier import CLASSIFIER, tiny_classifier
from ..guidance.toys import Recording, formula_model, gaussian_eps, pictures, tiny_text_model

SIZE = 8
LOADED: Any = CLASSIFIER


def method(**fields: Any) -> ClassifierGuided:
    return ClassifierGuided(**{"classifier": LOADED, "steps": 6, "scale": 30.0, **fields})


@pytest.mark.parametrize("solver", [DDPM(), DDIM(), DDIM(eta=1.0)], ids=repr)
def test_scale_zero_is_the_unguided_sample_bit_for_bit(solver: DDPM | DDIM) -> None:
    model = tiny_text_model()
    plainly = model.sample("a cat", 2, steps=6, solver=solver, spacing="respaced", seed=3)
    assert torch.equal(method(scale=0.0, solver=solver)(model, y="dog", prompt="a cat", seed=[3, 4]), plainly)
    assert not torch.equal(method(solver=solver)(model, y="dog", prompt="a cat", seed=[3, 4]), plainly)


@pytest.mark.parametrize("solver", [DDPM(), DDIM()], ids=repr)
def test_it_is_the_model_s_denoiser_inside_classifier_guidance(solver: DDPM | DDIM) -> None:
    model = tiny_text_model()
    noise = Noise(5, (2, 3, SIZE, SIZE))
    denoise = ClassifierGuidance(denoise=model.denoiser(), classifier=CLASSIFIER, y=torch.tensor([2, 0]), scale=30.0)
    expected = integrate(denoise, solver, Path.respaced(model.schedule, 6), noise(), noise=noise)
    assert torch.equal(method(solver=solver)(model, y=["car", "cat"], seed=5), expected)
    sampled = model.sample(
        y=["car", "cat"],
        steps=6,
        spacing="respaced",
        solver=solver,
        classifier=CLASSIFIER,
        classifier_scale=30.0,
        seed=5,
    )
    assert torch.equal(sampled, expected)


class Brightness(nn.Module):
    """Dark or bright, by the mean of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(20.0), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        bright = self.slope * x.mean((1, 2, 3))
        return torch.stack([-bright, bright], dim=1)


@pytest.mark.parametrize("at", ["state", "mean"])
@pytest.mark.parametrize("solver", [DDPM(), DDIM()], ids=repr)
def test_more_pull_gives_more_of_the_class(solver: DDPM | DDIM, at: Any) -> None:
    schedule = NoiseSchedule.cosine(100)
    model = formula_model(gaussian_eps(schedule), SIZE, schedule)
    classifier: Any = NoisyClassifier(network=Brightness(), num_classes=2, image_size=SIZE, labels=("dark", "bright"))
    if at == "mean" and solver != DDPM():
        return

    def brightness(scale: float, y: str) -> float:
        guided = method(classifier=classifier, scale=scale, solver=solver, at=at, steps=12)
        return float(guided(model, y=y, seed=list(range(8))).mean())

    values = [brightness(1.0, "dark"), *(brightness(scale, "bright") for scale in (0.0, 0.5, 1.0, 4.0))]
    assert values == sorted(values) and values[0] < -0.01 and values[-1] > values[1] + 0.02


def test_as_many_images_as_classes_prompts_or_seeds() -> None:
    model = tiny_text_model()
    assert method()(model, y="dog").shape == (1, 3, SIZE, SIZE)
    assert method()(model, y=["dog", "cat", "car"]).shape[0] == 3
    assert method()(model, y="dog", prompt=["a cat", "a dog"]).shape[0] == 2
    assert method()(model, y="dog", seed=[1, 2, 3]).shape[0] == 3
    together = method()(model, y=["dog", "car"], seed=4)
    assert (together[1:] - method()(model, y="car", seed=5)).abs().max() < 2e-5


def test_an_image_is_noised_to_t0_and_pulled() -> None:
    model, image = tiny_text_model(), pictures(2, SIZE) * 0.9
    path = Path.respaced(model.schedule, 10).from_t0(0.4)
    noise = Noise(2, like=image)
    start = model.schedule.q_sample(image, path.start, noise())
    denoise = ClassifierGuidance(denoise=model.denoiser(), classifier=CLASSIFIER, y=1, scale=30.0)
    expected = integrate(denoise, DDPM(), path, start, noise=noise)
    assert torch.equal(method(steps=10, t0=0.4)(model, image, y="dog", seed=2), expected)


def test_a_class_conditional_model_is_told_the_class_too() -> None:
    seen: list[Tensor] = []

    def eps(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append(y)
        return x * 0.1 * y.reshape(-1, 1, 1, 1)

    model = formula_model(eps, SIZE, NoiseSchedule.cosine(100), num_classes=3)
    method(steps=1)(model, y=["car", "dog"])
    assert seen[0].tolist() == [2, 1]


def test_a_learned_variance_scales_the_pull_of_each_pixel() -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([torch.tanh(x), torch.sin(3 * x)], dim=1)

    model: Model = formula_model(network, SIZE, NoiseSchedule.cosine(100), learns_variance=True)
    x, path = Noise(1, (1, 3, SIZE, SIZE))(), Path.respaced(model.schedule, 5)
    move = path[1]
    plainly = model.denoiser()
    pulled = ClassifierGuidance(denoise=plainly, classifier=CLASSIFIER, y=1, scale=30.0)
    steps = [DDPM().step(one, x, move, None, Noise(2, like=x)) for one in (plainly, pulled)]
    fraction = (torch.sin(3 * x) + 1) / 2
    beta, small = torch.tensor(move.beta).log(), move.posterior_log_variance_clipped
    variance = torch.exp(fraction * beta + (1 - fraction) * small)
    score = pulled(x, move.here).score
    assert score is not None
    torch.testing.assert_close(steps[1].x - steps[0].x, variance * score, atol=1e-5, rtol=1e-3)


def test_the_mean_of_the_step_is_another_place_to_ask_and_nearly_the_same_for_small_steps() -> None:
    model = tiny_text_model()
    few, many = (
        (method(steps=n, scale=5.0)(model, y="dog") - method(steps=n, scale=5.0, at="mean")(model, y="dog"))
        .abs()
        .mean()
        for n in (5, 50)
    )
    assert 0 < many < few


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": "dgo"}, "'dgo' is no class of tiny; the nearest is 'dog'"),
        ({"y": 3}, r"3 is no class of tiny; the nearest is 2 \(car\)"),
        ({"y": []}, "the list of classes is empty"),
        ({"y": ["dog", "cat"], "image": pictures(3, SIZE)}, "2 classes were given for 3 images; give one, or one for"),
        ({"y": ["dog", "cat"], "prompt": ["a cat"] * 3}, "2 classes were given for 3 images"),
        ({"y": "dog", "prompt": ["a cat"] * 2, "seed": [1, 2, 3]}, "2 prompts or labels were given for 3 images"),
    ],
)
def test_what_does_not_fit_is_an_error_before_the_network_is_called(arguments: dict[str, Any], message: str) -> None:
    network = Recording(tiny_text_model().network)
    with pytest.raises(UserError, match=message):
        method()(tiny_text_model(network=network), **arguments)
    assert network.rows == []


def test_a_classifier_that_does_not_fit_the_model_is_an_error() -> None:
    with pytest.raises(UserError, match="the classifier sees images of 8 x 8 pixels; tiny draws 16 x 16"):
        method()(tiny_text_model(16), y=1)
    with pytest.raises(UserError, match="tiny learned other noise levels than those of tiny"):
        method()(tiny_text_model(schedule=NoiseSchedule.linear(100)), y=1)
    with pytest.raises(UserError, match="is a diffusion model; give the weights of a noisy classifier"):
        method(classifier="emoji64")(tiny_text_model(), y=1)


def test_the_presets_have_the_published_scales() -> None:
    scales = {name: preset.scale for name, preset in PRESETS.items() if name.startswith("adm")}
    assert scales == {
        "adm-128": 0.5,
        "adm-256": 1.0,
        "adm-512": 4.0,
        "adm-256-uncond": 10.0,
        "adm-128-few": 1.25,
        "adm-256-few": 2.5,
        "adm-512-few": 9.0,
    }
    assert all(
        len(preset_path(preset)) == (25 if "few" in name else 250) for name, preset in PRESETS.items() if "adm" in name
    )


def preset_path(preset: ClassifierGuided) -> Path:
    return Path.respaced(NoiseSchedule.linear(1000), preset.steps)


def test_a_nameless_classifier_takes_numbers() -> None:
    nameless: Any = replace(tiny_classifier(), labels=())
    model = tiny_text_model()
    assert torch.equal(method(classifier=nameless)(model, y=1), method()(model, y="dog"))

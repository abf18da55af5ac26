"""The model: it checks what it is given before it computes, and an image does not depend on its neighbours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steerdiff import UserError
from steerdiff.guidance import Condition, Model
from steerdiff.samplers import DDPM, NoiseSchedule

from .toys import Recording, formula_model, gaussian_eps, half_mask, pictures, tiny_text_model

SCHEDULE = NoiseSchedule.linear(1000)


def plain_model(**fields: object) -> Model:
    return formula_model(gaussian_eps(SCHEDULE), 8, SCHEDULE, name="toy", **fields)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 8, 8), r"image is \[3, 8, 8\]; expected \[B, 3, 8, 8\]. Load it with steerdiff.io.load_image"),
        (torch.zeros(1, 1, 8, 8), r"image is \[1, 1, 8, 8\]; expected \[B, 3, 8, 8\]"),
        (torch.zeros(1, 3, 8, 9), r"image is \[1, 3, 8, 9\]; expected \[B, 3, 8, 8\]"),
        (torch.zeros(0, 3, 8, 8), "an empty batch; give at least one image"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"image has type torch.uint8; expected floats in \[-1, 1\]"),
        (torch.full((1, 3, 8, 8), float("nan")), "image has 192 values that are NaN or infinite"),
        (torch.full((1, 3, 8, 8), 255.0), r"image has values from 255 to 255; expected \[-1, 1\]"),
        ("cat.png", r"image is str; expected \[B, 3, 8, 8\]"),
    ],
)
def test_an_image_that_does_not_fit_is_named_by_its_fault(image: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plain_model().encode(image)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            torch.zeros(1, 3, 8, 8),
            r"mask is \[1, 3, 8, 8\]; expected \[B, 1, 8, 8\]. Load it with steerdiff.io.load_mask",
        ),
        (torch.zeros(8, 8), r"mask is \[8, 8\]; expected \[B, 1, 8, 8\]"),
        (torch.zeros(1, 1, 4, 4), r"mask is \[1, 1, 4, 4\]; expected \[B, 1, 8, 8\]"),
        (torch.full((1, 1, 8, 8), 0.5), "mask has 64 values that are neither 0 nor 1"),
        (torch.full((1, 1, 8, 8), float("nan")), "mask has 64 values that are neither 0 nor 1"),
        (torch.full((1, 1, 8, 8), 255.0), "mask has 64 values that are neither 0 nor 1"),
    ],
)
def test_a_mask_that_does_not_fit_is_named_by_its_fault(mask: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plain_model().fit_mask(mask)


def test_good_inputs_pass_unchanged_through_a_pixel_model() -> None:
    image = pictures(2, 8)
    assert torch.equal(plain_model().encode(image), image)
    assert torch.equal(plain_model().decode(image), image)
    assert torch.equal(plain_model().fit_mask(half_mask(8).bool()), half_mask(8))


def test_image_k_of_a_batch_is_image_k_alone() -> None:
    model = tiny_text_model().to(dtype=torch.float64)  # where sums in another order are the same after rounding
    together = model.sample(["a cat", "a dog"], n=2, steps=4, seed=5)
    assert together.shape == (4, 3, 8, 8)
    for k, prompt in enumerate(["a cat", "a cat", "a dog", "a dog"]):
        alone = model.sample(prompt, steps=4, seed=5 + k)
        torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=1e-7)
    torch.testing.assert_close(model.sample(["a cat", "a dog"], n=2, steps=4, seed=[5, 6, 7, 8], batch=3), together)


def test_every_argument_of_sample_changes_the_image() -> None:
    model = tiny_text_model()
    base = model.sample("a cat", steps=4)
    others = {
        "prompt": model.sample("a dog", steps=4),
        "steps": model.sample("a cat", steps=5),
        "guidance": model.sample("a cat", steps=4, guidance=9.0),
        "negative": model.sample("a cat", steps=4, negative="a dog"),
        "seed": model.sample("a cat", steps=4, seed=1),
        "solver": model.sample("a cat", steps=4, solver="ddim"),
        "a solver": model.sample("a cat", steps=4, solver=DDPM()),
        "spacing": model.sample("a cat", steps=4, spacing="linspace"),
        "clip": model.sample("a cat", steps=4, clip="none", guidance=30.0),
    }
    same = [name for name, image in others.items() if torch.equal(image, base)]
    assert same == []
    assert torch.equal(model.sample("a cat", steps=4), base)


def test_without_a_prompt_one_branch_runs_whatever_the_guidance() -> None:
    network = Recording(gaussian_eps(SCHEDULE))
    model = formula_model(network, 8, SCHEDULE)
    model.sample(n=3, steps=4, guidance=7.5)
    assert network.rows == [3] * 4
    text = tiny_text_model()
    recording = Recording(text.network)
    model = tiny_text_model(network=recording)
    model.sample(n=2, steps=2)
    model.sample(n=2, steps=2, negative="a dog")
    assert recording.rows == [2, 2, 4, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "a cta"}, "does not know: 'cta' \\(nearest: cat"),
        ({"prompt": ["a cat", "a blorp"]}, "does not know: 'blorp'"),
        ({"prompt": "a cat", "negative": "blorp"}, "does not know: 'blorp'"),
        ({"prompt": "a a a a a"}, "has 5 words; this model reads at most 4"),
        ({"prompt": []}, "the list of prompts is empty"),
        ({"prompt": "a cat", "steps": 0}, "steps is 0; it must be from 1 to T = 100"),
        ({"prompt": "a cat", "steps": 101}, "steps is 101; it must be from 1 to T = 100"),
        ({"prompt": "a cat", "steps": "10,10"}, "spacing 'log_snr' needs an integer"),
        ({"prompt": "a cat", "n": 0}, "n is 0; ask for at least one image"),
        ({"prompt": "a cat", "batch": 0}, "batch is 0"),
        ({"prompt": "a cat", "solver": "dpm"}, "solver is 'dpm'; known are ddim, ddpm"),
        ({"prompt": "a cat", "guidance": float("nan")}, "guidance is nan; it must be a finite number"),
        ({"prompt": "a cat", "seed": [1, 2]}, "2 seeds for 1 images"),
        ({"prompt": "a cat", "clip": "hard"}, "clip is 'hard'"),
        ({"prompt": "a cat", "spacing": "odd"}, "spacing is 'odd'"),
        ({"prompt": "a cat", "y": 3}, "tiny has no class labels; leave y out"),
    ],
)
def test_bad_arguments_are_errors_before_the_network_is_called(arguments: dict[str, object], message: str) -> None:
    network = Recording(tiny_text_model().network)
    with pytest.raises(UserError, match=message):
        tiny_text_model(network=network).sample(**arguments)
    assert network.rows == []


@pytest.mark.parametrize("arguments", [{"prompt": "a cat"}, {"prompt": ["a cat"]}, {"negative": "a cat"}])
def test_a_text_for_a_model_without_text_is_an_error(arguments: dict[str, object]) -> None:
    with pytest.raises(UserError, match="toy has no text encoder; leave the prompt out"):
        plain_model().sample(**arguments)


def test_class_labels_are_checked_and_passed_on() -> None:
    def eps(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return x * 0.1 * y.reshape(-1, 1, 1, 1)

    model = formula_model(eps, 4, SCHEDULE, num_classes=10, name="labelled")
    both = model.sample(y=[2, 7], n=2, steps=3, solver="ddim")
    assert both.shape == (4, 3, 4, 4)
    torch.testing.assert_close(both[2:3], model.sample(y=7, steps=3, solver="ddim", seed=2))
    with pytest.raises(UserError, match=r"labelled needs class labels; give y \(--label\) in \[0, 10\)"):
        model.sample(steps=3)
    with pytest.raises(UserError, match=r"y is \[10\]; labels must be in \[0, 10\)"):
        model.sample(y=10, steps=3)


def test_states_stay_in_float32_while_the_network_runs_in_half() -> None:
    single = tiny_text_model().sample("a cat", steps=3)
    half = tiny_text_model().to(dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    image = half.sample("a cat", steps=3)
    assert image.dtype == torch.float32
    assert 0 < float((image - single).abs().max()) < 0.2


def test_a_condition_can_be_made_once_and_used_as_prompt() -> None:
    model = tiny_text_model()
    condition = model.condition("a cat")
    assert isinstance(condition, Condition) and condition.context is not None
    x, level = pictures(2, 8), model.schedule.level(60)
    named, made = model.denoiser("a cat", scale=4.0)(x, level), model.denoiser(condition, scale=4.0)(x, level)
    assert torch.equal(named.x0, made.x0)


def test_a_gaussian_model_draws_the_gaussian() -> None:
    model = formula_model(gaussian_eps(SCHEDULE, 0.1, 0.25), 32, SCHEDULE)
    image = model.sample(n=2, steps=40, clip="none")
    n = image.numel()
    assert abs(float(image.mean()) - 0.1) < 5 * 0.25 / n**0.5
    assert abs(float(image.std()) - 0.25) < 0.25 * (
        5 / (2 * n) ** 0.5 + 0.01
    )  # 0.01: 40 steps of a second-order solver


def test_guidance_leaves_the_variance_that_a_text_model_learned() -> None:
    def network(x: Tensor, t: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
        shift = context[:, 1, 0].reshape(-1, 1, 1, 1)
        return torch.cat([x + shift, torch.zeros_like(x) + shift], dim=1)

    model = tiny_text_model(network=network, learns_variance=True)
    x, level = pictures(2, 8), model.schedule.level(50)
    plain, guided = (model.denoiser("a cat", scale=scale, clip="none")(x, level) for scale in (1.0, 5.0))
    assert guided.log_variance_fraction is not None and plain.log_variance_fraction is not None
    torch.testing.assert_close(guided.log_variance_fraction, plain.log_variance_fraction)
    assert float((guided.x0 - plain.x0).abs().max()) > 0.1


class HalfNetwork(torch.nn.Module):
    """Gives 1 for a text whose first state is positive and 1/256 for any other, in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones((), dtype=torch.bfloat16))

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        value = torch.where(context[:, 0, 0] > 0, 1.0, 1 / 256).reshape(-1, 1, 1, 1)
        return self.one * value.to(torch.bfloat16).expand_as(x)


def test_guidance_is_computed_in_float32_though_the_network_runs_in_half() -> None:
    model = tiny_text_model(network=HalfNetwork(), parameterization="x0")
    cond, uncond = (Condition(context=torch.full((1, 1, 1), value)) for value in (1.0, -1.0))
    guided = model.denoiser(cond, negative=uncond, scale=3.0, clip="none")(pictures(1, 8), model.schedule.level(50))
    assert torch.equal(guided.x0, torch.full_like(guided.x0, 1 / 256 + 3 * 255 / 256))  # bfloat16 would give 3

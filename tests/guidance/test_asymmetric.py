"""The asymmetric process: the formula of one step, the near-cancellation of the symmetric one, and where it acts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from steerdiff.guidance import Model
from steerdiff.guidance.asymmetric import Asymmetric, asymmetric
from steerdiff.models.delta_h import build_delta_h, delta_h_config
from steerdiff.samplers import DDIM, Level, Move, Noise, NoiseSchedule

from .toys import Recording, tiny_text_model

T = 100


def shift_of(model: Model, factor: float = 1.0) -> Any:
    f = build_delta_h(delta_h_config(model.network)).requires_grad_(False)
    return lambda h, emb, t: factor * f(h, emb, t)


def state(rows: int = 2) -> Tensor:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def level(t: float) -> Level:
    return NoiseSchedule.cosine(T).level(t)


def step(denoise: Any, x: Tensor, here: float, there: float) -> Tensor:
    move = Move(here=level(here), there=level(there))
    return DDIM().step(denoise, x, move, None, Noise(0, like=x)).x


@pytest.mark.parametrize("parameterization", ["v", "eps"])
def test_one_step_differs_from_the_plain_one_by_the_shift_of_the_predicted_image_alone(parameterization: Any) -> None:
    model, x = tiny_text_model(parameterization=parameterization), state()
    edited = asymmetric(model, shift_of(model), prompt="a cat")
    plain, shifted = edited.both(x, level(60))
    here, there = level(60).alpha_bar, level(50).alpha_bar
    factor = -math.sqrt(there) * math.sqrt(1 - here) / math.sqrt(here)
    difference = step(edited, x, 60, 50) - step(model.denoiser("a cat", clip="none"), x, 60, 50)
    assert difference.abs().max() > 1e-3
    torch.testing.assert_close(difference, factor * (shifted.eps - plain.eps), rtol=1e-4, atol=1e-6)


def test_shifting_both_nearly_cancels_between_neighbouring_times() -> None:
    model, x = tiny_text_model(), state()
    plain = model.denoiser("a cat", clip="none")
    sizes = {
        symmetric: float(
            (
                step(asymmetric(model, shift_of(model), prompt="a cat", symmetric=symmetric), x, 60, 59)
                - step(plain, x, 60, 59)
            ).norm()
        )
        for symmetric in (False, True)
    }
    here, there = level(60).alpha_bar, level(59).alpha_bar
    direct = math.sqrt(there) * math.sqrt(1 - here) / math.sqrt(here)
    left = abs(math.sqrt(1 - there) - direct) / direct  # the direction's term takes back all but this share
    assert left < 0.05
    assert sizes[True] / sizes[False] == pytest.approx(left, rel=1e-3)


def test_below_t_edit_it_is_the_plain_denoiser_bit_for_bit_and_from_there_on_it_is_not() -> None:
    model, x = tiny_text_model(), state()
    edited, plain = asymmetric(model, shift_of(model), prompt="a cat", t_edit=40), model.denoiser("a cat", clip="none")
    for t, same in ((39.9, True), (40.0, False), (90.0, False)):
        ours, theirs = edited(x, level(t)), plain(x, level(t))
        assert torch.equal(ours.x0, theirs.x0) == same
        assert torch.equal(ours.eps, theirs.eps)


def test_a_shift_of_zero_is_the_plain_denoiser_bit_for_bit() -> None:
    model, x = tiny_text_model(), state()
    edited, plain = asymmetric(model, shift_of(model, 0.0), prompt="a cat"), model.denoiser("a cat", clip="none")
    assert torch.equal(edited(x, level(60)).x0, plain(x, level(60)).x0)
    assert torch.equal(edited(x, level(60)).eps, plain(x, level(60)).eps)


def test_the_network_is_called_once_for_both() -> None:
    calls = Recording(tiny_text_model().network)
    model = tiny_text_model(network=calls)
    shift = shift_of(tiny_text_model())
    asymmetric(model, shift, prompt="a cat")(state(), level(60))
    assert calls.rows == [2]


@pytest.mark.parametrize("symmetric", [False, True])
def test_an_image_does_not_depend_on_its_batch(symmetric: bool) -> None:
    model, x = tiny_text_model(), state(3)
    options: dict[str, Any] = {"symmetric": symmetric, "guidance": 2.5}
    together = asymmetric(model, shift_of(model), prompt=["a cat", "a dog", "a red cat"], **options)(x, level(70))
    for k, prompt in enumerate(["a cat", "a dog", "a red cat"]):
        alone = asymmetric(model, shift_of(model), prompt=prompt, **options)(x[k : k + 1], level(70))
        torch.testing.assert_close(together.x0[k : k + 1], alone.x0, rtol=0, atol=1e-5)
        torch.testing.assert_close(together.eps[k : k + 1], alone.eps, rtol=0, atol=1e-5)


def test_guidance_is_applied_to_the_plain_and_to_the_shifted_output() -> None:
    model, x, scale = tiny_text_model(), state(), 3.0
    shift = shift_of(model)
    plain, shifted = asymmetric(model, shift, prompt="a cat", guidance=scale).both(x, level(60))
    for index, guided in enumerate((plain, shifted)):
        cond = asymmetric(model, shift, prompt="a cat").both(x, level(60))[index]
        uncond = asymmetric(model, shift).both(x, level(60))[index]
        torch.testing.assert_close(guided.x0, uncond.x0 + scale * (cond.x0 - uncond.x0), rtol=0, atol=1e-4)


def test_gradients_reach_the_shift_and_not_the_network() -> None:
    model = tiny_text_model()
    f = build_delta_h(delta_h_config(model.network))
    edited: Asymmetric = asymmetric(model, f, prompt="a cat")
    prediction = edited(state(), level(60))
    of_eps = torch.autograd.grad(prediction.eps.square().sum(), list(f.parameters()), retain_graph=True)
    assert not any(gradient.any() for gradient in of_eps)
    prediction.x0.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in f.parameters())
    assert all(parameter.grad is None for parameter in model.network.parameters())  # type: ignore[union-attr]

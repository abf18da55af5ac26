"""Classifier-free guidance follows its formula, whatever the parameterisation, in one batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from steerdiff import UserError
from steerdiff.guidance import ClassifierFree, Condition, Conditioned
from steerdiff.samplers import NetworkDenoiser, NoiseSchedule

from .toys import Recording, pictures, tiny_text_model

SCHEDULE = NoiseSchedule.cosine(100)


def shifting(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """An output that depends on x, t and the sum of the text states."""
    return torch.tanh(x + 0.01 * t.reshape(-1, 1, 1, 1)) + context.sum((1, 2)).reshape(-1, 1, 1, 1)


def learned(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """The same with a second half of channels, for the variance."""
    return torch.cat([shifting(x, t, context), 2 * shifting(x, t, context)], dim=1)


def context(value: float, rows: int = 1) -> Condition:
    return Condition(context=torch.full((rows, 1, 1), value))


@pytest.mark.parametrize("scale", [-3.0, 0.0, 0.5, 1.0, 2.0, 7.5, 100.0])
def test_any_real_scale_follows_the_formula(scale: float) -> None:
    x, t = pictures(3, 4), torch.full((3,), 7.0)
    guided = ClassifierFree(network=shifting, cond=context(0.4), uncond=context(-0.1), scale=scale)(x, t)
    cond = Conditioned(network=shifting, condition=context(0.4))(x, t)
    uncond = Conditioned(network=shifting, condition=context(-0.1))(x, t)
    torch.testing.assert_close(guided, uncond + scale * (cond - uncond), rtol=0, atol=1e-7 * max(1, abs(scale)))


@pytest.mark.parametrize(("scale", "rows"), [(1.0, [3]), (0.0, [3]), (2.0, [6])])
def test_both_branches_run_in_one_batch_and_one_branch_where_one_is_enough(scale: float, rows: list[int]) -> None:
    network = Recording(shifting)
    ClassifierFree(network=network, cond=context(0.4), uncond=context(0.0), scale=scale)(pictures(3, 4), torch.ones(3))
    assert network.rows == rows


def test_scale_one_and_zero_are_bit_for_bit_the_two_branches() -> None:
    model = tiny_text_model()
    x, level = pictures(2, 8), model.schedule.level(50)
    cat = model.denoiser("a cat")(x, level)
    assert torch.equal(model.denoiser("a cat", scale=1)(x, level).x0, cat.x0)
    nothing = model.denoiser()(x, level)
    assert torch.equal(model.denoiser("a cat", scale=0)(x, level).x0, nothing.x0)
    dog = model.denoiser("a dog")(x, level)
    assert torch.equal(model.denoiser("a cat", negative="a dog", scale=0)(x, level).x0, dog.x0)
    assert not torch.equal(cat.x0, dog.x0)


@pytest.mark.parametrize("parameterization", ["eps", "x0", "v"])
def test_the_formula_means_the_same_for_eps_and_x0(parameterization: str) -> None:
    x, level, scale = pictures(2, 4).double(), SCHEDULE.level(40), 3.0

    def predict(network: object) -> tuple[Tensor, Tensor]:
        prediction = NetworkDenoiser(network=network, parameterization=parameterization)(x, level)
        return prediction.x0, prediction.eps

    guided = predict(ClassifierFree(network=shifting, cond=context(0.4), uncond=context(-0.1), scale=scale))
    cond = predict(Conditioned(network=shifting, condition=context(0.4)))
    uncond = predict(Conditioned(network=shifting, condition=context(-0.1)))
    for of_guided, of_cond, of_uncond in zip(guided, cond, uncond, strict=True):
        torch.testing.assert_close(of_guided, of_uncond + scale * (of_cond - of_uncond), rtol=1e-9, atol=1e-9)


def test_the_learned_variance_is_the_conditional_branch_s() -> None:
    x, t = pictures(2, 4), torch.ones(2)
    out = ClassifierFree(network=learned, cond=context(0.4), uncond=context(0.0), scale=5.0, guided_channels=3)(x, t)
    assert torch.equal(out[:, 3:], learned(x, t, torch.full((2, 1, 1), 0.4))[:, 3:])
    everything = ClassifierFree(network=learned, cond=context(0.4), uncond=context(0.0), scale=5.0)(x, t)
    assert not torch.equal(out, everything)


def test_a_tensor_of_scales_guides_each_image_by_its_own() -> None:
    x, t, scales = pictures(3, 4), torch.ones(3), [0.0, 1.0, 4.0]

    def guided(scale: float | Tensor, rows: slice) -> Tensor:
        guide = ClassifierFree(network=shifting, cond=context(0.4), uncond=context(0.0), scale=scale)
        return guide(x[rows], t[rows])

    together = guided(torch.tensor(scales), slice(None))
    for i, scale in enumerate(scales):
        torch.testing.assert_close(together[i : i + 1], guided(scale, slice(i, i + 1)))


def test_clipping_comes_after_guidance() -> None:
    guide = ClassifierFree(network=shifting, cond=context(0.9), uncond=context(-0.9), scale=2.0)
    x, level = torch.zeros(1, 3, 2, 2), SCHEDULE.level(0)
    t = torch.zeros(1)
    clipped = NetworkDenoiser(network=guide, parameterization="x0", clip="clip")(x, level).x0
    assert torch.equal(clipped, guide(x, t).clamp(-1, 1))
    before = -0.9 + 2.0 * (0.9 - -0.9)
    assert before > 1 and bool((clipped == 1).all())


@given(scale=st.floats(-20, 20), rows=st.integers(1, 3))
def test_equal_branches_leave_any_scale_without_effect(scale: float, rows: int) -> None:
    x, t = pictures(rows, 2), torch.ones(rows)
    guided = ClassifierFree(network=shifting, cond=context(0.3), uncond=context(0.3), scale=scale)(x, t)
    torch.testing.assert_close(guided, shifting(x, t, torch.full((rows, 1, 1), 0.3)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), torch.tensor([1.0, float("nan")])])
def test_a_scale_that_is_not_finite_is_an_error(scale: float | Tensor) -> None:
    with pytest.raises(UserError, match=r"guidance is .*; it must be a finite number"):
        ClassifierFree(network=shifting, cond=context(0.3), uncond=context(0.3), scale=scale)


def test_another_number_of_prompts_than_images_is_an_error() -> None:
    with pytest.raises(UserError, match="2 prompts or labels were given for 3 images"):
        Conditioned(network=shifting, condition=context(0.3, rows=2))(pictures(3, 4), torch.ones(3))


def test_contexts_of_unequal_length_are_padded_with_masked_states() -> None:
    short = Condition(context=torch.ones(1, 2, 3))
    long = Condition(context=torch.ones(2, 4, 3), context_mask=torch.tensor([[True] * 3 + [False]] * 2))
    joined = short.join(long)
    assert joined.context is not None and joined.context_mask is not None
    assert joined.context.shape == (3, 4, 3)
    assert joined.context_mask.tolist() == [[True, True, False, False], [True] * 3 + [False], [True] * 3 + [False]]
    assert Condition(y=torch.tensor([1])).join(Condition(y=torch.tensor([2]))).arguments()["y"].tolist() == [1, 2]


def test_a_branch_with_text_does_not_join_one_without() -> None:
    with pytest.raises(UserError, match="one branch has a text and the other has none"):
        context(1.0).join(Condition())


def test_rows_of_a_condition_repeat_and_can_be_cut() -> None:
    condition = Condition(context=torch.arange(3.0).reshape(3, 1, 1), y=torch.tensor([5]))
    repeated = condition.repeat(2)
    assert repeated.rows == 6 and repeated.context is not None and repeated.y is not None
    assert repeated.context.flatten().tolist() == [0, 0, 1, 1, 2, 2] and repeated.y.tolist() == [5]
    assert repeated[2:4].context.flatten().tolist() == [1, 1]
    assert Condition(y=torch.tensor([5]))[3:5].rows == 1

"""Weighted sums of conditions, the rescale and the split mode follow their formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steerdiff import UserError
from steerdiff.guidance import ClassifierFree, Condition
from steerdiff.samplers import DDIM, NetworkDenoiser, Noise, NoiseSchedule, Path, integrate

from .toys import Recording, pictures

SCHEDULE = NoiseSchedule.cosine(100)


def shaping(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """An output whose mean and spread both depend on the text."""
    told = context.sum((1, 2)).reshape(-1, 1, 1, 1)
    return torch.tanh(x * (1 + told) + 0.01 * t.reshape(-1, 1, 1, 1)) + told


def context(value: float, rows: int = 1) -> Condition:
    return Condition(context=torch.full((rows, 1, 1), value))


def out(value: float, x: Tensor, t: Tensor) -> Tensor:
    return shaping(x, t, torch.full((len(x), 1, 1), value))


X, T = pictures(3, 4).double(), torch.full((3,), 7.0).double()
COND, UNCOND = context(0.4), context(-0.1)


@settings(max_examples=30)
@given(
    scale=st.floats(-10, 10),
    weights=st.lists(st.floats(-5, 5), max_size=4),
    split=st.booleans(),
)
def test_a_weighted_sum_of_any_number_of_prompts_follows_the_formula(
    scale: float, weights: list[float], split: bool
) -> None:
    values = [0.1 * (k + 2) for k in range(len(weights))]
    also = tuple((context(value), weight) for value, weight in zip(values, weights, strict=True))
    guide = ClassifierFree(network=shaping, cond=COND, uncond=UNCOND, scale=scale, also=also, split=split)
    uncond = out(-0.1, X, T)
    expected = uncond + scale * (out(0.4, X, T) - uncond)
    for value, weight in zip(values, weights, strict=True):
        expected = expected + weight * (out(value, X, T) - uncond)
    torch.testing.assert_close(guide(X, T), expected, rtol=0, atol=1e-6)  # the texts are float32


@pytest.mark.parametrize(
    ("scale", "weights", "rows"),
    [
        (2.0, (1.0, -1.0), [12]),
        (2.0, (1.0, 0.0), [9]),
        (2.0, (0.0, 0.0), [6]),
        (1.0, (0.0, 0.0), [3]),
        (1.0, (0.5, 0.0), [9]),
        (0.0, (0.5, 0.0), [6]),
        (0.0, (0.0, 0.0), [3]),
    ],
)
def test_only_branches_with_a_weight_run_and_all_in_one_batch(
    scale: float, weights: tuple[float, float], rows: list[int]
) -> None:
    network = Recording(shaping)
    also = tuple((context(0.7), weight) for weight in weights)
    ClassifierFree(network=network, cond=COND, uncond=UNCOND, scale=scale, also=also)(X, T)
    assert network.rows == rows


def test_weights_of_zero_leave_every_bit_as_it_was() -> None:
    guides = [
        ClassifierFree(network=shaping, cond=COND, uncond=UNCOND, scale=3.0, also=also)
        for also in ((), ((context(0.7), 0.0), (context(0.2), 0.0)))
    ]
    assert torch.equal(guides[0](X, T), guides[1](X, T))


def test_rows_of_the_branches_stand_in_the_order_that_controls_count_on() -> None:
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor, context: Tensor, control: object) -> Tensor:
        seen.append(context[:, 0, 0])
        return shaping(x, t, context)

    also = ((context(0.7), 1.0), (context(0.2), -1.0))
    ClassifierFree(network=network, cond=COND, uncond=UNCOND, scale=2.0, also=also, control="control")(X[:1], T[:1])
    torch.testing.assert_close(seen[0], torch.tensor([0.4, 0.7, 0.2, -0.1]))


def test_without_a_prompt_of_its_own_the_sum_is_of_the_further_ones() -> None:
    network = Recording(shaping)
    guide = ClassifierFree(network=network, cond=UNCOND, uncond=UNCOND, scale=7.0, also=((context(0.7), 2.0),))
    uncond = out(-0.1, X, T)
    torch.testing.assert_close(guide(X, T), uncond + 2 * (out(0.7, X, T) - uncond), rtol=0, atol=1e-6)
    assert network.rows == [6]


def test_a_separately_weighted_negative_prompt_is_a_term_of_the_sum() -> None:
    guide = ClassifierFree(network=shaping, cond=COND, uncond=UNCOND, scale=3.0, also=((context(0.9), -2.0),))
    uncond, negative = out(-0.1, X, T), out(0.9, X, T)
    torch.testing.assert_close(
        guide(X, T), uncond + 3 * (out(0.4, X, T) - uncond) - 2 * (negative - uncond), rtol=0, atol=1e-6
    )


def test_each_image_has_its_own_scale_weights_and_prompts() -> None:
    scales, weights = torch.tensor([0.5, 1.0, 4.0]), torch.tensor([2.0, 0.0, -1.0])
    texts = Condition(context=torch.tensor([0.2, 0.3, 0.9]).reshape(3, 1, 1))
    guide = ClassifierFree(
        network=shaping, cond=COND, uncond=UNCOND, scale=scales, also=((texts, weights),), rescale=0.6
    )
    together = guide(X, T)
    for i in range(3):
        alone = ClassifierFree(
            network=shaping,
            cond=COND,
            uncond=UNCOND,
            scale=float(scales[i]),
            also=((texts[i : i + 1], float(weights[i])),),
            rescale=0.6,
        )(X[i : i + 1], T[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("parameterization", ["eps", "x0", "v"])
def test_a_sum_means_the_same_for_eps_x0_and_v(parameterization: str) -> None:
    level, weights = SCHEDULE.level(40), (3.0, 1.5, -2.0)
    conditions = (COND, context(0.7), context(0.2))

    def predict(network: object) -> tuple[Tensor, Tensor]:
        prediction = NetworkDenoiser(network=network, parameterization=parameterization)(X, level)  # type: ignore[arg-type]
        return prediction.x0, prediction.eps

    also = tuple(zip(conditions[1:], weights[1:], strict=True))
    guided = predict(ClassifierFree(network=shaping, cond=COND, uncond=UNCOND, scale=weights[0], also=also))
    single = [
        predict(ClassifierFree(network=shaping, cond=one, uncond=one, scale=1.0)) for one in (*conditions, UNCOND)
    ]
    for part in (0, 1):
        uncond = single[-1][part]
        expected = uncond + sum(w * (one[part] - uncond) for w, one in zip(weights, single, strict=False))
        torch.testing.assert_close(guided[part], expected, rtol=1e-12, atol=1e-12)


def test_samples_of_gaussians_of_one_spread_move_by_the_closed_form_amount() -> None:
    """eps of N(m, s^2) is affine in m, so the guided one is that of N(u + sum_k w_k (m_k - u), s^2)."""
    schedule, std = NoiseSchedule.linear(1000), 0.25

    def eps(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        ab = schedule.alpha_bar(float(t[0]))
        mean = context[:, 0].reshape(-1, 1, 1, 1).to(x)
        return (1 - ab) ** 0.5 * (x - ab**0.5 * mean) / (ab * std**2 + 1 - ab)

    def of(mean: float) -> Condition:
        return Condition(context=torch.full((1, 1), mean))

    def drawn(**fields: object) -> Tensor:
        guide = ClassifierFree(network=eps, cond=of(0.3), uncond=of(-0.1), **fields)  # type: ignore[arg-type]
        path = Path.respaced(schedule, 100)
        noise = Noise(0, [2, 3, 32, 32])
        return integrate(NetworkDenoiser(network=guide), DDIM(), path, noise())

    plain = drawn(scale=1.0)
    for scale, also in ((4.0, ()), (2.0, ((of(0.5), 1.5), (of(-0.4), -1.0)))):
        moved = drawn(scale=scale, also=also) - plain
        weights = [(0.3, scale), *((float(one.context.sum()), weight) for one, weight in also)]  # type: ignore[union-attr]
        mean = -0.1 + sum(weight * (value + 0.1) for value, weight in weights)
        torch.testing.assert_close(moved, torch.full_like(moved, mean - 0.3), rtol=0.02, atol=1e-4)  # 100 steps


# rescale


def reference(phi: float, guided: Tensor, cond: Tensor) -> Tensor:
    """The formula image by image, with the standard deviation of a sample as torch gives it."""
    return torch.stack([phi * (c.std() / g.std()) * g + (1 - phi) * g for g, c in zip(guided, cond, strict=True)])


@pytest.mark.parametrize("phi", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("scale", [7.5, -1.0, 0.0])
def test_the_rescale_gives_each_image_the_spread_of_its_conditional_output(phi: float, scale: float) -> None:
    guide = ClassifierFree(network=shaping, cond=COND, uncond=UNCOND, scale=scale, rescale=phi)
    cond, uncond = out(0.4, X, T), out(-0.1, X, T)
    rescaled = guide(X, T)
    torch.testing.assert_close(rescaled, reference(phi, uncond + scale * (cond - uncond), cond), rtol=0, atol=1e-6)
    if phi == 1:
        torch.testing.assert_close(rescaled.std((1, 2, 3)), cond.std((1, 2, 3)), rtol=1e-6, atol=0)


def test_the_rescale_leaves_what_is_not_guided() -> None:
    network = Recording(shaping)
    guide = ClassifierFree(network=network, cond=COND, uncond=UNCOND, scale=1.0, rescale=0.7)
    assert torch.equal(guide(X, T), out(0.4, X, T).to(X))
    assert network.rows == [3]


def test_the_rescale_leaves_an_output_without_spread() -> None:
    def flat(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return context.sum((1, 2)).reshape(-1, 1, 1, 1).expand(x.shape)

    guide = ClassifierFree(network=flat, cond=COND, uncond=UNCOND, scale=3.0, rescale=0.7)
    torch.testing.assert_close(guide(X, T), torch.full_like(X, -0.1 + 3 * 0.5).float())


def test_the_rescale_and_the_sum_leave_the_learned_variance_to_the_prompt() -> None:
    def learned(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return torch.cat([shaping(x, t, context), 100 * shaping(x, t, context)], dim=1)

    options = {"guided_channels": 3, "also": ((context(0.7), 2.0),), "rescale": 0.7}
    guided = ClassifierFree(network=learned, cond=COND, uncond=UNCOND, scale=3.0, **options)(X, T)  # type: ignore[arg-type]
    assert torch.equal(guided[:, 3:], 100 * out(0.4, X, T))
    del options["guided_channels"]
    plain = ClassifierFree(network=shaping, cond=COND, uncond=UNCOND, scale=3.0, **options)(X, T)  # type: ignore[arg-type]
    torch.testing.assert_close(guided[:, :3], plain)


# split


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_one_branch_after_the_other_gives_the_same(rescale: float) -> None:
    network = Recording(shaping)
    options = {"scale": 3.0, "also": ((context(0.7), -1.0),), "rescale": rescale}
    together = ClassifierFree(network=shaping, cond=COND, uncond=UNCOND, **options)(X, T)  # type: ignore[arg-type]
    apart = ClassifierFree(network=network, cond=COND, uncond=UNCOND, **options, split=True)(X, T)  # type: ignore[arg-type]
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-12)
    assert network.rows == [3, 3, 3]


def test_contexts_of_other_lengths_are_not_padded_where_branches_run_apart() -> None:
    lengths = []

    def network(x: Tensor, t: Tensor, context: Tensor, context_mask: Tensor | None = None) -> Tensor:
        lengths.append((context.shape[1], context_mask is None))
        return shaping(x, t, context)

    long = Condition(context=torch.full((1, 3, 1), 0.1))
    ClassifierFree(network=network, cond=long, uncond=UNCOND, scale=2.0, split=True)(X, T)
    assert lengths == [(3, True), (1, True)]


# errors


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"also": ((COND, float("nan")),)}, "a prompt has the weight nan; it must be a finite number"),
        ({"also": ((COND, torch.tensor([1.0, torch.inf])),)}, "a prompt has the weight tensor"),
        ({"rescale": 1.5}, r"rescale is 1.5; it must lie in \[0, 1\]"),
        ({"rescale": float("nan")}, "rescale is nan"),
        ({"split": True, "control": object()}, "a control sees them together; leave one out"),
    ],
)
def test_what_cannot_be_is_an_error(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClassifierFree(network=shaping, cond=COND, uncond=UNCOND, scale=2.0, **fields)  # type: ignore[arg-type]


def test_another_number_of_weights_than_images_is_an_error() -> None:
    guide = ClassifierFree(
        network=shaping, cond=COND, uncond=UNCOND, scale=2.0, also=((context(0.7), torch.tensor([1.0, 2.0])),)
    )
    with pytest.raises(UserError, match="2 guidance scales or weights were given for 3 images"):
        guide(X, T)

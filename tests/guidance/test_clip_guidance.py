"""Guidance by a CLIP of noisy images: the right gradient, one image at a time, and nothing else moved."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from steerdiff import UserError
from steerdiff.guidance import ClassifierFree, ClassifierGuidance, Condition
from steerdiff.guidance.clip_guidance import (
    ClipGuidance,
    ImageTerm,
    TextTerm,
    UntunedEncoder,
    check_encoder,
    encoder_of,
    shift_ratio,
)
from steerdiff.models.clip_towers import ClipFeatures
from steerdiff.samplers import (
    DDIM,
    DDPM,
    Heun,
    Level,
    NetworkDenoiser,
    Noise,
    NoiseSchedule,
    Path,
    Prediction,
    Record,
    integrate,
)

from ..samplers.mixture import SCHEDULE
from .toys import formula_model, pictures

B, SIZE, WIDTH = 3, 8, 5
X = Noise(3, (B, 3, SIZE, SIZE))()
REFERENCE = pictures(B, SIZE, seed=4)
TEXT = Noise(9, (B, WIDTH))()
LEVEL = SCHEDULE.level(400)


def kernel(name: str, *shape: int) -> Tensor:
    return Noise(17, (1, *shape)).fork(name)()[0].double() / math.sqrt(math.prod(shape[1:]))


def encoder(x: Tensor, t: Tensor) -> ClipFeatures:
    """Two feature maps and a vector, smooth in x and dependent on t."""
    first, second, head = kernel("a", 6, 3, 3, 3), kernel("b", 4, 6, 3, 3), kernel("c", WIDTH, 4)
    seen = x + 0.0005 * t.reshape(-1, 1, 1, 1) * x.square()
    one = torch.tanh(functional.conv2d(seen, first.to(x), padding=1))
    two = torch.tanh(functional.conv2d(one, second.to(x), stride=2, padding=1))
    return ClipFeatures((one, two), two.mean((2, 3)) @ head.to(x).T + 0.1)


def never(x: Tensor, t: Tensor) -> ClipFeatures:
    raise AssertionError("the encoder was run")


def plain(x: Tensor, level: Level) -> Prediction:
    return Prediction.from_output(torch.tanh(x + 0.001 * level.t), x, level)


def text(**fields: Any) -> TextTerm:
    return TextTerm(**{"target": TEXT, "weight": 2.0} | fields)


def image(loss: Any = "content", **fields: Any) -> ImageTerm:
    return ImageTerm(**{"image": REFERENCE, "loss": loss, "weight": 3.0} | fields)


def guided(*terms: Any, x: Tensor = X, **fields: Any) -> ClipGuidance:
    defaults: dict[str, Any] = {"denoise": plain, "encoder": encoder, "noise": Noise(1, like=x)}
    return ClipGuidance(terms=terms, **defaults | fields)


def score(*terms: Any, x: Tensor = X, level: Level = LEVEL, **fields: Any) -> Tensor:
    found = guided(*terms, x=x, **fields)(x, level).score
    assert found is not None
    return found


def noised(level: Level = LEVEL, seed: int = 1, like: Tensor = X) -> Tensor:
    """The references as guidance sees them."""
    eps = Noise(seed, like=like).fork("clip reference")()
    return math.sqrt(level.alpha_bar) * REFERENCE.to(like) + math.sqrt(1 - level.alpha_bar) * eps


def by_hand(kind: str, x: Tensor) -> Tensor:
    """Each loss of the paper, summed over the batch, written anew."""
    t = torch.full((B,), LEVEL.t, dtype=x.dtype)
    ours, theirs = encoder(x, t), encoder(noised(like=x), t)
    total = x.new_zeros(())
    for i in range(B):
        if kind in ("text", "content"):
            target = TEXT[i].to(x) if kind == "text" else theirs.vector[i]
            total = total + ours.vector[i] @ target / (ours.vector[i].norm() * target.norm())
            continue
        for mine, other in zip(ours.maps, theirs.maps, strict=True):
            a, b = mine[i].flatten(1), other[i].flatten(1)
            if kind == "structure":
                total = total - (a - b).pow(2).sum() / a.numel()
            else:
                total = total - 1e10 / 2 * (a @ a.T - b @ b.T).pow(2).mean() / a.numel() ** 2
    return total


TERMS: dict[str, Callable[..., Any]] = {
    "text": text,
    "content": image,
    "structure": lambda **fields: image("structure", **fields),
    "style": lambda **fields: image("style", **fields),
}


@pytest.mark.parametrize("kind", TERMS)
def test_score_is_the_gradient_of_the_papers_loss(kind: str) -> None:
    x = X.double().requires_grad_()
    (expected,) = torch.autograd.grad(by_hand(kind, x), x)
    for weight, scale in ((1.0, 1.0), (-0.5, 2.0), (7.0, 1.0)):
        found = score(TERMS[kind](weight=weight), x=X.double(), scale=scale)
        torch.testing.assert_close(found, weight * scale * expected)


@pytest.mark.parametrize("kind", TERMS)
def test_score_is_what_finite_differences_say(kind: str) -> None:
    x, step = X.double(), 1e-6
    found = score(TERMS[kind](weight=1.0), x=x)
    for k in range(4):
        direction = Noise(20 + k, like=x)()
        rise = float(by_hand(kind, x + step * direction) - by_hand(kind, x - step * direction)) / (2 * step)
        assert float((found * direction).sum()) == pytest.approx(rise, rel=1e-5)


def test_several_terms_are_their_weighted_sum_and_share_one_noise() -> None:
    parts = {kind: score(make(weight=1.0)) for kind, make in TERMS.items()}
    weights = {"text": 2.0, "content": -3.0, "structure": 0.5, "style": 1e-4}
    together = score(*(TERMS[kind](weight=weight) for kind, weight in weights.items()))
    torch.testing.assert_close(together, sum(weight * parts[kind] for kind, weight in weights.items()))
    assert torch.equal(score(text(), image(weight=0.0)), score(text()))


@pytest.mark.parametrize("kind", TERMS)
def test_each_image_s_gradient_is_the_one_it_has_alone(kind: str) -> None:
    together = score(TERMS[kind](weight=1.0))
    for i in range(B):
        own = {"target": TEXT[i : i + 1]} if kind == "text" else {"image": REFERENCE[i : i + 1]}
        alone = score(TERMS[kind](weight=1.0, **own), x=X[i : i + 1], noise=Noise(1 + i, like=X[i : i + 1]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5 * float(alone.abs().max()))


def test_the_official_gram_matrix_makes_an_image_depend_on_its_batch() -> None:
    term = {"weight": 1e-3, "mixes_batch": True}
    together = score(image("style", **term))
    alone = score(image("style", image=REFERENCE[:1], **term), x=X[:1])
    assert float((together[:1] - alone).abs().max()) > 0.01 * float(alone.abs().max())
    single = score(image("style", image=REFERENCE[:1], weight=1e-3), x=X[:1])
    torch.testing.assert_close(single, alone)


def test_targets_weights_and_scales_are_one_for_all_or_one_for_each() -> None:
    same = score(text(target=TEXT[:1]), image(image=REFERENCE[:1]))
    assert torch.equal(
        same, score(text(target=TEXT[:1].expand(B, -1)), image(image=REFERENCE[:1].expand(B, -1, -1, -1)))
    )
    own = torch.tensor([0.0, 1.0, -3.0])
    torch.testing.assert_close(score(text(weight=own)), score(text(weight=1.0)) * own.reshape(B, 1, 1, 1))
    torch.testing.assert_close(score(text(), scale=own), score(text()) * own.reshape(B, 1, 1, 1))
    torch.testing.assert_close(score(text(weight=torch.tensor([2.0]))), score(text(weight=2.0)))


NOTHING: dict[str, tuple[tuple[Any, ...], float]] = {
    "no terms": ((), 1.0),
    "weights of zero": ((text(weight=0.0), image(weight=0.0), image("style", weight=torch.zeros(B))), 1.0),
    "scale zero": ((text(), image()), 0.0),
}


@pytest.mark.parametrize("nothing", NOTHING)
def test_without_weight_it_is_plain_sampling_bit_for_bit_and_the_encoder_is_not_run(nothing: str) -> None:
    path = Path.respaced(SCHEDULE, 10)
    for solver in (DDPM(), DDIM(), Heun()):
        noise = Noise(1, like=X)
        terms, scale = NOTHING[nothing]
        guide = guided(*terms, encoder=never, noise=noise, scale=scale)
        assert guide(X, LEVEL).score is None
        runs = [integrate(plain, solver, path, X, noise=Noise(1, like=X))]
        assert torch.equal(runs[0], integrate(guide, solver, path, X, noise=noise))


def test_references_are_noised_by_a_stream_of_their_own() -> None:
    """The sampler's draws are the same whatever the weights are, and each step has another noise."""
    seen: list[Tensor] = []

    def watching(x: Tensor, t: Tensor) -> ClipFeatures:
        seen.append(x)
        return encoder(x, t)

    noise, untouched = Noise(1, like=X), Noise(1, like=X)
    guide = guided(text(), image(), encoder=watching, noise=noise)
    guide(X, LEVEL), guide(X, LEVEL)
    assert torch.equal(noise(), untouched())
    assert torch.equal(noise.fork("reference")(), untouched.fork("reference")())
    first, second = seen[0], seen[2]  # the references; x follows each
    assert torch.equal(first, noised()) and not torch.equal(first, second)
    torch.testing.assert_close(seen[1].detach(), X)


def test_a_reference_that_is_shared_is_read_once() -> None:
    calls: list[int] = []

    def counting(x: Tensor, t: Tensor) -> ClipFeatures:
        calls.append(x.shape[0])
        return encoder(x, t)

    score(image(), image("style", weight=1.0), image("structure"), encoder=counting)
    assert calls == [B, B]
    score(image(), image(image=REFERENCE.flip(0)), encoder=counting)
    assert calls[2:] == [B, B, B]


def test_a_reference_at_the_clean_end_has_content_one_with_itself() -> None:
    level = Level(0.0, 1.0)
    features = encoder(REFERENCE, torch.zeros(B))
    torch.testing.assert_close(image()(features, features), torch.ones(B))
    flat = score(image(weight=1.0), x=REFERENCE, level=level, denoise=lambda x, _: Prediction(x, x))
    assert float(flat.abs().max()) < 1e-6  # at its highest value a cosine is flat


def test_the_encoder_is_differentiated_and_the_denoiser_is_not() -> None:
    graphs: list[bool] = []

    def denoise(x: Tensor, level: Level) -> Prediction:
        graphs.append(x.requires_grad or torch.is_grad_enabled())
        return plain(x, level)

    with torch.no_grad():
        guided(text(), denoise=denoise)(X, LEVEL)
    assert graphs == [False]


def test_it_works_where_autograd_is_off_and_leaves_no_gradient_behind() -> None:
    terms = (text(), image(), image("style", weight=torch.full((B,), 1e-3)))
    expected = score(*terms)
    with torch.no_grad():
        assert torch.equal(score(*terms), expected)
    with torch.inference_mode():
        inside = (text(target=TEXT.clone()), image(image=REFERENCE.clone()))
        inside = (*inside, image("style", image=REFERENCE.clone(), weight=torch.full((B,), 1e-3)))
        torch.testing.assert_close(score(*inside, x=X.clone(), noise=Noise(1, like=X)).clone(), expected)
    assert not expected.requires_grad
    x = X.clone().requires_grad_()
    assert not score(*terms, x=x).requires_grad and x.grad is None


def test_half_precision_states_are_read_in_float32() -> None:
    assert score(text(), image(), x=X.bfloat16()).dtype == torch.float32


def test_images_at_different_levels_are_guided_as_alone() -> None:
    levels = [SCHEDULE.level(t) for t in (900.5, 30.0, 30.0)]
    rows = guided(text(), image(weight=20.0)).rows(X, levels)
    assert rows.score is not None
    for i, level in enumerate(levels):
        own = X[i : i + 1]
        terms = (text(target=TEXT[i : i + 1]), image(image=REFERENCE[i : i + 1], weight=20.0))
        alone = guided(*terms, noise=Noise(1 + i, like=own))(own, level)
        assert alone.score is not None
        torch.testing.assert_close(rows.x0[i : i + 1], alone.x0)
        torch.testing.assert_close(rows.score[i : i + 1], alone.score, rtol=1e-4, atol=1e-5)


def test_a_schedule_multiplies_the_scale_and_zero_skips_the_encoder() -> None:
    from steerdiff.guidance.scales import scale_at

    for t in (900.0, 400.0, 10.0):
        level = SCHEDULE.level(t)
        factor = scale_at("linear", level, SCHEDULE.T)
        assert 0 <= factor <= 1
        torch.testing.assert_close(
            score(text(), level=level, schedule="linear", T=SCHEDULE.T), factor * score(text(), level=level)
        )


def test_it_nests_with_classifier_guidance_and_with_classifier_free_guidance() -> None:
    def network(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return torch.tanh(x) + context.sum((1, 2)).reshape(-1, 1, 1, 1)

    def classifier(x: Tensor, t: Tensor) -> Tensor:
        return torch.stack([torch.sin((k + 1) * x).sum((1, 2, 3)) for k in range(4)], dim=1)

    cond, uncond = (Condition(context=torch.full((1, 1, 1), value)) for value in (0.3, -0.1))
    inner = NetworkDenoiser(network=ClassifierFree(network=network, cond=cond, uncond=uncond, scale=2.0))
    pulled = ClassifierGuidance(denoise=inner, classifier=classifier, y=1, scale=0.5)
    outer = guided(text(), denoise=pulled)(X, LEVEL)
    assert torch.equal(outer.eps, inner(X, LEVEL).eps) and outer.score is not None
    torch.testing.assert_close(outer.score, score(text()) + pulled(X, LEVEL).score)
    twice = guided(text(), denoise=guided(text(weight=5.0)))(X, LEVEL).score
    torch.testing.assert_close(twice, score(text(weight=7.0)))


def test_ddpm_moves_its_mean_by_the_variance_times_the_gradient() -> None:
    """g enters as mean + Var g, without a factor sqrt(1 - alpha_bar), and DDIM's eps as eps - sqrt(1 - alpha_bar) g."""
    path = Path.respaced(SCHEDULE, 10)
    move, g = path[3], score(text(), level=path[3].here)
    steps = [DDPM().step(denoise, X, move, None, Noise(5, like=X)).x for denoise in (plain, guided(text()))]
    torch.testing.assert_close(steps[1] - steps[0], move.posterior_variance * g, rtol=1e-3, atol=1e-6)
    moved = guided(text())(X, move.here).with_score(move.here.alpha_bar)
    torch.testing.assert_close(
        plain(X, move.here).eps - moved.eps, math.sqrt(1 - move.here.alpha_bar) * g, rtol=1e-3, atol=1e-6
    )


def test_guided_samples_are_more_like_the_text_and_the_more_the_larger_the_weight() -> None:
    path = Path.respaced(SCHEDULE, 25)

    def likeness(weight: float) -> float:
        noise = Noise(1, like=X)
        x = integrate(guided(text(weight=weight), noise=noise), DDPM(), path, X, noise=noise)
        found = functional.cosine_similarity(encoder(x, torch.zeros(B)).vector, TEXT)
        return float(found.mean())

    values = [likeness(weight) for weight in (-300.0, 0.0, 100.0, 300.0)]
    assert values == sorted(values) and values[-1] > values[0] + 0.1


def test_the_ratio_of_shift_and_noise_is_that_of_the_step_made() -> None:
    path = Path.respaced(SCHEDULE, 10)
    ratios: list[Any] = []
    records: list[Record] = []

    def keep(record: Record) -> None:
        records.append(record)
        ratios.append(shift_ratio(record))

    noise = Noise(1, like=X)
    integrate(guided(text(), noise=noise), DDPM(), path, X, noise=noise, callback=keep)
    assert ratios[-1] is None and all(ratio.shape == (B,) for ratio in ratios[:-1])
    record = records[4]
    assert record.step.prediction is not None and record.step.prediction.score is not None
    variance = record.move.posterior_variance
    g = record.step.prediction.score
    torch.testing.assert_close(ratios[4], (variance * g).flatten(1).norm(dim=1) / math.sqrt(variance * g[0].numel()))
    integrate(plain, DDPM(), path, X, noise=Noise(1, like=X), callback=keep)
    assert ratios[-1] is None and ratios[-5] is None


class Sized:
    """An encoder that says what it sees."""

    image_size, name = 16, "sized"

    def __call__(self, x: Tensor, t: Tensor) -> ClipFeatures:
        return encoder(x, t)


def test_a_clean_clip_reads_noisy_images_as_they_are() -> None:
    class Clip:
        name = "clean"

        def feature_maps(self, x: Tensor) -> ClipFeatures:
            return encoder(x, torch.zeros(x.shape[0]))

    clean = UntunedEncoder(clip=Clip())
    assert clean.name == "clean"
    for t in (0.0, 900.0):
        torch.testing.assert_close(clean(X, torch.full((B,), t)).vector, encoder(X, torch.zeros(B)).vector)
    assert encoder_of(Sized()).name == "sized"  # type: ignore[attr-defined]


class Scheduled:
    """An encoder that says what noise it learned."""

    schedule, name = NoiseSchedule.cosine(1000), "scheduled"

    def __call__(self, x: Tensor, t: Tensor) -> ClipFeatures:
        return encoder(x, t)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: text(target=TEXT[0]), r"the target of a text is \[5\]; give \[1, D\] or \[B, D\]"),
        (lambda: text(weight=math.nan), "weight is nan; it must be a finite number, or a tensor"),
        (lambda: image(image=REFERENCE[0]), r"a reference is \[3, 8, 8\]; give \[1, C, H, W\]"),
        (lambda: image("shape"), "the image loss is 'shape'; known are content, structure, style"),
        (lambda: guided(text(), scale=math.inf), "scale is inf; it must be a finite number"),
        (lambda: guided(text(), time_scale=0.0), "time_scale is 0.0; it must be positive"),
        (lambda: guided(image(), noise=None), "a reference is noised at each step; give noise="),
        (lambda: score(text(target=TEXT[:2])), r"the text's features are \[2, 5\] and the images' \[3, 5\]"),
        (lambda: score(text(weight=torch.ones(2))), "2 weights were given for 3 images; give one, or one for each"),
        (lambda: score(text(), scale=torch.ones(2)), "2 scales were given for 3 images; give one, or one for each"),
        (lambda: score(image(image=REFERENCE[:2])), r"a reference is \[2, 3, 8, 8\] and the state \[3, 3, 8, 8\]"),
        (lambda: score(image(image=pictures(1, 4))), r"a reference is \[1, 3, 4, 4\] and the state"),
        (lambda: score(image(), noise=Noise(0, (1, 3, 8, 8))), r"the noise is \[1, 3, 8, 8\] and the state"),
        (lambda: score(image("style", layers=(5,))), r"layers are \[5\]; this encoder has 2 maps"),
        (
            lambda: score(text(), encoder=Sized()),
            r"the encoder sees images of 16 x 16 pixels; the state is \[3, 3, 8, 8\]",
        ),
        (
            lambda: check_encoder(Sized(), formula_model(plain, 8)),
            "the CLIP 'sized' sees images of 16 x 16 pixels; custom",
        ),
        (
            lambda: check_encoder(Scheduled(), formula_model(plain, 8)),
            "the CLIP 'scheduled' learned other noise levels than those of custom; tune one with its schedule",
        ),
        (lambda: encoder_of(object()), "object reads no noisy images; give a noisy CLIP, or a CLIP"),
        (
            lambda: score(text(), encoder=lambda x, t: ClipFeatures((), encoder(x, t).vector.detach())),
            "the encoder's features carry no gradient",
        ),
    ],
)
def test_bad_guidance_gets_a_clear_error(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()

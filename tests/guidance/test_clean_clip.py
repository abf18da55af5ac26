"""Guidance by a CLIP of clean images: its gradient through the network, its neutral settings, its independence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from steerdiff import UserError
from steerdiff.guidance import ClassifierGuidance
from steerdiff.guidance.augment import ExtendingAugmentations
from steerdiff.guidance.clean_clip import BackgroundLoss, CleanClipGuidance, Region
from steerdiff.guidance.distances import geodesic, range_loss
from steerdiff.samplers import (
    DDIM,
    DDPM,
    RK45,
    Denoiser,
    Level,
    NetworkDenoiser,
    Noise,
    NoiseSchedule,
    Path,
    Prediction,
    integrate,
)

from .toys import Recording, half_mask, pictures, tiny_text_model

SIZE = 8
SCHEDULE = NoiseSchedule.cosine(100)
LEVEL = SCHEDULE.level(60)
X = Noise(3, (3, 3, SIZE, SIZE))().double()
ONE_VIEW = ExtendingAugmentations(views=1)


@dataclass(frozen=True, eq=False)
class TinyEncoder:
    """A random network in the place of a CLIP's image tower."""

    net: nn.Module
    size: int = SIZE

    def image_features(self, image: Tensor) -> Tensor:
        assert image.shape[1:] == (3, self.size, self.size)
        return functional.normalize(self.net(image).flatten(1), dim=1)


def encoder(size: int = SIZE, seed: int = 1) -> TinyEncoder:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Tanh(), nn.Conv2d(8, 5, size // 2 - 1)).double()
    return TinyEncoder(net.requires_grad_(False), size)


CLIP = encoder()
TARGETS = functional.normalize(Noise(8, (3, 5))().double(), dim=1)


def network_denoiser(**fields: Any) -> Denoiser:
    """The tiny UNet in float64 throughout: its norms would compute in float32, too coarse for differences."""
    model = tiny_text_model()
    network = model.network.double()  # type: ignore[attr-defined]
    for layer in network.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.__class__ = nn.GroupNorm
    context = model.condition("a cat").context.double().expand(3, -1, -1)  # type: ignore[union-attr]
    return NetworkDenoiser(
        network=lambda x, t: network(x, t, context=context[: len(x)]), parameterization="v", **fields
    )


DENOISE = network_denoiser()


def guided(images: int = 3, **fields: Any) -> CleanClipGuidance:
    base: dict[str, Any] = {
        "denoise": DENOISE,
        "clip": CLIP,
        "regions": [Region(target=TARGETS[:images], mask=half_mask(SIZE))],
        "noise": Noise(4, X[:images].shape),
        "T": 100,
    }
    return CleanClipGuidance(**base | fields)


def score(x: Tensor = X, level: Level = LEVEL, **fields: Any) -> Tensor:
    with torch.no_grad():
        found = guided(len(x), **fields)(x, level).score
    assert found is not None
    return found


BACKGROUND = BackgroundLoss(
    image=pictures(3, SIZE).double(), mask=half_mask(SIZE), perceptual=lambda a, b: (a - b).abs().flatten(1).sum(1)
)
TWO = [
    Region(target=TARGETS, mask=half_mask(SIZE), weight=torch.tensor([1.0, 0.5, 2.0])),
    Region(target=TARGETS.flip(0), mask=1 - half_mask(SIZE), weight=0.7),
]
KINDS: dict[str, dict[str, Any]] = {
    "as in the code": {},
    "as in the paper": {"mix": False},
    "one view": {"augmentations": ONE_VIEW},
    "with a background": {"background": BACKGROUND, "scale": 30.0},
    "two regions": {"regions": TWO, "scale": torch.tensor([3.0, -1.0, 10.0])},
    "whole": {"sees": "whole"},
    "composite": {"sees": "composite", "image": pictures(3, SIZE).double()},
    "no CLIP": {"scale": 0.0, "range_scale": 70.0},
    "a smaller CLIP": {"clip": encoder(4)},
    "a larger CLIP": {"clip": encoder(12)},
    "checkpoint": {"checkpoint": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_is_minus_the_central_difference_of_the_loss(kind: str) -> None:
    found = score(**KINDS[kind])

    def loss(x: Tensor) -> Tensor:
        fresh = guided(**KINDS[kind])  # a fresh stream: the same views
        return fresh.loss(x, DENOISE(x, LEVEL).x0, [LEVEL])

    with torch.no_grad():
        for seed in (0, 1):
            direction, h = Noise(20 + seed, X.shape)().double(), 1e-5
            slope = (loss(X + h * direction) - loss(X - h * direction)) / (2 * h)
            expected = (found * direction).sum((1, 2, 3))
            torch.testing.assert_close(-slope, expected, rtol=1e-6, atol=1e-7)


def test_the_loss_is_the_one_written_in_the_paper_s_code() -> None:
    x0, fac = DENOISE(X, LEVEL).x0.detach(), math.sqrt(1 - LEVEL.alpha_bar)
    seen = (fac * x0 + (1 - fac) * X) * half_mask(SIZE)
    expected = 1000 * geodesic(CLIP.image_features(seen), TARGETS) + 50 * range_loss(x0)
    torch.testing.assert_close(guided(augmentations=ONE_VIEW).loss(X, x0, [LEVEL]), expected)
    plain = 1000 * geodesic(CLIP.image_features(x0 * half_mask(SIZE)), TARGETS) + 50 * range_loss(x0)
    torch.testing.assert_close(guided(augmentations=ONE_VIEW, mix=False).loss(X, x0, [LEVEL]), plain)
    eight = guided().loss(X, x0, [LEVEL])
    augmentations = ExtendingAugmentations()
    views = augmentations(seen, augmentations.stream(Noise(4, X.shape)))
    each = torch.stack([geodesic(CLIP.image_features(views[:, k]), TARGETS) for k in range(8)])
    torch.testing.assert_close(eight, 1000 * each.mean(0) + 50 * range_loss(x0))


def test_regions_are_weighted_and_added() -> None:
    x0 = DENOISE(X, LEVEL).x0.detach()
    fields: dict[str, Any] = {"augmentations": ONE_VIEW, "range_scale": 0.0}
    both = guided(regions=TWO, **fields).loss(X, x0, [LEVEL])
    first, second = (guided(regions=[one], **fields).loss(X, x0, [LEVEL]) for one in TWO)
    torch.testing.assert_close(both, first + second)
    assert not torch.allclose(first, guided(regions=[replace(TWO[0], weight=1.0)], **fields).loss(X, x0, [LEVEL]))


@pytest.mark.parametrize("kind", ["as in the code", "with a background", "two regions", "composite", "checkpoint"])
def test_each_image_s_score_is_the_one_it_has_alone(kind: str) -> None:
    fields = KINDS[kind]
    together = score(**fields)
    for k in range(3):
        own = {"regions": [Region(target=TARGETS[k : k + 1], mask=half_mask(SIZE))], **fields}
        own["regions"] = [_row(region, k) for region in fields.get("regions", guided().regions)]
        if torch.is_tensor(own.get("scale")):
            own["scale"] = own["scale"][k : k + 1]
        if "image" in own:
            own["image"] = own["image"][k : k + 1]
        if "background" in own:
            own["background"] = replace(BACKGROUND, image=BACKGROUND.image[k : k + 1])
        alone = score(X[k : k + 1], **{**own, "noise": Noise(4 + k, (1, 3, SIZE, SIZE))})
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-9, atol=1e-9)


def _row(region: Region, k: int) -> Region:
    weight = region.weight[k : k + 1] if isinstance(region.weight, Tensor) else region.weight
    return replace(region, target=region.target[k : k + 1], weight=weight)


def test_one_call_of_the_network_gives_prediction_and_gradient() -> None:
    calls = Recording(DENOISE.network)  # type: ignore[attr-defined]
    with torch.no_grad():
        prediction = guided(denoise=replace(DENOISE, network=calls))(X, LEVEL)  # type: ignore[type-var]
        plain = DENOISE(X, LEVEL)
    assert calls.rows == [3]
    assert torch.equal(prediction.x0, plain.x0) and torch.equal(prediction.eps, plain.eps)
    assert not any(one.requires_grad for one in (prediction.x0, prediction.eps, prediction.score) if one is not None)


class Broken:
    size = SIZE

    def image_features(self, image: Tensor) -> Tensor:
        raise AssertionError


NEUTRAL: dict[str, dict[str, Any]] = {
    "scales of zero": {"scale": 0.0, "range_scale": 0.0},
    "zero for each image": {"scale": torch.zeros(3), "range_scale": 0.0},
    "no region": {"regions": []},
    "regions without weight": {"regions": [Region(target=TARGETS, weight=torch.zeros(3))]},
    "a background of no weight": {
        "scale": 0.0,
        "range_scale": 0.0,
        "background": replace(BACKGROUND, mse_scale=0.0, perceptual_scale=0.0),
    },
}


@pytest.mark.parametrize("kind", NEUTRAL)
def test_neutral_settings_are_the_unguided_denoiser_bit_for_bit_without_a_gradient(kind: str) -> None:
    seen: list[bool] = []

    def watching(x: Tensor, level: Level) -> Prediction:
        seen.append(torch.is_grad_enabled() or x.requires_grad)
        return DENOISE(x, level)

    path = Path.respaced(SCHEDULE, 6)
    for solver in (DDPM(), DDIM()):
        runs = [
            integrate(denoise, solver, path, X, noise=Noise(1, like=X))
            for denoise in (DENOISE, guided(denoise=watching, clip=Broken(), **NEUTRAL[kind]))
        ]
        assert torch.equal(*runs)
    assert seen and not any(seen)


def test_an_image_that_is_asked_nothing_has_the_score_zero_beside_others() -> None:
    found = score(regions=[Region(target=TARGETS, weight=torch.tensor([1.0, 0.0, 2.0]))])
    assert not found[1].any() and found[0].any() and found[2].any()


def test_scales_are_linear_and_one_for_all_or_one_for_each() -> None:
    each = score(scale=torch.tensor([2.0, 0.0, -1.0]), range_scale=0.0)
    one = score(scale=1.0, range_scale=0.0)
    torch.testing.assert_close(each, torch.tensor([2.0, 0.0, -1.0]).double().reshape(3, 1, 1, 1) * one)


def test_the_schedule_of_the_scale_leaves_the_range_term_alone() -> None:
    levels = [SCHEDULE.level(t) for t in (5, 60)]
    for level in levels:
        shares = [
            score(level=level, schedule=schedule, range_scale=0.0) / score(level=level, range_scale=0.0)
            for schedule in ("constant", "linear")
        ]
        torch.testing.assert_close(shares[0], torch.ones_like(X))
        assert float(shares[1].std()) < 1e-9
    only_range = [score(scale=0.0, range_scale=3.0, schedule=schedule) for schedule in ("constant", "linear")]
    assert torch.equal(*only_range)


def test_images_at_different_levels_are_guided_as_alone() -> None:
    levels = [SCHEDULE.level(t) for t in (90, 30, 30)]
    with torch.no_grad():
        rows = guided(augmentations=ONE_VIEW).rows(X, levels)
        for k, level in enumerate(levels):
            one = guided(1, regions=[Region(target=TARGETS[k : k + 1], mask=half_mask(SIZE))], augmentations=ONE_VIEW)(
                X[k : k + 1], level
            )
            for name in ("x0", "eps", "score"):
                torch.testing.assert_close(getattr(rows, name)[k : k + 1], getattr(one, name))


def linear_classifier(x: Tensor, t: Tensor) -> Tensor:
    return torch.stack([x.sum((1, 2, 3)), torch.sin(x).sum((1, 2, 3))], dim=1)


def test_a_guided_denoiser_is_guided_again_and_scores_add() -> None:
    inner = ClassifierGuidance(denoise=DENOISE, classifier=linear_classifier, y=1, scale=2.0)
    with torch.no_grad():
        first = inner(X, LEVEL).score
        outer = guided(denoise=inner)(X, LEVEL).score
        twice = guided(denoise=guided(scale=3.0))(X, LEVEL)
        around = ClassifierGuidance(denoise=guided(), classifier=linear_classifier, y=1, scale=2.0)(X, LEVEL).score
    assert first is not None and outer is not None and around is not None and twice.score is not None
    torch.testing.assert_close(outer, first + score())
    torch.testing.assert_close(around, outer)
    torch.testing.assert_close(twice.score, score() + score(scale=3.0))
    assert not twice.x0.requires_grad


def test_where_autograd_is_on_the_prediction_keeps_its_graph_and_the_score_has_none() -> None:
    x = X.clone().requires_grad_()
    prediction = guided()(x, LEVEL)
    assert prediction.score is not None and not prediction.score.requires_grad and x.grad is None
    (found,) = torch.autograd.grad(prediction.x0.square().sum(), x)
    (expected,) = torch.autograd.grad(DENOISE(x, LEVEL).x0.square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_it_works_in_inference_mode() -> None:
    with torch.inference_mode():
        found = guided()(X.clone(), LEVEL).score
    assert found is not None
    torch.testing.assert_close(found, score())


def test_the_views_do_not_move_the_noise_of_the_sampler() -> None:
    path, runs = Path.respaced(SCHEDULE, 4), []
    for views in (1, 3, 8):
        noise = Noise(2, like=X)
        drawn: list[Tensor] = []
        fields: dict[str, Any] = {"noise": noise, "augmentations": ExtendingAugmentations(views=views)}
        integrate(guided(**fields), Drawing(drawn), path, noise(), noise=noise)
        runs.append(torch.stack(drawn))
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


@dataclass(frozen=True)
class Drawing:
    """DDPM's steps; keeps what the sampler's noise would give next."""

    drawn: list[Tensor]
    order = 1

    def step(self, denoise: Denoiser, x: Tensor, move: Any, state: Any, noise: Noise) -> Any:
        made = DDPM().step(denoise, x, move, state, noise)
        self.drawn.append(noise())
        return made


def test_one_view_is_the_guidance_without_augmentations_and_needs_no_noise() -> None:
    found = score(augmentations=ONE_VIEW, noise=None)
    never = ExtendingAugmentations(views=4, probability=0.0)
    torch.testing.assert_close(score(augmentations=never), found)


def test_it_pulls_the_prediction_towards_the_text() -> None:
    """A step against the loss's gradient: CLIP's distance of the predicted image falls, for every image."""
    x = X.clone()
    distances = []
    for _ in range(5):
        with torch.no_grad():
            x0 = DENOISE(x, LEVEL).x0
            distances.append(geodesic(CLIP.image_features(x0 * half_mask(SIZE)), TARGETS))
            found = score(x, mix=False, augmentations=ONE_VIEW, range_scale=0.0, scale=1.0)
            x = x + 0.05 * found / found.square().sum((1, 2, 3), keepdim=True).sqrt()
    assert (torch.stack(distances).diff(dim=0) < 0).all()


def test_the_adaptive_solver_asks_it_row_by_row() -> None:
    denoise = guided(augmentations=ONE_VIEW, scale=5.0)
    path = Path.respaced(SCHEDULE, 2)
    found = integrate(denoise, RK45(between=SCHEDULE, rtol=1e-2, atol=1e-2), path, X)
    assert found.isfinite().all()


def test_the_background_is_compared_with_the_masked_image_or_as_the_code_does_with_all_of_it() -> None:
    view, image, keep = X, BACKGROUND.image, 1 - half_mask(SIZE)
    masked, whole = (
        replace(BACKGROUND, perceptual=None, mse_scale=2.0, reference=reference)(view)
        for reference in ("masked", "whole")
    )
    torch.testing.assert_close(masked, 2 * ((view - image) * keep).square().flatten(1).mean(1))
    torch.testing.assert_close(whole, 2 * (view * keep - image).square().flatten(1).mean(1))
    assert not replace(BACKGROUND, perceptual=None, mse_scale=0.0).acts and BACKGROUND.acts


def regions(rows: int) -> Sequence[Region]:
    return [Region(target=TARGETS[:rows])]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guided(scale=math.nan), "scale is nan; it must be a finite number, or a tensor"),
        (lambda: guided(range_scale=math.inf), "range_scale is inf; it must be a finite number"),
        (lambda: guided(sees="half"), "sees is 'half'; known are masked, whole, composite"),
        (lambda: guided(sees="composite"), "sees is 'composite', which shows CLIP the region in the image; give image"),
        (lambda: guided(noise=None), "the views of an image are drawn; give noise, or take 1 view"),
        (lambda: score(regions=regions(2)), "2 targets for 3 images were given; give one, or one for each"),
        (lambda: score(scale=torch.ones(2)), "2 scales for 3 images were given; give one, or one for each"),
        (lambda: score(noise=Noise(0, (2, 1))), "3 images are to be augmented by the random numbers of 2"),
        (lambda: score(denoise=lambda x, level: _without(x, level)), "prediction carries no gradient"),
    ],
)
def test_bad_guidance_gets_a_clear_error(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def _without(x: Tensor, level: Level) -> Prediction:
    with torch.no_grad():
        return DENOISE(x, level)

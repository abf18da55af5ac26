"""Blended Diffusion on small models: the exact background, its two forms, its neutral limits, its ranking."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from steerdiff import UserError
from steerdiff.guidance import Model
from steerdiff.guidance.clean_clip import Region
from steerdiff.guidance.clip_guidance import shift_ratio
from steerdiff.guidance.distances import geodesic
from steerdiff.methods import SDEdit
from steerdiff.methods.blended_diffusion import PRESETS, BlendedDiffusion
from steerdiff.methods.blending import candidate_seeds, distances, region_of
from steerdiff.models.clip import normalised
from steerdiff.samplers import DDIM, DDPM, Noise, NoiseSchedule, Path, Record, integrate
from steerdiff.samplers.constraints import KnownRegion

from ..guidance.toys import Recording, formula_model, gaussian_eps, half_mask, pictures, tiny_text_model
from .tiny_clips import load_tiny, tiny_clip

SIZE = 8
SMALL = BlendedDiffusion(steps=8, skip_timesteps=2, views=3, clip_scale=40.0, range_scale=5.0)
OFF = dataclasses.replace(SMALL, clip_scale=0.0, range_scale=0.0)
MASK = half_mask(SIZE)
IMAGES = pictures(3, SIZE) * 0.9


@pytest.fixture(autouse=True)
def tiny_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small CLIPs in the place of files."""
    monkeypatch.setattr("steerdiff.methods.blended_diffusion.load_cached", load_tiny)
    monkeypatch.setattr(
        "steerdiff.methods.blended_diffusion.perceptual", lambda *_: lambda a, b: (a - b).abs().flatten(1).mean(1)
    )


def gaussian(size: int = SIZE) -> Model:
    schedule = NoiseSchedule.linear(1000)
    return formula_model(gaussian_eps(schedule), size, schedule, name="plain")


def with_(method: BlendedDiffusion = SMALL, **fields: Any) -> BlendedDiffusion:
    return dataclasses.replace(method, **fields)


@pytest.mark.parametrize(
    "method",
    [
        SMALL,
        with_(clip_scale=1e6),  # absurd: the region bursts, the background does not
        with_(background_level="t"),
        with_(blends=False),
        with_(PRESETS["algorithm1"], steps=8, skip_timesteps=2, views=2),
        with_(sees="composite", solver=DDIM(eta=0.3)),
        with_(candidates=3),
    ],
    ids=lambda method: str(dataclasses.asdict(method))[:20],
)
def test_the_background_is_the_image_to_the_bit_whatever_the_weights(method: BlendedDiffusion) -> None:
    found = method(tiny_text_model(), IMAGES, MASK, prompt="a cat")
    kept = (MASK == 0).expand_as(IMAGES)
    assert torch.equal(found[kept], IMAGES[kept])
    assert not torch.isclose(found[~kept], IMAGES[~kept]).any(dim=0).all()


def test_without_enforcing_it_the_background_is_what_the_network_predicts() -> None:
    loose = with_(enforces_background=False)(tiny_text_model(), IMAGES, MASK, prompt="a cat")
    exact = SMALL(tiny_text_model(), IMAGES, MASK, prompt="a cat")
    inside = MASK.bool().expand_as(IMAGES)
    assert torch.equal(loose[inside], exact[inside]) and not torch.equal(loose[~inside], IMAGES[~inside])


@pytest.mark.parametrize("neutral", ["scales of zero", "an empty prompt"])
@pytest.mark.parametrize("everywhere", [True, False])
def test_without_a_pull_it_is_sdedit_with_the_same_noise(neutral: str, everywhere: bool) -> None:
    model = tiny_text_model()
    method, prompt = (OFF, "a cat") if neutral == "scales of zero" else (SMALL, "")
    mask = None if everywhere else MASK
    found = method(model, IMAGES, mask, prompt=prompt, seed=3)
    path = Path.respaced(model.schedule, 8)[2:]
    noise = Noise(3, like=IMAGES)
    start = model.schedule.q_sample(IMAGES, path.start, noise())
    held = [] if everywhere else [KnownRegion(IMAGES, keep=1 - MASK)]
    expected = integrate(model.denoiser(clip="none"), DDPM(), path, start, constraints=held, noise=noise)
    assert torch.equal(found, expected)


def test_the_published_path_starts_at_the_seventy_fifth_of_a_hundred_levels_as_sdedit_s() -> None:
    model = gaussian()
    published = BlendedDiffusion().path(model)
    assert len(published) == 75 and published.start == Path.respaced(model.schedule, 100).from_level(74).start
    image = pictures(1, SIZE)
    found = with_(BlendedDiffusion(), clip_scale=0.0, range_scale=0.0)(model, image, prompt="a cat", seed=5)
    assert torch.equal(found, SDEdit(t0=0.75, repeats=1, steps=100, solver=DDPM())(model, image, seed=5))


def test_the_result_is_what_the_last_call_predicts_and_not_the_guided_step() -> None:
    records: list[Record] = []
    method = with_(solver=DDPM(variance="fixed_large"))  # the other variance is 0 at the end, where nothing would show
    found = method(tiny_text_model(), IMAGES, prompt="a cat", callback=records.append)
    last = records[-1]
    assert last.move.there.clean and last.step.prediction is not None
    assert torch.equal(found, last.step.prediction.x0)
    assert last.step.prediction.score is not None and last.step.prediction.score.any()


def test_each_step_blends_the_image_in_at_the_level_of_the_state_or_as_the_code_does_at_the_one_before() -> None:
    for level in ("t_next", "t"):
        records: list[Record] = []
        method = with_(OFF, background_level=level)
        method(tiny_text_model(), IMAGES, MASK, prompt="a cat", seed=7, callback=records.append)
        reference = Noise(7, like=IMAGES).fork("reference")
        for record in records[:-1]:
            at = record.move.there if level == "t_next" else record.move.here
            expected = at.alpha_bar**0.5 * IMAGES + (1 - at.alpha_bar) ** 0.5 * reference()
            kept = (MASK == 0).expand_as(IMAGES)
            torch.testing.assert_close(record.step.x[kept], expected[kept])


def test_the_background_loss_holds_what_blending_would_replace() -> None:
    """Algorithm 1: the larger the weights of the background, the nearer the prediction stays to it."""
    base = with_(blends=False, enforces_background=False, clip_scale=0.0)
    errors = []
    for scale in (0.0, 200.0, 1000.0):
        found = with_(base, mse_scale=scale, range_scale=1e-6)(gaussian(), IMAGES, MASK, prompt="a cat", seed=1)
        errors.append(float((found - IMAGES)[..., SIZE // 2 :].square().mean()))
    assert errors[0] > 1.2 * errors[1] > 1.2 * errors[2]


def test_guidance_brings_the_region_nearer_to_the_text_in_clip() -> None:
    clip, model = tiny_clip("emoji64-clip"), gaussian()
    regions = [region_of(model, clip, MASK, "a cat", 3)]
    off, on = (
        distances(clip, method(model, IMAGES, MASK, prompt="a cat", seed=2), regions, IMAGES, "masked")
        for method in (OFF, with_(steps=20, skip_timesteps=5, clip_scale=300.0))
    )
    assert (on < 0.9 * off).all()


def test_the_denoiser_knows_the_text_only_if_guidance_says_so() -> None:
    model = tiny_text_model()
    told = with_(OFF, guidance=2.0)
    assert torch.equal(OFF(model, IMAGES, prompt="a cat"), OFF(model, IMAGES, prompt="a dog"))
    assert not torch.equal(told(model, IMAGES, prompt="a cat"), told(model, IMAGES, prompt="a dog"))


def test_one_network_call_a_step() -> None:
    network = Recording(gaussian_eps(NoiseSchedule.linear(1000)))
    SMALL(formula_model(network, SIZE, NoiseSchedule.linear(1000)), IMAGES, MASK, prompt="a cat")
    assert network.rows == [3] * 6


def test_image_k_of_a_batch_is_image_k_alone_with_its_own_mask_prompt_and_candidates() -> None:
    model, prompts = tiny_text_model(), ["a cat", "", "a red dog"]
    masks = torch.cat([MASK, 1 - MASK, MASK])
    method = with_(candidates=2, mse_scale=3.0, perceptual_scale=2.0)
    together = method(model, IMAGES, masks, prompt=prompts, seed=4)
    for k in range(3):
        alone = method(model, IMAGES[k : k + 1], masks[k : k + 1], prompt=prompts[k], seed=4 + k)
        torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=2e-5)  # float32 sums in another order


def test_the_number_of_views_does_not_move_the_sampler_s_noise() -> None:
    """With a pull of almost nothing, one view and eight end at the same image."""
    one, eight = (
        with_(clip_scale=1e-6, range_scale=0.0, views=views)(tiny_text_model(), IMAGES, MASK, prompt="a cat")
        for views in (1, 8)
    )
    torch.testing.assert_close(one, eight, rtol=0, atol=1e-4)


def test_several_masks_follow_texts_of_their_own_and_the_rest_is_kept() -> None:
    model = tiny_text_model()
    quarter = torch.zeros(1, 1, SIZE, SIZE)
    quarter[..., SIZE // 2 :, SIZE // 2 :] = 1
    both = SMALL(model, IMAGES, MASK, prompt="a cat", also=[(quarter, "a dog")], seed=1)
    kept = ((MASK + quarter) == 0).expand_as(IMAGES)
    assert torch.equal(both[kept], IMAGES[kept]) and not torch.equal(both[~kept], IMAGES[~kept])
    silent = SMALL(model, IMAGES, MASK, prompt="a cat", also=[(quarter, "")], seed=1)
    other = SMALL(model, IMAGES, MASK, prompt="a cat", also=[(quarter, "a red dog")], seed=1)
    assert not torch.equal(both, silent) and not torch.equal(both, other)
    same = SMALL(model, IMAGES, quarter, prompt="a dog", also=[(MASK, "a cat")], seed=1)
    torch.testing.assert_close(same, both, rtol=0, atol=2e-5)  # the order of the masks says nothing


def test_the_best_of_the_candidates_is_returned_and_the_first_is_the_plain_run() -> None:
    model, clip = tiny_text_model(), tiny_clip("emoji64-clip")
    seeds = candidate_seeds(9, IMAGES, 4)
    assert list(seeds[0]) == [9, 10, 11] and len({seed for row in seeds for seed in row}) == 12
    drawn = [SMALL(model, IMAGES, MASK, prompt="a cat", seed=list(row)) for row in seeds]
    regions = [region_of(model, clip, MASK, "a cat", 3)]
    for ranking in ("guidance", "official"):
        ranks = torch.stack([distances(clip, one, regions, IMAGES, "masked", ranking) for one in drawn])
        best = torch.stack(drawn)[ranks.argmin(0), torch.arange(3)]
        found = with_(candidates=4, ranking=ranking)(model, IMAGES, MASK, prompt="a cat", seed=9)
        torch.testing.assert_close(found, best)
    assert len(ranks.argmin(0).unique()) > 1  # the seeds make it a choice


@pytest.mark.parametrize("ranking", ["guidance", "official"])
def test_the_rank_of_an_image_does_not_depend_on_its_batch(ranking: Any) -> None:
    clip, model = tiny_clip("emoji64-clip"), tiny_text_model()
    results = pictures(5, SIZE, seed=3)
    image = IMAGES[:1].expand(5, -1, -1, -1)
    together = distances(clip, results, [region_of(model, clip, MASK, "a cat", 5)], image, "masked", ranking)
    for k in range(5):
        one = [region_of(model, clip, MASK, "a cat", 1)]
        alone = distances(clip, results[k : k + 1], one, image[:1], "masked", ranking)
        torch.testing.assert_close(alone, together[k : k + 1])
    order = torch.tensor([3, 1, 4, 0, 2])
    shuffled = distances(clip, results[order], [region_of(model, clip, MASK, "a cat", 5)], image, "masked", ranking)
    assert shuffled.argsort().tolist() == [order.tolist().index(k) for k in together.argsort().tolist()]


def test_the_official_ranking_shows_clip_the_region_on_black_and_without_its_normalisation() -> None:
    clip, model = tiny_clip("emoji64-clip"), tiny_text_model()
    target = clip.text_features(["a cat"])
    region = Region(target=target, mask=MASK)
    found = distances(clip, IMAGES, [region], IMAGES, "masked", "official")
    raw = (IMAGES + 1) / 2 * MASK
    vectors = torch.nn.functional.normalize(clip.network.encode_image(raw), dim=1)
    torch.testing.assert_close(found, geodesic(vectors, target))
    grey = torch.nn.functional.normalize(clip.network.encode_image(normalised(IMAGES * MASK)), dim=1)
    ours = distances(clip, IMAGES, [region_of(model, clip, MASK, "a cat", 3)], IMAGES, "masked")
    torch.testing.assert_close(ours, geodesic(grey, target))


def test_the_callback_sees_how_far_guidance_moves_each_step() -> None:
    ratios: list[Tensor] = []

    def keep(record: Record) -> None:
        ratio = shift_ratio(record)
        if ratio is not None:
            ratios.append(ratio)

    SMALL(tiny_text_model(), IMAGES, MASK, prompt="a cat", callback=keep)
    assert len(ratios) == 5 and all(ratio.shape == (3,) and (ratio > 0).all() for ratio in ratios)


def test_checkpoints_change_no_bit_that_matters() -> None:
    found = [with_(checkpoint=flag)(tiny_text_model(), IMAGES, MASK, prompt="a cat") for flag in (False, True)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


def test_it_works_in_inference_mode() -> None:
    model = tiny_text_model()
    expected = SMALL(model, IMAGES, MASK, prompt="a cat")
    with torch.inference_mode():
        assert torch.equal(SMALL(model, IMAGES.clone(), MASK.clone(), prompt="a cat"), expected)


def latent_model() -> Model:
    return dataclasses.replace(tiny_text_model(), autoencoder=object())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.zeros(1, 1, SIZE, SIZE)}, "the mask selects nothing; give one that is 1 where"),
        (
            {"mask": torch.cat([MASK, 0 * MASK, MASK])},
            "the mask of image 1 selects nothing; give one that is 1 where",
        ),
        ({"also": [(0 * MASK, "a dog")]}, "the mask selects nothing"),
        ({"mask": MASK.expand(2, -1, -1, -1)}, "2 masks were given for 3 images; give one, or one for each"),
        ({"prompt": ["a cat", "a dog"]}, "2 prompts were given for 3 images; give one, or one for each"),
        ({"prompt": "a blorp"}, "'a blorp' has words that this CLIP does not know: 'blorp'"),
        ({"prompt": "a a a a a"}, "has 5 tokens and this model reads at most 4"),
        ({"model": latent_model()}, "tiny works on latents, which CLIP cannot see; use a model of pixels"),
    ],
)
def test_bad_input_is_a_clear_error_before_the_network_is_called(change: dict[str, Any], message: str) -> None:
    network = Recording(tiny_text_model().network)
    arguments = {"model": tiny_text_model(network=network), "image": IMAGES, "mask": MASK, "prompt": "a cat"} | change
    with pytest.raises(UserError, match=message):
        SMALL(**arguments)
    assert network.rows == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlendedDiffusion(views=0), "views is 0; there must be at least 1"),
        (lambda: BlendedDiffusion(skip_timesteps=-1), "skip_timesteps is -1; it must be at least 0"),
        (lambda: BlendedDiffusion(candidates=0), "candidates is 0; draw at least 1"),
        (lambda: BlendedDiffusion(ranking="ours"), "ranking is 'ours'; known are 'guidance' and 'official'"),
        (lambda: BlendedDiffusion(background_level="s"), "background_level is 's'; known are 't_next' and 't'"),
        (
            lambda: with_(skip_timesteps=8)(tiny_text_model(), IMAGES, prompt="a cat"),
            "skip_timesteps is 8 of 8 steps; leave at least one",
        ),
    ],
)
def test_settings_out_of_range_are_a_clear_error(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()

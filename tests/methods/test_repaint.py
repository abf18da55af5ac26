"""RePaint on exact models: its schedule, its known region, and the claim of the paper in one number."""

from __future__ import annotations

import math

import pytest
import torch

from steerdiff import UserError
from steerdiff.guidance import Model
from steerdiff.methods import RePaint
from steerdiff.samplers import DDPM, Noise, NoiseSchedule, Path, integrate

from ..guidance.toys import Recording, formula_model, gaussian_eps, half_mask, paired_eps, pictures

SCHEDULE = NoiseSchedule.linear(1000)
STD = 0.25


def gaussian(size: int = 16) -> Model:
    return formula_model(gaussian_eps(SCHEDULE, 0.0, STD), size, SCHEDULE)


@pytest.mark.parametrize(
    ("method", "moves", "calls"),
    [
        (RePaint(), 4570, 2410),
        (RePaint(jump_n_sample=5), 2170, 1210),
        (RePaint(jump_n_sample=20), 9370, 4810),
        (RePaint(steps=100), 1720, 910),
        (RePaint(jump_n_sample=1), 250, 250),
    ],
)
def test_published_schedules_have_their_published_lengths(method: RePaint, moves: int, calls: int) -> None:
    path = method.path(gaussian())
    assert (len(path), sum(move.kind == "denoise" for move in path)) == (moves, calls)
    assert path.end.clean and sum(move.there.clean for move in path) == 1


def test_one_visit_of_each_segment_is_one_call_a_step() -> None:
    network = Recording(gaussian_eps(SCHEDULE))
    RePaint(steps=20, jump_length=5, jump_n_sample=1)(formula_model(network, 8, SCHEDULE), pictures(1, 8), half_mask(8))
    assert len(network.rows) == 20


def test_the_known_region_is_exact_after_the_paper_and_nearly_after_the_official_code() -> None:
    image, mask = pictures(2, 16) * 0.5, half_mask(16)
    kept = (mask == 0).expand_as(image)
    method = RePaint(steps=30, jump_length=5, jump_n_sample=2)
    result = method(gaussian(), image, mask)
    assert torch.equal(result[kept], image[kept]) and not torch.equal(result[~kept], image[~kept])
    official = RePaint(steps=30, jump_length=5, jump_n_sample=2, merge="official")(gaussian(), image, mask)
    off = float((official[kept] - image[kept]).abs().mean())
    assert 0 < off < 0.02


def test_nothing_to_fill_returns_the_image() -> None:
    image = pictures(2, 16)
    result = RePaint(steps=20, jump_length=5, jump_n_sample=2)(gaussian(), image, torch.zeros(1, 1, 16, 16))
    assert torch.equal(result, image)


@pytest.mark.parametrize("merge", ["paper", "official"])
def test_everything_to_fill_without_jumps_is_plain_sampling(merge: str) -> None:
    model, image = gaussian(), pictures(2, 16)
    method = RePaint(steps=20, jump_n_sample=1, merge=merge)
    filled = method(model, image, torch.ones(1, 1, 16, 16), seed=9)
    assert torch.equal(filled, model.sample(n=2, steps=20, spacing="respaced", solver="ddpm", seed=9))


def test_what_is_under_the_mask_is_not_looked_at() -> None:
    image, mask = pictures(1, 16), half_mask(16)
    other = torch.where(mask == 1, torch.zeros_like(image), image)
    method = RePaint(steps=20, jump_length=5, jump_n_sample=2)
    assert torch.equal(method(gaussian(), image, mask), method(gaussian(), other, mask))


def test_going_down_and_up_again_keeps_the_variance() -> None:
    model = gaussian(64)
    down = Path.respaced(SCHEDULE, 250)
    there_and_back = down.with_jumps(10, 2)
    first = next(i for i, move in enumerate(there_and_back) if move.kind == "renoise")
    part = there_and_back[first - 10 : first + 10]
    assert part.start == part.end
    shape = (64, 3, 64, 64)  # n = 786432 values: the variance is known to 0.0016 of itself
    alpha_bar = part.start.alpha_bar
    noise = Noise(0, shape)
    x = math.sqrt(alpha_bar * STD**2 + 1 - alpha_bar) * noise()
    after = integrate(model.denoiser(clip="none"), DDPM(), part, x, noise=noise)
    assert abs(float(after.var() / x.var()) - 1) < 0.01


def test_the_fill_of_a_correlated_pair_nears_the_conditional_as_visits_grow() -> None:
    correlation, known = 0.9, 0.8
    model = formula_model(paired_eps(SCHEDULE, correlation, 1.0), 64, SCHEDULE, channels=1)
    image, mask = torch.full((1, 1, 64, 64), known), torch.zeros(1, 1, 64, 64)
    mask[..., 1::2] = 1  # n = 2048 pairs, the second of each unknown
    mean, std = correlation * known, math.sqrt(1 - correlation**2)

    def biases(visits: int) -> tuple[float, float]:
        fill = RePaint(jump_n_sample=visits, clip="none")(model, image, mask)[..., 1::2]
        return abs(float(fill.mean()) - mean), abs(float(fill.std()) - std)

    once, thrice, often = biases(1), biases(3), biases(10)  # the published 250 steps and jumps of 10
    noise = 5 * std / math.sqrt(2048)  # 0.048; seen: bias of the mean 0.22, 0.06, 0.02, of the spread 0.11, 0.02, 0.02
    assert once[0] > 0.15 > thrice[0] > often[0] and often[0] < noise
    assert once[1] > 0.08 > often[1]


def test_a_path_too_short_for_a_jump_is_an_error_and_not_a_plain_run() -> None:
    with pytest.raises(UserError, match="jump_length is 10 on a path of 10 steps; it must be smaller to jump"):
        RePaint(steps=10)(gaussian(), pictures(1, 16), half_mask(16))

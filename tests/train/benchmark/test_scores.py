"""Scores of results whose scores are known: the truth, the image given, shifted pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steerdiff.errors import UserError
from steerdiff.io import to_uint8
from steerdiff.train.benchmark import SCORES, TASKS, draw_cases, score_edits, summary
from steerdiff.train.benchmark.scores import THRESHOLD, _blocks, _distance
from steerdiff.train.recogniser import Recogniser, load_recogniser

EDITS = (
    *("object", "style", "colour", "add", "remove", "move", "subject"),
    *("flat to 3d", "blue to red", "cat to panda"),
)
PER_RESULT = tuple(name for name in SCORES if name != "kid")


@pytest.fixture(params=list(TASKS))
def task(request) -> str:
    return request.param


def pictures(cases, what: str, seeds: int = 1) -> torch.Tensor:
    return to_uint8(torch.stack([getattr(case, what) for case in cases]))[:, None].repeat(1, seeds, 1, 1, 1)


def shifted(images: torch.Tensor, by: int) -> torch.Tensor:
    """Move each value by exactly ``by`` grey levels, away from the nearer end."""
    return torch.where(images < 128, images + by, images - by)


def test_the_true_answer_has_the_best_scores(task) -> None:
    cases = draw_cases(task, 4)
    scores = score_edits(cases, pictures(cases, "truth", 2))
    best = {"right": 1, "layout": 1, "iou": 1, "inside": 0, "outside": 0, "feature_inside": 0, "feature_outside": 0}
    for name, value in best.items():
        found = scores.values[name]
        assert found.shape == (4, 2)
        if not np.isnan(found).all():
            assert found == pytest.approx(value, abs=1e-9), name
    assert scores.values["diversity"] == pytest.approx(0, abs=1e-9)
    assert abs(summary(scores, "kid").value) < 1e-3


@pytest.mark.parametrize("name", EDITS)
def test_the_unchanged_image_is_not_right_and_nothing_is_edited(name) -> None:
    cases = draw_cases(name, 8)
    values = score_edits(cases, pictures(cases, "image")).values
    assert not values["right"].any() and not values["iou"].any() and not values["guide"].any()
    assert not values["outside"].any() and (values["inside"] > 5).all()
    assert (values["feature_inside"] > values["feature_outside"]).all()


def test_scores_that_say_nothing_are_not_numbers() -> None:
    empty = {
        **dict.fromkeys(("draw", "class"), {"inside", "outside", "feature_inside", "feature_outside", "iou", "guide"}),
        "remove": {"layout"},
        "subject": {"layout"},
        "class beside subject": {"inside", "outside", "feature_inside", "feature_outside", "iou"},
        **dict.fromkeys(("low resolution", "strokes", "reconstruct"), {"outside", "feature_outside", "iou"}),
    }
    for name in TASKS:
        cases = draw_cases(name, 2)
        values = score_edits(cases, pictures(cases, "truth", 2)).values
        assert tuple(values) == PER_RESULT
        nothing = {score for score, found in values.items() if np.isnan(found).all()}
        assert nothing == empty.get(name, set()), name
        assert all(np.isfinite(values[score]).all() for score in set(values) - nothing)
        one = score_edits(cases, pictures(cases, "truth", 1)).values["diversity"]
        assert one.shape == (2, 1) and np.isnan(one).all()


def test_a_known_shift_gives_its_error_inside_and_outside() -> None:
    cases = draw_cases("object", 3)
    changed = torch.stack([case.changed for case in cases])[:, None].bool()
    truth = pictures(cases, "truth")
    result = torch.where(changed, shifted(truth, 6), shifted(truth, 2))
    values = score_edits(cases, result).values
    assert values["inside"] == pytest.approx(6) and values["outside"] == pytest.approx(2)
    image = pictures(cases, "image")
    assert score_edits(cases, shifted(image, 5)).values["guide"] == pytest.approx(5)
    red = image.clone()
    red[:, :, 0] = shifted(image, 6)[:, :, 0]  # one channel of three
    assert score_edits(cases, red).values["guide"] == pytest.approx(6 / 3**0.5)


def test_overlap_counts_pixels_above_the_threshold() -> None:
    cases = draw_cases("object", 2)
    image, truth = pictures(cases, "image"), pictures(cases, "truth")
    wanted = (image.int() - truth.int()).abs().amax(2, keepdim=True) > THRESHOLD
    half = wanted & (torch.arange(64) < 32)
    values = score_edits(cases, torch.where(half, truth, image)).values
    expected = (half.sum((1, 2, 3, 4)) / wanted.sum((1, 2, 3, 4))).numpy()
    assert values["iou"][:, 0] == pytest.approx(expected)
    assert not score_edits(cases, shifted(image, THRESHOLD)).values["iou"].any()
    everywhere = score_edits(cases, shifted(image, THRESHOLD + 1)).values["iou"]
    assert everywhere[:, 0] == pytest.approx(wanted.float().mean((1, 2, 3, 4)).numpy())


def test_feature_distances_tell_inside_from_outside() -> None:
    cases = draw_cases("object", 4)
    changed = torch.stack([case.changed for case in cases])[:, None].bool()
    truth = pictures(cases, "truth")
    spoilt = shifted(truth, 100)
    within = score_edits(cases, torch.where(changed, spoilt, truth)).values
    beyond = score_edits(cases, torch.where(changed, truth, spoilt)).values
    assert (within["feature_inside"] > 2 * within["feature_outside"]).all()
    assert (beyond["feature_outside"] > within["feature_outside"]).all()


def test_the_feature_distance_of_unit_features_is_that_of_their_angle() -> None:
    left, right = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    left[:, 0], right[:, 1] = 3.0, 0.5  # at right angles, whatever their length: 1 + 1
    assert _distance([left], [right]) == pytest.approx(2)
    assert _distance([left, left], [right, 7 * left]) == pytest.approx(1)  # the mean over blocks
    assert _distance([left], [left * 0]) == pytest.approx(1)  # no features at all
    assert _distance([left], [right]).shape == (1, 1, 64, 64)


def test_diversity_is_the_mean_over_pairs_of_seeds() -> None:
    cases = draw_cases("object", 2)
    truth, image = pictures(cases, "truth"), pictures(cases, "image")
    apart = score_edits(cases, torch.cat([truth, image], 1)).values["diversity"]
    two_alike = score_edits(cases, torch.cat([truth, image, truth], 1)).values["diversity"]
    assert (apart > 0.05).all() and two_alike == pytest.approx(apart * 2 / 3)
    seen = [_blocks(load_recogniser(), side[:, 0]) for side in (truth, image)]
    assert apart[:, 0] == pytest.approx(_distance(*seen).mean((1, 2, 3)).detach().numpy(), rel=1e-5)


def test_an_image_alone_scores_as_in_a_batch() -> None:
    cases = draw_cases("move", 3)
    images = torch.cat([pictures(cases, "truth"), pictures(cases, "image")], 1)
    together = score_edits(cases, images)
    for number in range(3):
        for seed in range(2):
            alone = score_edits([cases[number]], images[number : number + 1, seed : seed + 1])
            for name in PER_RESULT[:-1]:
                expected = together.values[name][number, seed]
                assert alone.values[name] == pytest.approx(expected, abs=1e-5), name  # float32 convolutions
            assert alone.features[0, 0] == pytest.approx(together.features[number, seed], abs=1e-4)


def test_many_cases_score_as_a_few_do(monkeypatch) -> None:
    cases = draw_cases("style", 5)
    images = pictures(cases, "image", 2)
    whole = score_edits(cases, images)
    monkeypatch.setattr("steerdiff.train.benchmark.scores._CHUNK", 2)
    parts = score_edits(cases, images)
    for name in PER_RESULT:
        np.testing.assert_allclose(parts.values[name], whole.values[name], atol=1e-5)
    np.testing.assert_allclose(parts.truths, whole.truths, atol=1e-4)
    assert whole.features.shape == (5, 2, 128) and whole.truths.shape == (5, 128)


def test_scoring_twice_gives_the_same_numbers() -> None:
    cases = draw_cases("hole", 4)
    first, second = (score_edits(cases, pictures(cases, "image", 2)) for _ in range(2))
    for name in PER_RESULT:
        np.testing.assert_array_equal(first.values[name], second.values[name])
    np.testing.assert_array_equal(first.features, second.features)


def test_another_recogniser_is_used_and_left_in_its_mode() -> None:
    cases = draw_cases("object", 4)
    torch.manual_seed(0)
    untaught = Recogniser().train()
    before = {name: value.clone() for name, value in untaught.state_dict().items()}
    scores = score_edits(cases, pictures(cases, "truth"), untaught)
    assert scores.values["right"].mean() < 0.5 and untaught.training
    assert all(torch.equal(value, before[name]) for name, value in untaught.state_dict().items())


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 1, 3, 64, 64),
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(3, 1, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(2, 0, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(2, 1, 3, 32, 32, dtype=torch.uint8),
    ],
)
def test_images_of_another_kind_are_an_error(images) -> None:
    with pytest.raises(UserError, match=r"images are torch.* of 2 cases; expected uint8 \[2, seeds, 3, 64, 64\]"):
        score_edits(draw_cases("object", 2), images)


def test_no_cases_are_an_error() -> None:
    with pytest.raises(UserError, match="of 0 cases"):
        score_edits([], torch.zeros(0, 1, 3, 64, 64, dtype=torch.uint8))


def test_cases_of_two_tasks_are_an_error() -> None:
    cases = [*draw_cases("object", 1), *draw_cases("style", 1)]
    with pytest.raises(UserError, match="2 tasks .object, style.; score one task at a time"):
        score_edits(cases, torch.zeros(2, 1, 3, 64, 64, dtype=torch.uint8))


def test_every_score_has_a_line_that_explains_it() -> None:
    for name, score in SCORES.items():
        assert score.note and "\n" not in score.note and score.better in ("higher", "lower", ""), name
    assert all(set(one.without) <= set(SCORES) for one in TASKS.values())

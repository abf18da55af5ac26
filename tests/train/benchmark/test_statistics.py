"""Intervals: exact on small inputs, and as often right as they say on simulated ones."""

from __future__ import annotations

import time

import numpy as np
import pytest

from steerdiff.errors import UserError
from steerdiff.train.benchmark import Interval, Scores, difference, summary, verdict

WIDTH = 4


def scores(values=None, name: str = "inside", features=None, truths=None) -> Scores:
    values = np.zeros((2, 1)) if values is None and features is None else values
    n = len(values) if values is not None else len(features)
    return Scores(
        values={} if values is None else {name: np.asarray(values, float)},
        features=np.zeros((n, 1, WIDTH)) if features is None else features,
        truths=np.arange(n * WIDTH, dtype=float).reshape(n, WIDTH) if truths is None else truths,
    )


def effects(generator, cases=16, seeds=3, case=1.0, seed=1.0, mean=5.0) -> np.ndarray:
    return mean + case * generator.standard_normal((cases, 1)) + seed * generator.standard_normal((cases, seeds))


def test_the_value_is_the_mean_over_cases_and_seeds() -> None:
    interval = summary(scores([[1, 2, 3], [5, 6, 7]]), "inside")
    assert interval.value == 4
    # a draw of one case twice, the extremes of its seeds: they are rarer than one in forty, so the ends lie inside
    assert 1 <= interval.low < 4 < interval.high <= 7


def test_two_cases_of_one_seed_have_known_ends() -> None:
    # draws: both the first (1/4), one of each (1/2), both the second (1/4)
    assert summary(scores([[1.0], [3.0]]), "inside") == Interval(2.0, 1.0, 3.0)


def test_seeds_are_drawn_within_their_case() -> None:
    # cases are alike, seeds are not: all the spread comes from the seeds
    spread = summary(scores(np.tile([0.0, 1.0], (50, 1))), "inside")
    assert spread.low == pytest.approx(0.5 - 1.96 * 0.5 / 10, abs=0.02)  # a mean of 100 draws of 0 or 1
    # a seed of the other case is never taken
    assert summary(scores(np.repeat([[7.0]], 4, axis=0)), "inside") == Interval(7.0, 7.0, 7.0)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    # 16 cases with effects of their own and 3 seeds each; 400 experiments: the standard error is 1.1 %
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        interval = summary(scores(effects(generator)), "inside", draws=400)
        inside += interval.low <= 5.0 <= interval.high
    assert 0.95 - 5 * 0.011 <= inside / 400 <= 0.95 + 5 * 0.011


def test_differences_cover_the_true_difference_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        shared = 10 * generator.standard_normal((16, 1))  # hard and easy cases
        before, after = (effects(generator, mean=mean) + shared for mean in (5.0, 6.0))
        interval = difference(scores(before), scores(after), "inside", draws=400)
        inside += interval.low <= 1.0 <= interval.high
    assert 0.95 - 5 * 0.011 <= inside / 400 <= 0.95 + 5 * 0.011


def test_pairing_narrows_the_interval() -> None:
    generator = np.random.default_rng(2)
    before = effects(generator, case=10.0, seed=1.0)
    after = before + 1 + 0.1 * generator.standard_normal(before.shape)
    paired = difference(scores(before), scores(after), "inside")
    alone = [summary(scores(side), "inside") for side in (before, after)]
    apart = np.hypot(*(side.high - side.low for side in alone))
    assert paired.high - paired.low < apart / 20
    assert paired.value == pytest.approx(alone[1].value - alone[0].value)
    assert verdict(paired, rises=True) == "confirmed"


def test_the_same_seeds_are_compared_with_each_other() -> None:
    before = effects(np.random.default_rng(3), case=0.0, seed=10.0)
    paired = difference(scores(before), scores(before + 1), "inside")
    assert (paired.low, paired.high) == pytest.approx((1, 1))


def test_different_numbers_of_seeds_can_be_compared() -> None:
    generator = np.random.default_rng(4)
    case = 10 * generator.standard_normal((16, 1))
    before, after = case + generator.standard_normal((16, 3)), case + 1 + generator.standard_normal((16, 5))
    interval = difference(scores(before), scores(after), "inside")
    assert interval.value == pytest.approx(after.mean() - before.mean())
    assert 0.3 < interval.high - interval.low < 2.5  # the cases, which spread by 10, are still paired


def test_a_difference_turned_round_changes_its_sign() -> None:
    generator = np.random.default_rng(5)
    before, after = (scores(effects(generator)) for _ in range(2))
    there, back = difference(before, after, "inside"), difference(after, before, "inside")
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))


def test_scores_that_apply_to_no_case_give_nothing() -> None:
    nothing = scores(np.full((4, 2), np.nan))
    assert summary(nothing, "inside") is None
    assert difference(nothing, scores(np.ones((4, 2))), "inside") is None
    assert summary(scores([[np.nan, np.nan], [2.0, 2.0]]), "inside", cases=[0]) is None


def test_cases_without_the_score_are_left_out() -> None:
    some = scores([[np.nan, np.nan], [1.0, 3.0], [3.0, 1.0]])
    assert summary(some, "inside").value == 2
    other = scores([[9.0, 9.0], [np.nan, np.nan], [5.0, 5.0]])
    assert difference(some, other, "inside").value == 3


def test_some_cases_can_be_chosen() -> None:
    values = scores([[1.0], [2.0], [4.0], [8.0]])
    assert summary(values, "inside", cases=[1, 3]).value == 5
    assert difference(values, scores([[0.0], [0.0], [0.0], [0.0]]), "inside", cases=[3]).value == -8


def test_a_share_of_all_or_none_is_not_certain() -> None:
    # Wilson's interval of 16 out of 16: 16 / (16 + 1.96^2) to 1
    whole = summary(scores(np.ones((16, 3)), "right"), "right")
    assert (whole.value, whole.high) == (1, 1) and whole.low == pytest.approx(16 / (16 + 1.96**2))
    none = summary(scores(np.zeros((16, 3)), "right"), "right")
    assert (none.value, none.low) == (0, 0) and none.high == pytest.approx(1.96**2 / (16 + 1.96**2))
    half = summary(scores(np.full((16, 1), 0.5), "right"), "right")
    assert (half.low, half.high) == (0.5, 0.5)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = scores(effects(np.random.default_rng(6)))
    assert summary(values, "inside") == summary(values, "inside")
    assert summary(values, "inside", seed=1) != summary(values, "inside", seed=0)


def test_a_summary_takes_a_few_milliseconds() -> None:
    values = scores(effects(np.random.default_rng(7)))
    start = time.perf_counter()
    for _ in range(10):
        summary(values, "inside")
    assert (time.perf_counter() - start) / 10 < 0.1  # 1 ms on a quiet core


def gaussian_kid(first: tuple[np.ndarray, float], second: tuple[np.ndarray, float]) -> float:
    """The distance of two normal distributions (mean, standard deviation of every number), in closed form."""

    def moments(mean, deviation):
        eye, variance = np.eye(WIDTH), deviation**2
        square = np.einsum("i,j->ij", mean, mean) + variance * eye
        cube = np.einsum("i,j,k->ijk", mean, mean, mean)
        for axes in ("i,jk->ijk", "j,ik->ijk", "k,ij->ijk"):
            cube = cube + variance * np.einsum(axes, mean, eye)
        return mean, square, cube

    def kernel(p, q):
        one, two, three = ((a * b).sum() / WIDTH**k for k, (a, b) in enumerate(zip(p, q, strict=True), 1))
        return 1 + 3 * one + 3 * two + three

    p, q = moments(*first), moments(*second)
    return 1000 * (kernel(p, p) + kernel(q, q) - 2 * kernel(p, q))


MEAN = np.full(WIDTH, 0.5)
CLOSE, FAR = (MEAN, 0.7), (MEAN + 0.6, 0.7)


def drawn(generator, results, truths=CLOSE, cases=16, seeds=3, shared=0.0) -> Scores:
    """Results and truths of given distributions; ``shared`` is how much of its truth a result has in it."""
    noise = generator.standard_normal((cases, WIDTH))
    own = shared * noise[:, None] + (1 - shared**2) ** 0.5 * generator.standard_normal((cases, seeds, WIDTH))
    return scores(features=results[0] + results[1] * own, truths=truths[0] + truths[1] * noise)


@pytest.mark.parametrize("results", [CLOSE, FAR])
@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_kid_is_unbiased_whatever_results_share_with_their_truths(results, shared) -> None:
    generator = np.random.default_rng(8)
    values = [summary(drawn(generator, results, shared=shared), "kid", draws=100).value for _ in range(1500)]
    true = gaussian_kid(results, CLOSE)
    assert np.mean(values) == pytest.approx(true, abs=5 * np.std(values) / len(values) ** 0.5)
    assert (true == 0) == (results is CLOSE)


def test_drawing_cases_again_does_not_move_kid() -> None:
    from steerdiff.train.benchmark.statistics import _kid, _Picks

    generator = np.random.default_rng(9)
    gaps = []
    for seed in range(100):
        one, picks = drawn(generator, FAR), _Picks(16, 400, seed)
        value, draws = _kid(one, picks, picks.seeds(3))
        gaps.append(draws.mean() - value)
    true = gaussian_kid(FAR, CLOSE)
    assert abs(np.mean(gaps)) < 5 * np.std(gaps) / 10 + 0.01 * true  # counting a case against itself adds 40 % of it


def test_intervals_of_kid_cover_the_true_value() -> None:
    # a percentile interval of 24 cases: 2 % below the 95 % it says; 300 experiments, standard error 1.3 %
    generator = np.random.default_rng(10)
    true, inside = gaussian_kid(FAR, CLOSE), 0
    for _ in range(300):
        interval = summary(drawn(generator, FAR, cases=24), "kid", draws=300)
        inside += interval.low <= true <= interval.high
    assert 0.93 - 5 * 0.013 <= inside / 300 <= 0.995


def test_kid_of_the_truth_itself_is_zero() -> None:
    truths = np.random.default_rng(11).standard_normal((8, WIDTH))
    interval = summary(scores(features=truths[:, None].repeat(2, 1), truths=truths), "kid")
    assert (interval.value, interval.low, interval.high) == pytest.approx((0, 0, 0), abs=1e-9)


def test_kid_of_two_cases_is_the_sum_by_hand() -> None:
    results, truths = np.array([[[1.0, 0]], [[0, 2.0]]]), np.array([[1.0, 1], [2.0, 0]])
    # k(x1, x2) = 1, k(y1, y2) = 8, k(x1, y2) = 8, k(x2, y1) = 8
    assert summary(scores(features=results, truths=truths), "kid").value == pytest.approx(1000 * (1 + 8 - (8 + 8)))


def test_kid_needs_two_cases() -> None:
    one = scores(features=np.ones((1, 2, WIDTH)))
    assert summary(one, "kid") is None and difference(one, one, "kid") is None


def test_kid_differences_are_paired() -> None:
    generator = np.random.default_rng(12)
    before = drawn(generator, FAR)
    after = Scores(values={}, features=before.features + 0.05, truths=before.truths)
    paired, alone = difference(before, after, "kid"), summary(before, "kid")
    assert paired.value == pytest.approx(summary(after, "kid").value - alone.value)
    assert paired.low > 0 and paired.high - paired.low < (alone.high - alone.low) / 2
    fewer = Scores(values={}, features=after.features[:, :2], truths=before.truths)
    assert difference(before, fewer, "kid").value == pytest.approx(summary(fewer, "kid").value - alone.value)


def test_other_cases_on_the_two_sides_are_an_error() -> None:
    here, there = scores(np.ones((4, 2))), scores(np.ones((4, 2)), truths=np.full((4, WIDTH), 9.0))
    with pytest.raises(UserError, match="other cases .4 and 4 cases.; compare runs with the same task"):
        difference(here, there, "inside")
    with pytest.raises(UserError, match="4 and 3 cases"):
        difference(here, scores(np.ones((3, 2))), "inside")


def test_bad_arguments_are_errors() -> None:
    values = scores(np.ones((4, 2)))
    with pytest.raises(UserError, match="'insid' is not a known score; did you mean inside"):
        summary(values, "insid")
    with pytest.raises(UserError, match=r"cases are \[4\]; there are 4, counted from 0"):
        summary(values, "inside", cases=[4])
    with pytest.raises(UserError, match="give each once"):
        summary(values, "inside", cases=[1, 1])
    with pytest.raises(UserError, match="draws is 10"):
        difference(values, values, "inside", draws=10)


@pytest.mark.parametrize(
    ("interval", "rises", "expected"),
    [
        (Interval(2, 1, 3), True, "confirmed"),
        (Interval(2, 1, 3), False, "refuted"),
        (Interval(-2, -3, -1), True, "refuted"),
        (Interval(-2, -3, -1), False, "confirmed"),
        (Interval(1, -1, 3), True, "undecided"),
        (Interval(-1, -3, 1), False, "undecided"),
        (Interval(1, 0, 3), True, "undecided"),
        (Interval(0, 0, 0), False, "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(interval, rises, expected) -> None:
    assert verdict(interval, rises) == expected


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(12.345, 10.06, 14.91), "12.3 (10.1 to 14.9)"),
        (Interval(0.5, -0.001, 0.75), "0.500 (-0.001 to 0.750)"),
        (Interval(123.4, 100.2, 1200.0), "123 (100 to 1200)"),
        (Interval(1e-15, -1e-15, 1e-14), "0.00 (0.00 to 0.00)"),
        (Interval(5.0, -0.001, 9.0), "5.00 (0.00 to 9.00)"),
    ],
)
def test_intervals_print_with_as_many_digits_as_they_deserve(interval, text) -> None:
    assert str(interval) == text

"""Paths: which levels they visit, in which order, and what a move knows of itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerdiff.errors import UserError
from steerdiff.samplers import (
    CLEAN,
    SIGMA_SPACINGS,
    Level,
    Move,
    NoiseSchedule,
    Path,
    karras_sigmas,
    polyexponential_sigmas,
    respaced_times,
    spaced_times,
    vp_sigmas,
)

LINEAR = NoiseSchedule.linear()


def times(path: Path) -> list[float]:
    return [level.t for level in path.levels]


def test_respaced_path_goes_down_to_the_clean_image() -> None:
    path = Path.respaced(LINEAR, 25)
    assert times(path)[:4] == [999, 957, 916, 874]
    assert times(path)[-3:] == [42, 0, -1]
    assert (path.start, path.end) == (LINEAR.level(999), CLEAN)
    assert [move.index for move in path] == list(range(25))
    assert {move.kind for move in path} == {"denoise"}
    assert [move.following for move in path] == ["denoise"] * 24 + [None]
    assert path == Path.respaced(LINEAR, "25")


@settings(derandomize=True, deadline=None)
@given(T=st.integers(1, 400), data=st.data())
def test_respacing_keeps_both_ends_of_each_section(T: int, data: st.DataObject) -> None:
    sections = data.draw(st.integers(1, min(T, 4)))
    sizes = [T // sections + (i < T % sections) for i in range(sections)]
    counts = [data.draw(st.integers(1, size)) for size in sizes]
    kept = respaced_times(T, ",".join(map(str, counts)))
    assert kept == sorted(set(kept))
    assert len(kept) == sum(counts)
    start = 0
    for size, count in zip(sizes, counts, strict=True):
        section = [t for t in kept if start <= t < start + size]
        assert len(section) == count
        assert section[0] == start
        assert count == 1 or section[-1] == start + size - 1
        start += size


@pytest.mark.parametrize(
    ("spacing", "offset", "expected"),
    [
        ("leading", 0, [0, 250, 500, 750]),
        ("leading", 1, [1, 251, 501, 751]),
        ("trailing", 0, [249, 499, 749, 999]),
        ("linspace", 0, [0, 333, 666, 999]),
        ("quad", 0, [0, 88, 355, 800]),
        ("quad", 1, [1, 89, 356, 801]),
        ("uniform_ddim", 0, [0, 250, 500, 750]),
    ],
)
def test_spacings_visit_the_times_of_their_libraries(spacing: Any, offset: int, expected: list[int]) -> None:
    assert spaced_times(1000, 4, spacing, offset) == expected
    path = Path.spaced(LINEAR, 4, spacing, offset)
    assert times(path) == [*reversed(expected), -1]


def test_uniform_ddim_may_visit_more_times_and_quad_fewer() -> None:
    assert len(spaced_times(1000, 300, "uniform_ddim")) == 334
    assert spaced_times(1000, 100, "quad")[:4] == [0, 1, 2, 3]
    assert len(spaced_times(1000, 100, "quad")) == 96


def test_linspace_rounds_half_to_even() -> None:
    assert spaced_times(1000, 5, "linspace") == [0, 250, 500, 749, 999]  # of 249.75, 499.5 and 749.25
    assert spaced_times(7, 5, "linspace") == [0, 2, 3, 4, 6]  # of 1.5 and 4.5


def test_one_step_starts_at_the_top_where_the_spacing_reaches_it() -> None:
    assert spaced_times(1000, 1, "linspace") == spaced_times(1000, 1, "trailing") == [999]
    assert spaced_times(1000, 1, "leading") == [0]


def test_path_may_end_at_the_lowest_trained_level() -> None:
    path = Path.spaced(LINEAR, 50, end=LINEAR.level(0))
    assert path.end == LINEAR.level(0)
    assert path[-1].here == path[-1].there
    assert path[-1].beta == 0


@pytest.mark.parametrize("spacing", sorted(SIGMA_SPACINGS))
def test_sigma_spacings_run_from_top_to_bottom_in_real_times(spacing: Any) -> None:
    path = Path.sigmas(LINEAR, 12, spacing)
    assert len(path) == 12
    assert (path.start, path[-1].here, path.end) == (LINEAR.level(999), LINEAR.level(0), CLEAN)
    expected = SIGMA_SPACINGS[spacing](12, LINEAR.level(0).sigma, LINEAR.level(999).sigma, 7.0)
    np.testing.assert_allclose([level.sigma for level in path.levels[:-1]], expected, rtol=1e-9)


def test_sigma_bounds_and_rho_are_used() -> None:
    path = Path.sigmas(LINEAR, 5, "karras", rho=5, sigma_min=0.1, sigma_max=10)
    np.testing.assert_allclose([level.sigma for level in path.levels[:-1]], karras_sigmas(5, 0.1, 10, 5), rtol=1e-9)
    assert times(path) != times(Path.sigmas(LINEAR, 5, "karras", rho=7, sigma_min=0.1, sigma_max=10))


def test_log_snr_spacing_is_even_in_log_snr_and_vp_in_the_time_of_the_sde() -> None:
    gaps = np.diff([level.log_snr for level in Path.sigmas(LINEAR, 9, "log_snr").levels[:-1]])
    assert gaps == pytest.approx(np.full(8, gaps[0]))
    low, high = vp_sigmas(3)[-1], vp_sigmas(3)[0]
    np.testing.assert_allclose(SIGMA_SPACINGS["vp"](7, low, high, 1.0), vp_sigmas(7), rtol=1e-9)


@pytest.mark.parametrize(("t0", "start", "moves"), [(1.0, 999, 1000), (0.5, 499, 500), (0.001, 0, 1), (1e-6, 0, 1)])
def test_t0_is_the_share_of_the_trained_times(t0: float, start: int, moves: int) -> None:
    path = Path.respaced(LINEAR, 1000).from_t0(t0)
    assert (path.start.t, len(path), path.end) == (start, moves, CLEAN)


def test_t0_takes_the_nearest_level_of_a_shorter_path() -> None:
    assert Path.spaced(LINEAR, 50, "trailing").from_t0(0.5).start.t == 499
    assert Path.respaced(LINEAR, "250").from_t0(0.3).start.t == 297  # 299 lies between 297 and 301
    assert Path.spaced(NoiseSchedule.from_betas([0.1] * 4), 2).from_t0(0.5).start.t == 0  # 1 lies between 0 and 2


def test_from_level_counts_respaced_times_from_below_and_numbers_moves_anew() -> None:
    path = Path.respaced(LINEAR, 25).from_level(3)
    assert times(path) == [125, 83, 42, 0, -1]
    assert [move.index for move in path] == [0, 1, 2, 3]
    assert path == Path.respaced(LINEAR, 25)[21:]


def test_posterior_floor_is_that_of_the_whole_process() -> None:
    path = Path.respaced(LINEAR, 25)
    floor = path[-1].posterior_log_variance_clipped
    assert path[-1].posterior_variance == 0
    assert floor == path[-2].posterior_log_variance_clipped == math.log(path[-2].posterior_variance)
    assert path.from_level(0)[0].posterior_log_variance_clipped == floor
    assert path.from_level(5).with_jumps(2, 2)[-1].posterior_log_variance_clipped == floor
    assert Path.respaced(LINEAR, 1)[0].posterior_log_variance_clipped == pytest.approx(math.log(LINEAR.betas[0]))


def test_inverted_path_climbs_the_same_levels_without_the_clean_one() -> None:
    path = Path.respaced(LINEAR, 10)
    up = path.inverted()
    assert up.levels == path.levels[:-1][::-1]
    assert {move.kind for move in up} == {"invert"}
    open_end = Path.from_levels([LINEAR.level(t) for t in (90, 50, 10)], T=1000)
    assert times(open_end.inverted()) == [10, 50, 90]


@settings(derandomize=True, deadline=None)
@given(steps=st.integers(1, 40), length=st.integers(1, 8), count=st.integers(1, 4))
def test_time_travel_counts_and_ends_as_published(steps: int, length: int, count: int) -> None:
    base = Path.respaced(LINEAR, steps)
    path = base.with_jumps(length, count)
    index = {level: len(base) - 1 - i for i, level in enumerate(base.levels)}
    visits = [index[level] for level in path.levels]
    assert (visits[0], visits[-1], visits.count(-1)) == (steps - 1, -1, 1)
    assert {abs(b - a) for a, b in zip(visits, visits[1:], strict=False)} == {1}
    keys = len(range(0, max(steps - length, 0), length))
    climbs = keys * (count - 1) * length
    assert sum(move.kind == "renoise" for move in path) == climbs
    assert sum(move.kind == "denoise" for move in path) == steps + climbs


def test_time_travel_follows_the_worked_example() -> None:
    base = Path.from_levels([*(LINEAR.level(t) for t in (5, 4, 3, 2, 1, 0)), CLEAN], T=1000)
    path = base.with_jumps(2, 2)
    assert times(path) == [5, 4, 3, 2, 3, 4, 3, 2, 1, 0, 1, 2, 1, 0, -1]
    kinds = [(move.kind, move.following) for move in path][2:5]
    assert kinds == [("denoise", "renoise"), ("renoise", "renoise"), ("renoise", "denoise")]
    assert base.with_jumps(10, 1) == base
    assert [m.posterior_floor for m in path] == [base[0].posterior_floor] * len(path)


def test_moves_up_and_down_have_the_same_beta() -> None:
    down = Move(here=LINEAR.level(500), there=LINEAR.level(499))
    up = Move(here=LINEAR.level(499), there=LINEAR.level(500), kind="renoise")
    assert down.beta == up.beta == pytest.approx(LINEAR.betas[500], rel=1e-10)
    assert Move(here=Level(1000.0, 0.0), there=LINEAR.level(999)).beta == 1


def test_moves_know_their_number_and_the_schedule_between_the_levels() -> None:
    base = Path.respaced(LINEAR, 10)
    for path in (base, base[3:], base.inverted(), base.with_jumps(2, 2), base.from_t0(0.5), Path.sigmas(LINEAR, 10)):
        assert {move.total for move in path} == {len(path)}
        assert [move.index for move in path] == list(range(len(path)))
        assert all(move.schedule is LINEAR for move in path)
    assert Path.from_levels(base.levels, T=1000) == base  # the schedule is no part of what a path is


def test_level_of_sigma_has_the_trained_time() -> None:
    move = Path.respaced(LINEAR, 10)[4]
    level = move.level_of_sigma(LINEAR.level(500.5).sigma)
    assert (level.t, level.alpha_bar) == (pytest.approx(500.5), pytest.approx(LINEAR.alpha_bar(500.5)))
    beyond = move.level_of_sigma(1000.0)
    assert (beyond.t, beyond.sigma) == (999, pytest.approx(1000))


def test_level_of_sigma_without_a_schedule_lies_on_the_line_in_log_sigma() -> None:
    here, there = LINEAR.level(600), LINEAR.level(500)
    move = Path.from_levels([here, there], T=1000)[0]
    assert move.level_of_sigma(math.sqrt(here.sigma * there.sigma)).t == pytest.approx(550)
    assert move.level_of_sigma(here.sigma).t == pytest.approx(600)
    assert move.level_of_sigma(here.sigma**2 / there.sigma).t == pytest.approx(700)
    ends = (Move(here=here, there=CLEAN), Move(here=here, there=here))
    assert [end.level_of_sigma(3.0).t for end in ends] == [600, 600]


def test_path_of_moves_may_have_gaps_only_where_it_says_so() -> None:
    first, second = Move(here=LINEAR.level(9), there=LINEAR.level(5)), Move(here=LINEAR.level(4), there=CLEAN)
    path = Path.from_moves([first, second], T=1000, gaps=True)
    assert [(move.index, move.total, move.following) for move in path] == [(0, 2, "denoise"), (1, 2, None)]
    assert path[1:].gaps
    with pytest.raises(UserError, match="move 1 starts at t = 4 but the move before it ends at 5"):
        Path.from_moves([first, second], T=1000)


def test_paths_are_sequences_equal_by_value() -> None:
    path = Path.respaced(LINEAR, 10)
    assert path[0] is path.moves[0]
    assert path[-1] in path
    assert list(path) == list(path.moves)
    assert hash(path) == hash(Path.respaced(LINEAR, 10))
    assert path[2:5].levels == path.levels[2:6]


SHORT = Path.respaced(LINEAR, 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Path.respaced(LINEAR, 0), "respacing '0' asks for 0 of the 1000 times in section 0 of T = 1000; give"),
        (lambda: Path.respaced(LINEAR, 1001), "give a count from 1 to 1000"),
        (lambda: Path.respaced(LINEAR, "10,900"), "asks for 900 of the 500 times in section 1"),
        (lambda: Path.respaced(LINEAR, "many"), "respacing is 'many'; give a count such as '250'"),
        (lambda: Path.respaced(LINEAR, "ddim"), "respacing is 'ddim'; give a count"),
        (lambda: Path.respaced(LINEAR, "ddim300"), "no integer stride gives exactly 300 of T = 1000 times"),
        (lambda: Path.respaced(LINEAR, "ddim0"), "asks for 0 of T = 1000 times"),
        (lambda: Path.respaced(LINEAR, "ddim10,20"), "'ddim' takes one count"),
        (lambda: Path.spaced(LINEAR, 0), "steps is 0; it must be from 1 to T = 1000"),
        (lambda: Path.spaced(LINEAR, 1001), "steps is 1001; it must be from 1 to T = 1000"),
        (lambda: Path.spaced(LINEAR, 10, "even"), "spacing is 'even'; known are leading, trailing"),
        (lambda: Path.spaced(LINEAR, 10, "trailing", 1), "offset is 1, but 'trailing' already ends at T - 1"),
        (lambda: Path.spaced(LINEAR, 10, offset=100), r"the times would reach from 100 to 1000, outside \[0, 1000\)"),
        (lambda: Path.spaced(LINEAR, 10, offset=-1), "the times would reach from -1"),
        (lambda: Path.sigmas(LINEAR, 0), "steps is 0; it must be at least 1"),
        (lambda: Path.sigmas(LINEAR, 5, "square"), "spacing is 'square'; known are karras"),
        (lambda: Path.sigmas(LINEAR, 5, sigma_min=2, sigma_max=1), "must obey 0 < sigma_min < sigma_max"),
        (lambda: Path.sigmas(LINEAR, 5, sigma_max=1000), r"sigma 1000\); this schedule holds"),
        (lambda: Path.sigmas(LINEAR, 5, rho=0), "rho is 0; it must be positive"),
        (lambda: Path.sigmas(LINEAR.zero_terminal_snr(), 5), "sigma_max is infinite"),
        (lambda: polyexponential_sigmas(5, 0.1, 10, -1), "rho is -1; it must be positive"),
        (lambda: vp_sigmas(0), "steps is 0; it must be at least 1"),
        (lambda: SHORT.from_t0(0), r"t0 is 0; it must lie in \(0, 1\]"),
        (lambda: SHORT.from_t0(1.2), "t0 is 1.2"),
        (lambda: SHORT.from_t0(math.nan), "t0 is nan"),
        (lambda: SHORT.from_level(10), "level index is 10; this path has the levels 0 to 9"),
        (lambda: SHORT.from_level(-1), "level index is -1"),
        (lambda: SHORT.inverted().from_t0(0.5), "from_t0 needs a path that only goes down"),
        (lambda: SHORT.inverted().inverted(), "inverted needs a path that only goes down"),
        (lambda: SHORT.with_jumps(2, 2).with_jumps(2, 2), "with_jumps needs a path that only goes down"),
        (lambda: Path.respaced(LINEAR, 1).inverted(), "a path of 1 step cannot be inverted"),
        (lambda: SHORT.with_jumps(0, 2), "jump_length is 0; a jump climbs at least 1 level"),
        (lambda: SHORT.with_jumps(2, 0), "jump_n_sample is 0; it must be at least 1, which adds no jump"),
        (lambda: SHORT.with_jumps(2, 2, n_sample=0), "n_sample is 0"),
        (lambda: SHORT.with_jumps(4, 2, nested=[(2, 0)]), "nested jump_n_sample is 0"),
        (lambda: Path.from_levels([CLEAN], T=1000), "a path needs at least 2 levels; got 1"),
        (
            lambda: Path.from_levels(SHORT.levels[::-1], T=1000),
            "goes the wrong way; order the levels from noise to image",
        ),
        (lambda: Path.from_levels(SHORT.levels, T=1000, kind="invert"), "order the levels from image to noise"),
        (lambda: SHORT[5:5], "that part of the path has no moves"),
        (lambda: SHORT[::2], "a part of a path takes every move"),
        (lambda: Path((SHORT[0], SHORT[2]), 1000), "move 2 starts at t = 777 but the move before it ends at 888"),
        (lambda: Path((), 1000), "the path has no moves"),
    ],
)
def test_bad_paths_get_a_clear_error(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()

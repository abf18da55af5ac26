"""Paths: the sequence of moves between noise levels that a sampling run makes, as data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args, overload

from steerdiff.errors import require

from .respacing import SIGMA_SPACINGS, SigmaSpacing, TimeSpacing, respaced_times, spaced_times
from .schedule import CLEAN, Level, NoiseSchedule
from .time_travel import jump_times

__all__ = ["Move", "MoveKind", "Path"]

MoveKind = Literal["denoise", "renoise", "invert"]


@dataclass(frozen=True, kw_only=True)
class Move:
    """One step of a path, from level ``here`` to level ``there``."""

    here: Level  #: where the image is
    there: Level  #: where it goes
    kind: MoveKind = "denoise"  #: down by the solver, up by fresh noise, or up by the solver
    index: int = 0  #: position in its path, from 0
    following: MoveKind | None = None  #: kind of the next move; None for the last
    total: int = 1  #: number of moves of its path
    posterior_floor: float = math.log(1e-20)  #: log posterior variance used where this move's own would be log 0
    schedule: NoiseSchedule | None = field(default=None, compare=False, repr=False)  #: knows the times between levels

    @property
    def beta(self) -> float:
        """Variance that lies between the two levels, ``1 - alpha_bar / alpha_bar'`` with the noisier one above."""
        noisier, cleaner = sorted((self.here.alpha_bar, self.there.alpha_bar))
        return 1 - noisier / cleaner if cleaner else 0.0

    @property
    def posterior_variance(self) -> float:
        """Variance of ``q(x_there | x_here, x0)`` of a move down (Ho et al. 2020, eq. 7); 0 at the clean end."""
        return self.beta * (1 - self.there.alpha_bar) / (1 - self.here.alpha_bar) if not self.here.clean else 0.0

    @property
    def posterior_log_variance_clipped(self) -> float:
        """Its logarithm, or ``posterior_floor`` where it is 0."""
        variance = self.posterior_variance
        return math.log(variance) if variance > 0 else self.posterior_floor

    def level_of_sigma(self, sigma: float) -> Level:
        """The level with ``sigma`` for a solver that asks between or just above the levels of its path.

        Its time is the schedule's, T - 1 for more noise than was trained. Without a schedule it is interpolated in
        log sigma, which keeps the order of second-order solvers.
        """
        alpha_bar = 1 / (1 + sigma**2)
        if self.schedule is not None:
            return Level(self.schedule.t_of_alpha_bar(max(alpha_bar, float(self.schedule.alpha_bars[-1]))), alpha_bar)
        if self.there.clean or self.here.sigma == self.there.sigma:
            return Level(self.here.t, alpha_bar)
        share = math.log(sigma / self.here.sigma) / math.log(self.there.sigma / self.here.sigma)
        return Level(self.here.t + share * (self.there.t - self.here.t), alpha_bar)


@dataclass(frozen=True)
class Path(Sequence[Move]):
    """An immutable sequence of moves, each starting where the one before it ended."""

    moves: tuple[Move, ...]
    T: int  #: number of trained times of the schedule it was made from
    gaps: bool = False  #: a move may take the image to be at another level than the one before reached

    def __post_init__(self) -> None:
        require(len(self.moves) > 0, "the path has no moves; give it at least two levels")
        if self.gaps:
            return
        for before, after in zip(self.moves, self.moves[1:], strict=False):
            require(
                before.there == after.here,
                f"move {after.index} starts at t = {after.here.t:g} but the move before it ends at {before.there.t:g}",
            )

    @staticmethod
    def from_levels(
        levels: Sequence[Level], *, T: int, kind: MoveKind = "denoise", schedule: NoiseSchedule | None = None
    ) -> Path:
        """A path through ``levels`` in the order of travel, all moves of one kind.

        Args:
            levels: At least two; alpha_bar must not fall for ``denoise`` and not rise for the other kinds.
            T: Number of trained times.
            kind: Kind of every move.
            schedule: Tells solvers the times between the levels; see :meth:`Move.level_of_sigma`.

        Raises:
            UserError: Fewer than two levels, or a level on the wrong side of the one before.
        """
        require(len(levels) >= 2, f"a path needs at least 2 levels; got {len(levels)}")
        sign = 1 if kind == "denoise" else -1
        for here, there in zip(levels, levels[1:], strict=False):
            require(
                sign * (there.alpha_bar - here.alpha_bar) >= 0,
                f"a {kind} move from t = {here.t:g} to t = {there.t:g} goes the wrong way; order the levels "
                + ("from noise to image" if sign > 0 else "from image to noise"),
            )
        like = Move(here=levels[0], there=levels[1], posterior_floor=_posterior_floor(levels, kind), schedule=schedule)
        return _assemble(levels, [kind] * (len(levels) - 1), T, like)

    @staticmethod
    def from_moves(moves: Sequence[Move], *, T: int, gaps: bool = False) -> Path:
        """A path of these moves, numbered anew; ``gaps`` allows that one does not begin where the last ended.

        Raises:
            UserError: No moves, or moves that do not meet without ``gaps``.
        """
        return Path(_numbered(moves), T, gaps)

    @staticmethod
    def respaced(schedule: NoiseSchedule, respacing: str | int, end: Level = CLEAN) -> Path:
        """Down through the times that guided-diffusion keeps, then to ``end``.

        Args:
            schedule: The trained schedule.
            respacing: ``250``, ``"250"``, ``"10,15,20"`` or ``"ddim25"``; see ``respaced_times``.
            end: Last level; the clean image, or for Stable Diffusion's convention ``schedule.level(0)``.

        Raises:
            UserError: The respacing is not of this form, or asks for 0 or more than T times.
        """
        return _descending(schedule, respaced_times(schedule.T, respacing), end)

    @staticmethod
    def spaced(
        schedule: NoiseSchedule,
        steps: int,
        spacing: TimeSpacing = "leading",
        offset: int = 0,
        end: Level = CLEAN,
    ) -> Path:
        """Down through ``steps`` times in a spacing of ``spaced_times``, then to ``end``; UserError as there."""
        return _descending(schedule, spaced_times(schedule.T, steps, spacing, offset), end)

    @staticmethod
    def sigmas(
        schedule: NoiseSchedule,
        steps: int,
        spacing: SigmaSpacing = "karras",
        rho: float = 7.0,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        end: Level = CLEAN,
    ) -> Path:
        """Down through ``steps`` real-valued times whose sigmas are spaced as asked, then to ``end``.

        Args:
            schedule: The trained schedule; it turns a sigma into a real time.
            steps: Number of sigmas, at least 1.
            spacing: ``karras``, ``exponential`` (also called ``log_snr`` and ``ve``: the same sigmas),
                ``polyexponential``, or ``vp`` (even in the VP SDE's time).
            rho: Exponent of ``karras`` and ``polyexponential``.
            sigma_min: Smallest sigma before ``end``; None is the schedule's at t = 0.
            sigma_max: Largest; None is the schedule's at t = T - 1.
            end: Last level.

        Raises:
            UserError: ``steps`` below 1, sigmas out of order or outside the schedule, or an unknown spacing.
        """
        require(
            spacing in get_args(SigmaSpacing), f"spacing is {spacing!r}; known are {', '.join(get_args(SigmaSpacing))}"
        )
        low = schedule.level(0).sigma if sigma_min is None else sigma_min
        high = schedule.level(schedule.T - 1).sigma if sigma_max is None else sigma_max
        sigmas = SIGMA_SPACINGS[spacing](steps, low, high, rho)
        levels = [schedule.level(schedule.t_of_sigma(float(sigma))) for sigma in sigmas]
        return Path.from_levels([*levels, end], T=schedule.T, schedule=schedule)

    def from_t0(self, t0: float) -> Path:
        """The part of a descending path from share ``t0`` of the trained times on.

        It starts at the path's level whose time is nearest ``t0 * T - 1`` (a tie goes to the lower): of all 1000 times,
        ``t0 = 0.5`` makes 500 moves, from t = 499 on.

        Raises:
            UserError: ``t0`` outside (0, 1], or a path that goes up.
        """
        require(0 < t0 <= 1, f"t0 is {t0}; it must lie in (0, 1], the share of the trained times to go through")
        self._check_descending("from_t0")
        target = t0 * self.T - 1
        index = min(range(len(self)), key=lambda i: abs(self._from_below(i).here.t - target))
        return self.from_level(index)

    def from_level(self, index: int) -> Path:
        """The last ``index + 1`` moves of a descending path: it starts at respaced time ``index``, counted from 0.

        Raises:
            UserError: ``index`` outside the path, or a path that goes up.
        """
        self._check_descending("from_level")
        require(0 <= index < len(self), f"level index is {index}; this path has the levels 0 to {len(self) - 1}")
        return self[len(self) - 1 - index :]

    def inverted(self) -> Path:
        """The same levels upwards, for deterministic inversion.

        A network cannot be asked at the clean level, so the image is taken to be at the path's lowest noisy level: a
        path that ends clean gives one move fewer.

        Raises:
            UserError: A path that goes up somewhere, or with a single level above the clean image.
        """
        self._check_descending("inverted")
        self._check_meets("inverted")
        levels = [level for level in reversed(self.levels) if not level.clean]
        require(len(levels) >= 2, "a path of 1 step cannot be inverted; use at least 2 steps")
        return Path.from_levels(levels, T=self.T, kind="invert", schedule=self.moves[0].schedule)

    def with_jumps(
        self,
        jump_length: int = 10,
        jump_n_sample: int = 10,
        start_resampling: int | None = None,
        *,
        n_sample: int = 1,
        nested: Sequence[tuple[int, int]] = (),
    ) -> Path:
        """RePaint's time travel over a descending path: down, up again by fresh noise, down again.

        Args:
            jump_length: Levels climbed in one jump, j of the paper.
            jump_n_sample: How often each segment is gone through, r of the paper; 1 adds no jump.
            start_resampling: No jumps reach above this level index; None is no limit.
            n_sample: Visits of each single step; above 1 adds climbs of one level.
            nested: Shorter jumps inside, as pairs (length, count), the longer first; their budgets are refilled
                whenever an outer jump is made.

        Raises:
            UserError: A count or length below 1, or a path that is not plainly descending.

        Source: Lugmayr et al. 2022, Algorithm 1 and their published schedule.
        """
        self._check_descending("with_jumps")
        self._check_meets("with_jumps")
        times = jump_times(
            len(self), jump_length, jump_n_sample, start_resampling=start_resampling, n_sample=n_sample, nested=nested
        )
        levels = self.levels
        visits = [levels[len(self) - 1 - time] for time in times]  # time -1 is the last level
        kinds: list[MoveKind] = ["denoise" if b < a else "renoise" for a, b in zip(times, times[1:], strict=False)]
        return _assemble(visits, kinds, self.T, self.moves[0])

    @property
    def levels(self) -> tuple[Level, ...]:
        """All levels in the order of travel; one more than there are moves."""
        return (self.moves[0].here, *(move.there for move in self.moves))

    @property
    def start(self) -> Level:
        """The level the first move starts from."""
        return self.moves[0].here

    @property
    def end(self) -> Level:
        """The level the last move reaches."""
        return self.moves[-1].there

    def __len__(self) -> int:
        return len(self.moves)

    def __iter__(self) -> Iterator[Move]:
        return iter(self.moves)

    @overload
    def __getitem__(self, index: int) -> Move: ...
    @overload
    def __getitem__(self, index: slice) -> Path: ...
    def __getitem__(self, index: int | slice) -> Move | Path:
        """One move, or a part of the path with its moves numbered anew."""
        if isinstance(index, int):
            return self.moves[index]
        require(index.step in (None, 1), f"the slice has step {index.step}; a part of a path takes every move")
        part = self.moves[index]
        require(len(part) > 0, "that part of the path has no moves")
        return Path(_numbered(part), self.T, self.gaps)

    def _from_below(self, index: int) -> Move:
        return self.moves[len(self) - 1 - index]

    def _check_descending(self, what: str) -> None:
        require(
            all(move.kind == "denoise" for move in self),
            f"{what} needs a path that only goes down; apply it before adding jumps or inverting",
        )

    def _check_meets(self, what: str) -> None:
        require(
            not self.gaps, f"{what} needs moves that meet, and this spacing leaves gaps; use 'leading' or 'trailing'"
        )


def _descending(schedule: NoiseSchedule, times: Sequence[int], end: Level) -> Path:
    levels = [schedule.level(t) for t in sorted(times, reverse=True)]
    return Path.from_levels([*levels, end], T=schedule.T, schedule=schedule)


def _posterior_floor(levels: Sequence[Level], kind: MoveKind) -> float:
    """Log posterior variance of the move above the lowest one, as guided-diffusion clips entry 0 to entry 1."""
    down = list(levels) if kind == "denoise" else list(levels)[::-1]
    if len(down) >= 3:
        above = Move(here=down[-3], there=down[-2])
        if above.posterior_variance > 0:
            return math.log(above.posterior_variance)
    only = Move(here=down[-2], there=down[-1])
    return math.log(only.beta) if only.beta > 0 else math.log(1e-20)


def _assemble(levels: Sequence[Level], kinds: Sequence[MoveKind], T: int, like: Move) -> Path:
    """Moves through ``levels``; the floor and the schedule are those of ``like``."""
    pairs = zip(levels, levels[1:], kinds, strict=False)
    return Path(_numbered([replace(like, here=here, there=there, kind=kind) for here, there, kind in pairs]), T)


def _numbered(moves: Sequence[Move]) -> tuple[Move, ...]:
    """The moves with their places in the sequence."""
    kinds = [*(move.kind for move in moves[1:]), None]
    return tuple(replace(move, index=i, total=len(moves), following=kinds[i]) for i, move in enumerate(moves))

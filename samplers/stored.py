"""A constraint that holds part of a state to a trajectory that was stored on the way up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from steerdiff.errors import require

from .loop import Recorder
from .noise import Noise
from .path import Move
from .schedule import Level
from .solvers import Step

__all__ = ["StoredTrajectory"]


@dataclass(frozen=True, eq=False)
class StoredTrajectory:
    """Put stored states in place of what was drawn: ``x <- keep * x_stored + (1 - keep) * x``, at the level of ``x``.

    The state that the trajectory began with comes back exactly at its own level, bit for bit. With ``lag=1`` the
    state of the level that the move came from is put in, one too noisy, so that the kept part ends with its noise.

    Source: Couairon et al. 2023 (DiffEdit), section 3.2, step 3; ``lag=1`` is what its ports do.
    """

    levels: Sequence[Level]  #: of the states, upwards
    states: Sequence[Tensor]  #: [B, C, H, W] at each level
    keep: Tensor = field(kw_only=True)  #: 1 where the state is held, else 0; broadcast over [B, C, H, W]
    lag: int = field(default=0, kw_only=True)  #: how many levels the stored state is behind, 0 or 1
    resets_history: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check that there is one state a level."""
        counts = len(self.levels), len(self.states)
        require(counts[0] == counts[1] > 0, f"there are {counts[0]} levels and {counts[1]} states; give one for each")
        require(self.lag in (0, 1), f"lag is {self.lag}; it must be 0, or 1 for what the published ports do")

    @staticmethod
    def recorded(start: Tensor, recorder: Recorder, *, keep: Tensor, lag: int = 0) -> StoredTrajectory:
        """The trajectory of a finished run upwards.

        Args:
            start: What the run began with, [B, C, H, W].
            recorder: The callback of that run, with ``every=1`` and on the device of ``start``.
            keep: 1 where the state is held, else 0; broadcast over [B, C, H, W].
            lag: As the field.

        Raises:
            UserError: The recorder kept nothing, or not every move.
        """
        moves = recorder.moves
        require(len(moves) > 0, "the recorder has kept nothing; pass it to integrate as its callback first")
        whole = all(move.index == index for index, move in enumerate(moves)) and len(moves) == moves[0].total
        require(whole, "the recorder has not kept every move; make it with every=1")
        return StoredTrajectory(
            (moves[0].here, *(move.there for move in moves)), (start, *recorder.images), keep=keep, lag=lag
        )

    def __call__(self, step: Step, move: Move, noise: Noise) -> Tensor:
        """Return the state after ``move`` with the held part; UserError for a level that was not stored."""
        known = move.there in self.levels
        require(known, f"the state at t = {move.there.t:g} was not stored; come down through the stored levels")
        index = min(self.levels.index(move.there) + self.lag, len(self.states) - 1)
        return self.keep * self.states[index] + (1 - self.keep) * step.x

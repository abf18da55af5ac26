"""A denoiser that is another one at each level, so that what changes from step to step is data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from steerdiff.errors import UserError, require
from steerdiff.samplers import Denoiser, Level, Path, Prediction

__all__ = ["Stepwise", "stepwise"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stepwise:
    """The denoiser given for the level at which it is asked.

    Windows of attention edits and a null text for each step are this: the loop and the solver know nothing of them.
    Make one from a path with `stepwise`.
    """

    denoisers: Mapping[float, Denoiser]  #: by training time, ``level.t``

    def __post_init__(self) -> None:
        require(len(self.denoisers) > 0, "a stepwise denoiser has no levels; give it one denoiser for each")

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict from ``x`` [B, C, H, W] at ``level``; UserError at a level that has no denoiser."""
        denoise = self.denoisers.get(level.t)
        if denoise is None:
            times = [f"{t:g}" for t in self.denoisers]
            raise UserError(
                f"there is no denoiser for t = {level.t:g}, only for {', '.join(times[:3])}, ..., {times[-1]}; run "
                "the path it was made for, with a solver that asks at its levels only, such as ddim"
            )
        return denoise(x, level)


def stepwise(path: Path, choose: Callable[[int], Denoiser]) -> Stepwise:
    """Return a denoiser that answers move ``index`` of ``path`` with ``choose(index)``.

    Args:
        path: The moves that will be made; those of fresh noise ask for nothing.
        choose: Called once for each move, in order, before anything is computed; where neighbours take the same
            denoiser it may return the same object.

    Raises:
        UserError: The path comes to a level twice, so that the level does not tell which move asks.
    """
    denoisers: dict[float, Denoiser] = {}
    for move in path:
        if move.kind == "renoise":
            continue
        require(
            move.here.t not in denoisers,
            f"the path starts two moves from t = {move.here.t:g}; a denoiser for each step needs a path without jumps",
        )
        denoisers[move.here.t] = choose(move.index)
    return Stepwise(denoisers=denoisers)

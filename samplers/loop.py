"""The one loop: carries an image along a path with a denoiser, a solver and constraints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steerdiff.errors import UserError, require

from .noise import Noise
from .path import Move, Path
from .prediction import Denoiser
from .solvers import Constraint, Solver, Step, renoise

__all__ = ["Callback", "Interrupted", "NonFiniteError", "Record", "Recorder", "integrate", "trajectory"]


class NonFiniteError(UserError):
    """The image stopped being finite; the message names the first bad step and its time."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run: ``x`` is the image after the last whole move, ``index`` the number of moves made."""

    def __init__(self, x: Tensor, index: int) -> None:
        super().__init__(f"interrupted after {index} moves")
        self.x, self.index = x, index


@dataclass(frozen=True, eq=False)
class Record:
    """What a callback sees after each move and its constraints."""

    step: Step  #: the step made; ``step.x`` is the image after the constraints
    move: Move  #: the move it made
    index: int  #: number of the move, from 0
    total: int  #: number of moves of the path


Callback = Callable[[Record], None]


def trajectory(
    denoise: Denoiser,
    solver: Solver,
    path: Path,
    x: Tensor,
    *,
    constraints: Sequence[Constraint] = (),
    noise: Noise | None = None,
) -> Iterator[Record]:
    """Yield a record after every move; gradients flow where autograd is on, so tuning through a run is possible.

    Arguments as for :func:`integrate`, which adds progress, checks and a clean interrupt.

    Raises:
        UserError: At the first move that draws noise, if there is none.
    """
    source = _NoNoise() if noise is None else noise
    keeps_history = not any(getattr(constraint, "resets_history", True) for constraint in constraints)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    state = None
    for index, move in enumerate(path):
        if move.kind == "renoise":
            step = Step(renoise(x, move, source))
        else:
            step = solver.step(denoise, x, move, state, source)
        for constraint in constraints:
            step = replace(step, x=constraint(step, move, source))
        state = step.state if keeps_history else None
        x = step.x
        yield Record(step, move, index, len(path))
        del step  # the next one is made in the memory of this one's prediction


def integrate(
    denoise: Denoiser,
    solver: Solver,
    path: Path,
    x: Tensor,
    *,
    constraints: Sequence[Constraint] = (),
    noise: Noise | None = None,
    callback: Callback | None = None,
    progress: str | None = None,
) -> Tensor:
    """Carry ``x`` along ``path`` and return where it arrives, in the dtype of ``x``.

    No gradients are kept; the state is float32 or wider, whatever the dtype of ``x``. Nothing in the loop waits for the
    device: finiteness is looked at once, after the last move.

    Args:
        denoise: ``denoise(x, level) -> Prediction``.
        solver: Makes the moves, except those of kind ``renoise``.
        path: Which moves, in order.
        x: The image at ``path.start``, [B, C, H, W], floating and finite.
        constraints: Called after every move, in order, each on what the one before returned. Multistep history is
            dropped unless all of them say ``resets_history = False``.
        noise: Where random numbers come from; deterministic runs need none.
        callback: Called with a :class:`Record` after every move.
        progress: Label of a progress bar on standard error; None shows none.

    Returns:
        The image at ``path.end``, [B, C, H, W].

    Raises:
        UserError: ``x`` of another form, or a solver or constraint that draws noise without having any.
        NonFiniteError: The image became NaN or infinite; the message names the first such step.
        Interrupted: Ctrl-C was pressed; it carries the image so far.
    """
    _check_start(x)
    records = trajectory(denoise, solver, path, x, constraints=constraints, noise=noise)
    latest, done = x, 0
    ends: list[Tensor] = []
    with torch.no_grad(), _Bar(progress, len(path)) as bar:
        try:
            for record in records:
                latest, done = record.step.x, record.index + 1
                ends.extend(torch.aminmax(latest))  # NaN is both; 20 times faster than isfinite of all
                if callback is not None:
                    callback(record)
                bar.advance()
                del record
        except KeyboardInterrupt as error:
            raise Interrupted(latest, done) from error
    _check_finite(ends, path)
    return latest.to(x.dtype)


class Recorder:
    """A callback that keeps the image, or the predicted clean image, every so many moves and at the end."""

    def __init__(self, every: int = 1, keeps_x0: bool = False, on_cpu: bool = True) -> None:
        """Choose what to keep.

        Args:
            every: Moves between two kept images, at least 1.
            keeps_x0: Keep the prediction's ``x0`` instead of ``x``; moves without a prediction are left out.
            on_cpu: Move kept images to the CPU, which waits for the device at each.

        Raises:
            UserError: ``every`` below 1.
        """
        require(every >= 1, f"every is {every}; it must be at least 1")
        self.every, self.keeps_x0, self.on_cpu = every, keeps_x0, on_cpu
        self.images: list[Tensor] = []  #: what was kept, in order
        self.moves: list[Move] = []  #: the moves that made them

    def __call__(self, record: Record) -> None:
        """Keep this record's image if it is its turn."""
        if (record.index + 1) % self.every and record.index + 1 < record.total:
            return
        prediction = record.step.prediction
        if self.keeps_x0 and prediction is None:
            return
        image = prediction.x0 if self.keeps_x0 and prediction is not None else record.step.x
        self.images.append(image.detach().cpu() if self.on_cpu else image.detach())
        self.moves.append(record.move)


class _NoNoise(Noise):
    """Stands in where no noise was given: says so when it is needed."""

    def __init__(self) -> None:
        super().__init__(0, (1,))

    def __call__(self) -> Tensor:
        raise UserError("this run draws noise but was given none; pass noise=Noise(seed, like=x)")

    def fork(self, name: str) -> Noise:
        return self


class _Bar:
    """A progress bar, or nothing without a label."""

    def __init__(self, label: str | None, total: int) -> None:
        self._bar = None
        if label is not None:
            from tqdm import tqdm  # only where a bar is shown: importing the library stays light

            self._bar = tqdm(total=total, desc=label, leave=False)

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _check_start(x: Tensor) -> None:
    require(
        x.ndim == 4 and x.is_floating_point() and x.shape[0] > 0,
        f"x is {list(x.shape)} {x.dtype}; a run starts from a floating-point tensor [B, C, H, W] with B >= 1",
    )
    require(
        bool(torch.isfinite(x).all()), "x holds NaN or infinite values before the first step; check the input image"
    )


def _check_finite(ends: Sequence[Tensor], path: Path) -> None:
    """Raise NonFiniteError for the first move after which the least or the greatest number was not finite."""
    flags = torch.isfinite(torch.stack(list(ends))).reshape(-1, 2).all(1).tolist()
    if all(flags):
        return
    bad = flags.index(False)
    move = path[bad]
    raise NonFiniteError(
        f"the image is no longer finite after step {bad + 1} of {len(path)} ({move.kind}, t = {move.here.t:g} to "
        f"{move.there.t:g}); try float32 instead of half precision, or less guidance"
    )

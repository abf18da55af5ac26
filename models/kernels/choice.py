"""The one setting of the fused kernels, and what happens where they cannot run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from steerdiff.errors import require, warn

from . import build

__all__ = ["Kernels", "at_hand", "fused", "run_on_cuda", "setting", "status", "use"]

Kernels = Literal["auto", "cuda", "reference"]
_VARIABLE = "STEERDIFF_KERNELS"
_CHOICES = "auto, cuda or reference"


@dataclass
class _State:
    """What this process chose and what it found out."""

    setting: str = os.environ.get(_VARIABLE, "auto")
    failure: str | None = None  #: why the kernels cannot be had here
    warned: set[str] = field(default_factory=set)


_state = _State()


def setting() -> Kernels:
    """Return the setting: what `use` was told last, else the environment variable STEERDIFF_KERNELS, else "auto".

    Raises:
        UserError: The environment variable is none of the three.
    """
    chosen = _state.setting
    require(chosen in get_args(Kernels), f"{_VARIABLE} is {chosen!r}; set it to {_CHOICES}")
    return cast(Kernels, chosen)


def use(kernels: Kernels) -> contextlib.AbstractContextManager[None]:
    """Choose the kernels for this process; as a context manager, until the end of the block.

    Args:
        kernels: "cuda" takes the fused kernels and raises ``UserError`` where they cannot be had; "reference" takes
            PyTorch's own operators; "auto" takes the kernels on CUDA tensors, and where they cannot run PyTorch's
            operators with one warning that says why.

    Raises:
        UserError: It is none of the three.
    """
    require(kernels in get_args(Kernels), f"kernels is {kernels!r}; give {_CHOICES}")
    before, _state.setting = _state.setting, kernels

    @contextlib.contextmanager
    def until_the_end() -> Iterator[None]:
        try:
            yield
        finally:
            _state.setting = before

    return until_the_end()


def fused(x: Tensor) -> bool:
    """Say whether a call on ``x`` goes to the operators, which run the kernels, and not to the plain functions.

    The first such call builds the kernels, so that where that fails, the first call too runs the plain functions. While
    PyTorch traces nothing is built: the operators in the graph decide when they run.

    Raises:
        UserError: The setting is "cuda", and ``x`` is on another device, or the kernels cannot be had.
    """
    chosen = setting()
    if chosen == "reference":
        return False
    if x.device.type != "cuda":
        require(
            chosen != "cuda",
            f"kernels is cuda, and the tensors are on {x.device.type}; move the model to a CUDA device, or choose auto",
        )
        return False
    if torch.compiler.is_compiling():
        return chosen == "cuda" or _state.failure is None
    return run_on_cuda(None)


def at_hand(x: Tensor) -> bool:
    """Say the same as `fused`, but where the setting is "auto" only of kernels that somebody built: none is built here.

    For what PyTorch's operators do well enough: a plain sample is worth neither minutes of a compiler nor a warning.
    Whether they are there is asked once a process, so that its results do not change on the way.

    Raises:
        UserError: As `fused`.
    """
    if setting() == "auto" and (x.device.type != "cuda" or not _built()):
        return False
    return fused(x)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _built() -> bool:
    return build.built()


def run_on_cuda(limit: str | None) -> bool:
    """Say whether the kernels run a call on CUDA tensors, after building them if need be; warn once if not.

    Args:
        limit: What of the call is outside the kernels' range; None if nothing is.

    Raises:
        UserError: They cannot, and the setting is "cuda".
    """
    chosen = setting()
    if chosen == "reference":  # a graph that was compiled before the setting changed
        return False
    if limit is None:
        _state.failure = build.failure()
    reason = limit or _state.failure
    if reason is None:
        return True
    require(chosen != "cuda", f"kernels is cuda, and the fused kernels cannot run: {reason}")
    if reason not in _state.warned:
        _state.warned.add(reason)
        warn(f"the fused kernels do not run, PyTorch's operators do: {reason}")
    return False


def status(cuda: bool) -> str:
    """Return which kernels are in use and why, in one line; builds nothing.

    Args:
        cuda: Whether PyTorch finds a CUDA device.
    """
    chosen = setting()
    asked = f"setting {chosen}"
    if chosen == "reference":
        return f"reference: PyTorch's own operators ({asked})"
    if not cuda:
        return f"reference: PyTorch finds no CUDA device ({asked}); the CPU runs PyTorch's own operators"
    return f"{build.outlook()} ({asked})"

"""The one error that a user's input can raise, the check that raises it, and warnings that name the user's line."""

from __future__ import annotations

import sys
import warnings

__all__ = ["UserError", "require", "warn"]

#: Packages whose frames lie between a user's line and a warning.
_INSIDE = ("steerdiff", "torch", "contextlib")


class UserError(ValueError):
    """Bad input: the message says in one sentence what was given, what is allowed and what to do."""


def require(condition: bool, message: str) -> None:
    """Raise ``UserError(message)`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


def warn(message: str) -> None:
    """Warn, at the line outside this library (and PyTorch's decorators) that the call came from."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)

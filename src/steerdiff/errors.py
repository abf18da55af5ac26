"""The one error that a user's input can raise, and the check that raises it."""

from __future__ import annotations

__all__ = ["UserError", "require"]


class UserError(ValueError):
    """Bad input: the message says in one sentence what was given, what is allowed and what to do."""


def require(condition: bool, message: str) -> None:
    """Raise ``UserError(message)`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)

"""Controlled diffusion image generation: every method is a path, a denoiser, a solver and a constraint.

Importing the package imports no part of it; each part is imported when it is first named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from steerdiff._version import __version__
from steerdiff.errors import UserError

if TYPE_CHECKING:
    from steerdiff import guidance as guidance
    from steerdiff import io as io
    from steerdiff import methods as methods
    from steerdiff import models as models
    from steerdiff import samplers as samplers
    from steerdiff import train as train
    from steerdiff.guidance.loading import load as load
    from steerdiff.guidance.model import Model as Model

__all__ = [
    "Model",
    "UserError",
    "__version__",
    "guidance",
    "io",
    "load",
    "methods",
    "models",
    "samplers",
    "train",
]

_MODULES = ("guidance", "io", "methods", "models", "samplers", "train")
_NAMES = {"Model": "steerdiff.guidance.model", "load": "steerdiff.guidance.loading"}


def __getattr__(name: str) -> Any:
    """Import a part, or the module that holds a name, when it is first asked for."""
    if name in _MODULES:
        return importlib.import_module(f"steerdiff.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'steerdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

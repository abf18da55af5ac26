"""Warnings name the line that the user wrote."""

from __future__ import annotations

import inspect
import types
import warnings

import pytest
import torch

from steerdiff.errors import UserError, require, warn


def inside(depth: int) -> types.FunctionType:
    """Return a function of this library, under a decorator of PyTorch, that warns so many calls further down."""
    source = "def f(depth):\n    return f(depth - 1) if depth else warn('careful')\n"
    module = {"__name__": "steerdiff.methods.made_up", "warn": warn}
    exec(source, module)
    assert callable(module["f"]) and depth >= 0
    return module["f"]  # type: ignore[return-value]


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_a_warning_points_to_the_line_outside_the_library(depth: int) -> None:
    call = torch.no_grad()(inside(depth))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call(depth)
        line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
    assert [(str(one.message), one.filename, one.lineno) for one in found] == [("careful", __file__, line)]


def test_what_is_required_raises_its_message() -> None:
    require(True, "fine")
    with pytest.raises(UserError, match="not fine"):
        require(False, "not fine")

"""What is timed together, which ratios it is made for, and in which setting."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["Contest", "Ratio", "Setting", "Thunk", "count", "filled", "missing", "no_bfloat16", "normal", "uncompiled"]

#: Does the work once.
Thunk = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One entry's time and memory over another's, and the largest that is aimed for."""

    of: str  #: the entry above the line
    to: str  #: the entry below it
    time: float | None = None  #: goal for the time; None only reports
    memory: float | None = None  #: goal for the peak memory; None only reports


@dataclass(frozen=True, kw_only=True)
class Contest:
    """The same work done by us and by others."""

    key: str  #: what is timed, the same in every run: a ratio is found again by it
    entries: dict[str, Thunk]  #: "ours" first, then the others by name
    ratios: tuple[Ratio, ...] = ()  #: what the entries are compared for; entries that are missing leave theirs empty
    facts: dict[str, Any] = field(default_factory=dict)  #: sizes, parameter counts, what is missing
    work: float = 1.0  #: images (or steps) of one call, for the rate
    unit: str = "call"  #: what ``work`` counts
    grad: bool = False  #: whether the entries keep gradients


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where the cases run, and at which sizes."""

    device: torch.device  #: of all entries
    dtype: torch.dtype  #: of all entries whose name says no other
    networks: tuple[str, ...]  #: names of network sizes
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)  #: of the scaling curves
    sides: tuple[int, ...] = (16, 32, 64)  #: height and width of the state, for the scaling curves


def normal(shape: tuple[int, ...], setting: Setting, dtype: torch.dtype | None = None) -> Tensor:
    """Return normal numbers, the same in every run, in the setting's place and type."""
    import torch

    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return drawn.to(setting.device, setting.dtype if dtype is None else dtype)


def filled(net: nn.Module, setting: Setting, *, grad: bool = False) -> Any:
    """Return ``net`` in the setting's place and type; what starts at zero gets small numbers, so that all layers work.

    Dropout is off, also where gradients are kept: it would draw other numbers in each entry.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.02, generator=generator)
    return net.to(setting.device, setting.dtype).eval().requires_grad_(grad)


def count(module: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def missing(library: str) -> str | None:
    """Return why a peer cannot take part, or None if it can."""
    if importlib.util.find_spec(library) is not None:
        return None
    return f"{library.replace('_', '-')} is not installed; pip install 'steerdiff[bench]'"


def uncompiled(device: torch.device) -> str | None:
    """Return why nothing is compiled for ``device``, or None if it can be."""
    if device.type == "cuda":
        return missing("triton") and "torch.compile needs triton for this device; pip install triton"
    compiler = os.environ.get("CXX", "g++")
    return None if shutil.which(compiler) else f"torch.compile needs a C++ compiler, and {compiler} is not found"


def no_bfloat16(device: torch.device) -> str | None:
    """Return why bfloat16 is not timed on ``device``, or None if it is."""
    import torch

    if device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return "this CPU has no bfloat16 for oneDNN (AVX-512), and without it a convolution takes many times as long"

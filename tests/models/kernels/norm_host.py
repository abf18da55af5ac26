"""The normalisation kernels, compiled by g++ from their own source and called on CPU tensors by ctypes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import emulation
from .emulation import DTYPES

POINTERS = "x y dy dx weight bias scale shift"
ALL_GRADIENTS = ("dx", "d_weight", "d_bias", "d_scale", "d_shift")
OUTPUTS = "mean rstd work d_weight d_bias d_scale d_shift"


class Args(ctypes.Structure):
    """``NormArgs`` of norm.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in POINTERS.split()),
        ("scale_stride", ctypes.c_int64),
        ("shift_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in OUTPUTS.split()),
        *((name, ctypes.c_int) for name in ("rows", "channels", "groups")),
        ("cells", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("channels_last", ctypes.c_bool),
        ("act", ctypes.c_bool),
        ("dtype", ctypes.c_int),
        ("param_dtype", ctypes.c_int),
    ]


def compiled(folder: Path) -> ctypes.CDLL:
    """Compile the kernels into ``folder`` and load them."""
    kernels = emulation.compiled(folder, "host_norm.cpp", "-O1")
    kernels.norm_work_floats.restype = ctypes.c_int64
    assert kernels.norm_args_size() == ctypes.sizeof(Args)
    return kernels


@dataclass
class Case:
    """One call: ``x`` [B, C, S] (or [B, S, C] with channels last), parameters [C], scale and shift [B, C]."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    groups: int
    scale: Tensor | None = None
    shift: Tensor | None = None
    eps: float = 1e-5
    channels_last: bool = False
    act: bool = True

    def args(self, **tensors: Tensor | None) -> Args:
        """Arguments for this case; ``tensors`` are further pointers."""
        rows, *sizes = self.x.shape
        channels, cells = reversed(sizes) if self.channels_last else sizes
        tensors = {"x": self.x, "weight": self.weight, "bias": self.bias, **tensors}
        tensors |= {"scale": self.scale, "shift": self.shift}
        return Args(
            **{name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None},
            scale_stride=0 if self.scale is None else self.scale.stride(0),
            shift_stride=0 if self.shift is None else self.shift.stride(0),
            rows=rows,
            channels=channels,
            cells=cells,
            groups=self.groups,
            eps=self.eps,
            channels_last=self.channels_last,
            act=self.act,
            dtype=DTYPES[self.x.dtype],
            param_dtype=DTYPES[self.weight.dtype],
        )


def forward(kernels: ctypes.CDLL, case: Case, y: Tensor | None = None, backwards: bool = False) -> tuple[Tensor, ...]:
    """Return y, mean and rstd; ``y`` may be given, ``backwards`` runs the warps in the opposite order."""
    y = torch.full_like(case.x, torch.nan) if y is None else y
    mean, rstd = torch.full((2, len(case.x), case.groups), torch.nan)
    work = torch.full((kernels.norm_work_floats(ctypes.byref(case.args())) + 1,), torch.nan)
    work[-1] = 7.0
    args = case.args(y=y, mean=mean, rstd=rstd, work=work)
    assert kernels.norm_forward(ctypes.byref(args), backwards) == 0
    assert work[-1] == 7.0, "more work than norm_work tells"
    return y, mean, rstd


def backward(
    kernels: ctypes.CDLL, case: Case, dy: Tensor, backwards: bool = False, wanted: tuple[str, ...] = ALL_GRADIENTS
) -> dict[str, Tensor]:
    """Return the gradients wanted of ``sum(y * dy)``, by their names in ``NormArgs``."""
    _, mean, rstd = forward(kernels, case)
    rows, channels = len(case.x), len(case.weight)
    shapes = {"d_weight": (channels,), "d_bias": (channels,), "d_scale": (rows, channels), "d_shift": (rows, channels)}
    gradients = {name: torch.full(shape, torch.nan) for name, shape in shapes.items()}
    gradients["dx"] = torch.full_like(case.x, torch.nan)
    gradients = {name: gradients[name] for name in wanted}
    work = torch.full((kernels.norm_work_floats(ctypes.byref(case.args())) + 1,), torch.nan)
    work[-1] = 7.0
    args = case.args(dy=dy, mean=mean, rstd=rstd, work=work, **gradients)
    assert kernels.norm_backward(ctypes.byref(args), backwards) == 0
    assert work[-1] == 7.0, "more work than norm_work tells"
    return gradients

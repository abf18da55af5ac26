"""The attention kernels compiled by g++ and called through ctypes, with torch's tensors; what compiles all kernels."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: why tests of the emulation are skipped, if they are
NO_COMPILER = None if shutil.which("g++") else "there is no g++ to compile the kernels' emulation"
KERNELS = Path(__file__).parents[3] / "models" / "kernels"
DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}
ROWS = 64
SHARED_MEMORY = 99 * 1024  # of a block on the smallest of the newer devices

Strides = ctypes.c_int64 * 3
Rows = ctypes.c_int * ROWS


class AttentionArgs(ctypes.Structure):
    """struct AttentionArgs of attention.h."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("q", "k", "v", "taken", "left", "out")],
        *[(name + "_stride", Strides) for name in ("q", "k", "v", "taken", "left", "out")],
        ("mask", ctypes.c_void_p),
        ("mask_stride", ctypes.c_int64),
        *[(name, ctypes.c_int) for name in ("rows", "heads", "n", "m", "d")],
        ("scale", ctypes.c_float),
        ("lead", Rows),
        ("edit", Rows),
        *[(name, ctypes.c_void_p) for name in ("words_taken", "words_left", "sums")],
        *[(name, ctypes.c_int) for name in ("word_rows", "words", "dtype")],
    ]


def compiled(folder: Path, source: str, level: str) -> ctypes.CDLL:
    """The library of an emulation, ``source`` in the kernels' folder, made in ``folder`` at an optimisation level."""
    library = folder / f"{source}.so"
    flags = ["-std=c++17", level, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    subprocess.run(["g++", *flags, str(KERNELS / source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def arguments(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lead: list[int], **more: Any) -> AttentionArgs:
    """The struct for these tensors; `more` may have edit, taken, left, mask, words_taken, words_left, sums."""
    rows, heads, n, d = q.shape
    args = AttentionArgs(rows=rows, heads=heads, n=n, m=k.shape[2], d=d, scale=d**-0.5, dtype=DTYPES[q.dtype])
    args.lead = Rows(*lead)
    args.edit = Rows(*more.get("edit", [-1] * rows))
    for name, tensor in {"q": q, "k": k, "v": v, "out": out, **more}.items():
        if not isinstance(tensor, Tensor):
            continue
        setattr(args, name, tensor.data_ptr())
        if name in ("q", "k", "v", "out", "taken", "left"):
            assert tensor.stride(3) == 1
            setattr(args, name + "_stride", Strides(*tensor.stride()[:3]))
        if name == "mask":
            args.mask_stride = tensor.stride(0) if len(tensor) > 1 else 0
        if name == "words_left":
            args.word_rows, args.words = tensor.shape[:2]
    return args


def call(library: ctypes.CDLL, name: str, args: AttentionArgs, limit: int, backwards: bool) -> int:
    """What emulated_`name` returns: 0, or 1 for arguments outside the limits."""
    result: int = getattr(library, "emulated_" + name)(ctypes.byref(args), limit, int(backwards))
    return result

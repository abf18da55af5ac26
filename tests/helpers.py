"""Reading the golden files, and the formulas that stand for weights and models in them (tests/golden/README.md)."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["cond_fn", "eps_fn", "golden_files", "golden_unit", "golden_weight", "learned_fn", "load_golden"]

Arrays = dict[str, np.ndarray]


def golden_files(pattern: str) -> list[Path]:
    """Golden files matching ``pattern`` (such as "diffusion/steps_*"), sorted; STEERDIFF_GOLDEN names the folder."""
    folder = Path(os.environ.get("STEERDIFF_GOLDEN", Path(__file__).parent / "golden"))
    return sorted(folder.glob(pattern if pattern.endswith(".npz") else pattern + ".npz"))


def load_golden(path: Path | str) -> tuple[Arrays, dict[str, Any]]:
    """The arrays of a golden file, and its ``meta``."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(arrays.pop("meta").tobytes())


def golden_unit(name: str, shape: Sequence[int]) -> np.ndarray:
    """Float64 values of mean 0 and variance 1, uniform, that depend on the name and shape alone."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    return (((raw >> np.uint64(11)) * 2.0**-53) * 2 - 1).reshape(shape) * 3**0.5


def golden_weight(key: str, shape: Sequence[int], s: float = 1.0) -> np.ndarray:
    """Float64 weights of the state-dict entry ``key``; ``s`` is ``meta["weight_scale"]``. Cast them to float32."""
    z = golden_unit(key, shape)
    if key.endswith("running_var"):
        return 1 + 0.1 * z
    if len(shape) >= 2:
        return s * z / np.prod(shape[1:]) ** 0.5
    if len(shape) == 1 and key.endswith("weight"):
        return 1 + 0.1 * z
    return s * 0.1 * z


def eps_fn(x: Tensor, t: Tensor | float) -> Tensor:
    """The formula in the place of a network that predicts noise; ``t`` is a number or [B]."""
    t = _over_image(x, t)
    return 0.6 * x + 0.3 * torch.sin(2 * x + 0.005 * t) + 0.05 * torch.cos(0.01 * t)


def learned_fn(x: Tensor, t: Tensor | float) -> Tensor:
    """The same with learned variances: twice the channels."""
    return torch.cat([eps_fn(x, t), torch.sin(3 * x - 0.004 * _over_image(x, t))], dim=1)


def cond_fn(x: Tensor, t: Tensor | float, y: Tensor) -> Tensor:
    """The formula in the place of a classifier's gradient; ``y`` are labels [B]."""
    return 0.5 * torch.cos(x + 0.1 * _over_image(x, y)) + 0.0002 * _over_image(x, t)


def _over_image(x: Tensor, t: Tensor | float) -> Tensor:
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    return t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t

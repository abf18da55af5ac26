"""Build and load the fused kernels: ahead of time by ``setup.py``, or on their first use, kept in the cache folder.

``setup.py`` and ``make cuda-check`` run this file by its path, so that it imports PyTorch and steerdiff where it uses
them only.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import shutil
import sysconfig
from pathlib import Path
from typing import Any, cast

__all__ = [
    "ARCHITECTURES",
    "CXX_FLAGS",
    "NAME",
    "NVCC_FLAGS",
    "ahead_of_time",
    "built",
    "failure",
    "outlook",
    "sources",
    "tag",
]

NAME = "steerdiff_kernels"
#: compute capabilities of an ahead-of-time build; the PTX of the last is compiled by the driver for all newer devices
ARCHITECTURES = "8.0;9.0+PTX"
OLDEST = (8, 0)  # compute capability with matrix products of bfloat16 and asynchronous copies
CXX_FLAGS = ["-O3", "-std=c++20"]
NVCC_FLAGS = ["-O3", "-std=c++20"]
_FOLDER = Path(__file__).resolve().parent
_CURE = "or choose --kernels reference"
_log = logging.getLogger(__name__)


def sources() -> list[Path]:
    """Return the files to compile."""
    return [*sorted(_FOLDER.glob("*.cu")), _FOLDER / "binding.cpp"]


def tag() -> str:
    """Return 12 digits that change with the sources, the flags and PyTorch's version."""
    import torch

    digest = hashlib.sha256(f"{torch.__version__} {CXX_FLAGS} {NVCC_FLAGS}".encode())
    for suffix in ("cu", "cuh", "h", "cpp"):
        for path in sorted(_FOLDER.glob(f"*.{suffix}")):
            digest.update(f"\n{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def ahead_of_time() -> Path:
    """Return where the library of an ahead-of-time build is, if there is one for these sources and this PyTorch."""
    return _FOLDER / f"{NAME}_{tag()}.so"


def outlook() -> str:
    """Say which kernels CUDA tensors get here and why; builds nothing."""
    if old := _too_old():
        return f"reference: {old}"
    if ahead_of_time().is_file():
        return f"cuda: built ahead of time ({ahead_of_time()})"
    if (_cached() / f"{NAME}.so").is_file():
        return f"cuda: built on an earlier use ({_cached()})"
    missing = _missing()
    return f"reference: {missing}" if missing else f"cuda: will be built on the first use ({_cached()})"


@functools.cache
def built() -> bool:
    """Say whether the kernels are there for these devices: ahead of time or of an earlier use. Asked once a process."""
    return _too_old() is None and (ahead_of_time().is_file() or (_cached() / f"{NAME}.so").is_file())


@functools.cache
def failure() -> str | None:
    """Build the kernels if need be and load them, once a process; return why that is impossible, with a cure."""
    import torch

    if old := _too_old():
        return old
    library, operators = ahead_of_time(), cast(Any, torch.ops)
    try:
        if not library.is_file():
            if missing := _missing():
                return missing
            library = _compile()
        operators.load_library(str(library))
    except Exception as error:  # whatever the compiler or the loader says, the plain operators still work
        return f"building them failed: {_first_error(str(error))}; see that nvcc fits PyTorch's CUDA, {_CURE}"
    return None


def _too_old() -> str | None:
    """Return which device lacks the instructions that the kernels use."""
    import torch

    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if capability < OLDEST:
            had, needed = (".".join(map(str, pair)) for pair in (capability, OLDEST))
            return f"{torch.cuda.get_device_name(index)} has compute capability {had}, and they need {needed}"
    return None


def _missing() -> str | None:
    """Return which tool a build needs and does not find, with a cure."""
    from torch.utils import cpp_extension

    home = cpp_extension.CUDA_HOME
    if home is None or not (Path(home) / "bin" / "nvcc").is_file():
        return f"nvcc is not found; install the CUDA toolkit of PyTorch's version and set CUDA_HOME, {_CURE}"
    if shutil.which("ninja", path=_path()) is None:
        return f"ninja is not found; pip install ninja, {_CURE}"
    return None


def _compile() -> Path:
    from torch.utils import cpp_extension

    folder = _cached()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / f"{NAME}.so").is_file():
        _log.warning("building the fused kernels into %s: this takes minutes, once, %s", folder, _CURE)
    before, os.environ["PATH"] = os.environ.get("PATH", ""), _path()
    try:
        cpp_extension.load(
            NAME,
            [str(path) for path in sources()],
            extra_cflags=CXX_FLAGS,
            extra_cuda_cflags=NVCC_FLAGS,
            build_directory=str(folder),
            with_cuda=True,
            is_python_module=False,
        )
    finally:
        os.environ["PATH"] = before
    return folder / f"{NAME}.so"


def _cached() -> Path:
    """Return the folder of a build on first use: one for each tag and set of devices."""
    import torch

    from steerdiff.io import cache_folder

    devices = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    named = os.environ.get("TORCH_CUDA_ARCH_LIST") or ";".join(f"{major}.{minor}" for major, minor in sorted(devices))
    return cache_folder() / "kernels" / "-".join([tag(), *named.replace("+", "").replace(" ", ";").split(";")])


def _path() -> str:
    """Return PATH with this Python's own programs: ninja is there even where its environment was not activated."""
    return os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")])


def _first_error(text: str) -> str:
    """Return the line of a compiler's output that says what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if re.search(r"\berror( #\S+)?:", line)), lines[0] if lines else "no message")

"""``make cuda-check``: compile every CUDA kernel for each architecture, without a GPU, and show what it takes.

Needs nvcc and no PyTorch. Leaves with 1 where a kernel does not compile or spills registers to local memory.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Usage", "compiled", "main", "parse"]

KERNELS = Path(__file__).resolve().parents[1] / "models" / "kernels"
BUILD = runpy.run_path(str(KERNELS / "build.py"))
#: of an ahead-of-time build, such as 80; beside them the newest that nvcc knows, through its PTX
ARCHITECTURES = tuple("".join(pair) for pair in re.findall(r"(\d+)\.(\d+)", BUILD["ARCHITECTURES"]))
_ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Usage:
    """What one kernel takes on one architecture."""

    kernel: str  #: mangled name
    architecture: str  #: such as sm_80
    registers: int  #: of a thread
    shared: int  #: bytes of static shared memory
    spilled: int  #: bytes that are stored to or loaded from local memory because registers ran out


def main() -> int:
    """Print a table of all kernels; return 1 if one fails."""
    nvcc = find_nvcc()
    if nvcc is None:
        print("cuda-check: SKIPPED, nothing was checked: nvcc is not found (PATH and CUDA_HOME were searched)")
        return 0
    sources = sorted(KERNELS.glob("*.cu"))
    if not sources:
        print(f"cuda-check: there is no .cu file in {KERNELS}")
        return 1
    found: list[Usage] = []
    failed = False
    for source in sources:
        done = compiled(nvcc, source)
        found += parse(done.stderr)
        if done.returncode != 0:
            print(f"{source.name} does not compile:\n{done.stderr}", file=sys.stderr)
            failed = True
    _table(found)
    spilling = [usage for usage in found if usage.spilled]
    architectures = ", ".join(sorted({usage.architecture for usage in found}))
    print(f"cuda-check: {len(sources)} files, {len(found)} kernels for {architectures}, {len(spilling)} with spills")
    return int(failed or bool(spilling) or not found)


def find_nvcc() -> str | None:
    """Return the path of nvcc: that of CUDA_HOME, else that of PATH."""
    home = os.environ.get("CUDA_HOME")
    own = Path(home) / "bin" / "nvcc" if home else None
    return str(own) if own is not None and own.is_file() else shutil.which("nvcc")


def compiled(nvcc: str, source: Path) -> subprocess.CompletedProcess[str]:
    """Compile one file for all architectures; ptxas' report is in ``stderr``."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    newest = max(re.findall(r"compute_(\d+)\b", listed), key=int)
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in ARCHITECTURES]
    if newest not in ARCHITECTURES:  # the PTX as it ships, and what the assembler makes of it
        targets.append(f"-gencode=arch=compute_{newest},code=[compute_{newest},sm_{newest}]")
    flags = [*BUILD["NVCC_FLAGS"], "-Xptxas=-v", "--threads=0", "-c"]
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *flags, *targets, str(source), "-o", str(Path(folder) / "kernels.o")]
        return subprocess.run(command, capture_output=True, text=True)


def parse(report: str) -> Iterator[Usage]:
    """Read ptxas' report."""
    kernel, architecture, spilled = "", "", 0
    for line in report.splitlines():
        if match := _ENTRY.search(line):
            kernel, architecture, spilled = match[1], match[2], 0
        elif match := _STACK.search(line):
            spilled = int(match[2]) + int(match[3])
        elif (match := _USED.search(line)) and kernel:
            shared = _SHARED.search(line)
            yield Usage(kernel, architecture, int(match[1]), int(shared[1]) if shared else 0, spilled)
            kernel = ""


def _table(found: Sequence[Usage]) -> None:
    names = _readable([usage.kernel for usage in found])
    print(f"{'registers':>9} {'shared':>8} {'spilled':>8}  {'for':<8} kernel")
    for usage, name in zip(found, names, strict=True):
        print(f"{usage.registers:>9} {usage.shared:>8} {usage.spilled:>8}  {usage.architecture:<8} {name}")


def _readable(names: list[str]) -> list[str]:
    """Return the names as the source has them, where a demangler is at hand."""
    filt = shutil.which("cu++filt") or shutil.which("c++filt")
    if filt is None or not names:
        return names
    done = subprocess.run([filt, "-p"], input="\n".join(names), capture_output=True, text=True)  # no parameters
    lines = [line.replace("(anonymous namespace)::", "") for line in done.stdout.splitlines()]
    return lines if done.returncode == 0 and len(lines) == len(names) else names


if __name__ == "__main__":
    sys.exit(main())

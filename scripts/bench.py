"""``steerdiff bench``: time our parts and other libraries', interleaved in one process."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerdiff.errors import require

from .arguments import parse
from .benchmarks import CASES, PLANNED, SIZES, Setting
from .runtime import DeviceFlags, environment
from .suggestions import closest

if TYPE_CHECKING:
    import torch

__all__ = ["Bench", "main"]

_PEERS = ("torch", "diffusers", "k-diffusion", "transformers", "numpy")


@dataclass(frozen=True, kw_only=True)
class Bench(DeviceFlags):
    """Time the parts. Each round runs every entry once, so that a busy moment hits all of them alike."""

    #: groups of cases: attention, forward, backward, edits, floors, loop, whole, sampling, scaling; none means all
    only: tuple[str, ...] = ()
    networks: tuple[str, ...] = tuple(SIZES)  #: sizes of the UNets: small, adm-64, adm-256, sd-1.5
    quick: bool = False  #: the small network alone, and small batches and grids
    rounds: int = 9  #: measurements of each entry
    seconds: float = 0.05  #: least time of one measurement; quick calls are repeated to fill it
    out: Path = Path("out/bench.json")  #: file for the results
    keep: bool = False  #: keep what is in that file of cases that are not measured again
    markdown: Path | None = None  #: file for the tables of all results in ``out``
    plot: Path | None = None  #: PNG for the scaling curves in ``out``


def main(arguments: Sequence[str], prog: str) -> int:
    """Run the cases, print a line for each entry, and write the files."""
    flags = parse(Bench, arguments, prog=prog)
    _check(flags)
    import torch

    from steerdiff.io import ensure_writable
    from steerdiff.models import kernels

    from .benchmarks.report import summary
    from .benchmarks.timing import measure

    for path in (flags.out, flags.markdown, flags.plot):
        if path is not None:
            ensure_writable(path.parent)
    flags.prepare()
    setting = _setting(flags)
    kernels.fused(torch.empty(0, device=setting.device))  # builds them, so that all that is timed runs on them
    facts = _environment(setting.device, flags.precision)
    results = _kept(flags.out) if flags.keep else {}
    for name, make in CASES.items():
        if flags.only and name not in flags.only:
            continue
        for contest in make(setting):
            result = {**measure(contest, flags.rounds, flags.seconds, setting.device), "environment": facts}
            results[facts["hardware"], facts["precision"], contest.key] = result
            print(summary(result), flush=True)
            del contest  # its networks make room for those of the next
            _write(flags, list(results.values()))
    return 0


def _check(flags: Bench) -> None:
    require(flags.rounds >= 1, f"rounds is {flags.rounds}; it must be at least 1")
    for name in flags.only:
        require(name in CASES, f"there is no case {name!r}; {closest(name, CASES)}")
    for name in flags.networks:
        require(name in SIZES, f"there is no network {name!r}; {closest(name, SIZES)}")


def _setting(flags: Bench) -> Setting:
    import torch

    shared: dict[str, Any] = {"device": torch.device(flags.place()), "dtype": getattr(torch, flags.precision)}
    if flags.quick:
        return Setting(**shared, networks=("small",), batches=(1, 2, 4), sides=(16, 32))
    return Setting(**shared, networks=flags.networks)


def _kept(path: Path) -> dict[tuple[str, str, str], Any]:
    """Return the results in a file of an earlier run by hardware, precision and key; nothing where there is none."""
    if not path.is_file():
        return {}
    results = json.loads(path.read_text())["results"]
    return {(one["environment"]["hardware"], one["environment"]["precision"], one["key"]): one for one in results}


def _write(flags: Bench, results: list[dict[str, Any]]) -> None:
    """Write all files; after each contest, so that a run that is killed leaves what it has measured."""
    from steerdiff.io import atomic_write

    from .benchmarks.report import markdown, plot

    text = json.dumps({"results": results}, indent=2) + "\n"
    atomic_write(flags.out, lambda file: file.write(text.encode()))
    if flags.markdown is not None:
        page = markdown(results, PLANNED)
        atomic_write(flags.markdown, lambda file: file.write(page.encode()))
    drawn = None if flags.plot is None else plot(results)
    if flags.plot is not None and drawn is not None:
        atomic_write(flags.plot, lambda file: file.write(drawn))


def _environment(device: torch.device, precision: str) -> dict[str, Any]:
    from steerdiff.models import kernels

    facts = environment(str(device))
    cuda = device.type == "cuda"
    hardware = facts["device"] if cuda else _processor()
    used = {"kernels": kernels.status(cuda)} if cuda else {}
    return {**facts, **used, "kind": device.type, "hardware": hardware, "precision": precision, "versions": _versions()}


def _processor() -> str:
    """Return the CPU's name, number of cores and widest instructions, as well as the system tells them."""
    import os

    import torch

    found = platform.processor() or platform.machine()
    table = Path("/proc/cpuinfo")
    if table.is_file():
        names = [line.partition(":")[2].strip() for line in table.read_text().splitlines() if "model name" in line]
        found = names[0] if names else found
    return f"{found}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def _versions() -> dict[str, str]:
    found = {}
    for name in _PEERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found

"""``steerdiff bench``: time our parts and other libraries', interleaved in one process."""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerdiff.errors import require

from .arguments import parse
from .bench_cases import CASES, Contest, Thunk
from .runtime import ModelFlags, environment
from .suggestions import closest

if TYPE_CHECKING:
    import torch

__all__ = ["Bench", "main", "measure"]

_PEERS = ("diffusers", "transformers", "torch", "numpy")


@dataclass(frozen=True, kw_only=True)
class Bench(ModelFlags):
    """Time the parts. Each round runs every entry once, so that a busy moment hits all of them alike."""

    only: tuple[str, ...] = ()  #: groups of cases: attention, network, loop, sampling; none means all
    rounds: int = 9  #: measurements of each entry
    seconds: float = 0.05  #: least time of one measurement; quick calls are repeated to fill it
    out: Path = Path("out/bench.json")  #: file for the results


def main(arguments: Sequence[str], prog: str) -> int:
    """Run the cases, print a line for each entry and write the JSON file."""
    flags = parse(Bench, arguments, prog=prog)
    require(flags.rounds >= 1, f"rounds is {flags.rounds}; it must be at least 1")
    for name in flags.only:
        require(name in CASES, f"there is no case {name!r}; {closest(name, CASES)}")
    import torch

    from steerdiff.io import atomic_write, ensure_writable

    ensure_writable(flags.out.parent)
    if flags.threads is not None:
        torch.set_num_threads(flags.threads)
    device, dtype = torch.device(flags.place()), getattr(torch, flags.precision)
    results = []
    for name, make in CASES.items():
        if flags.only and name not in flags.only:
            continue
        for contest in make(device, dtype):
            result = measure(contest, flags.rounds, flags.seconds, device)
            results.append(result)
            print(_summary(result))
    facts = {"environment": environment(str(device)), "versions": _versions(), "precision": flags.precision}
    text = json.dumps({**facts, "results": results}, indent=2) + "\n"
    atomic_write(flags.out, lambda file: file.write(text.encode()))
    print(flags.out)
    return 0


def measure(contest: Contest, rounds: int, seconds: float, device: torch.device) -> dict[str, Any]:
    """Time the entries of a contest in turn.

    Returns:
        JSON-able: for each entry the median time of a call in seconds, its spread (interquartile range over median),
        the peak memory of the device in bytes (None on a CPU), and the ratio of its median to ours.
    """
    import torch

    repeats: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in contest.entries}
    memory: dict[str, int | None] = dict.fromkeys(contest.entries)
    with torch.inference_mode():
        for name, call in contest.entries.items():
            _time(call, 1, device)  # warms up
            repeats[name] = max(1, round(seconds / max(_time(call, 1, device), 1e-7)))
            memory[name] = _peak(call, device)
        for _ in range(rounds):
            for name, call in contest.entries.items():
                times[name].append(_time(call, repeats[name], device))
    median = {name: statistics.median(values) for name, values in times.items()}
    entries = {
        name: {
            "seconds": median[name],
            "spread": _spread(times[name]),
            "rate": contest.work / median[name],
            "over_ours": median[name] / median["ours"],
            "peak_bytes": memory[name],
        }
        for name in contest.entries
    }
    return {"name": contest.name, "unit": contest.unit, "rounds": rounds, "entries": entries, **contest.facts}


def _time(call: Thunk, repeats: int, device: torch.device) -> float:
    """Return the seconds of one call, averaged over ``repeats``."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats


def _peak(call: Thunk, device: torch.device) -> int | None:
    import torch

    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _spread(values: Sequence[float]) -> float:
    if len(values) < 4:
        return (max(values) - min(values)) / statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / statistics.median(values)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PEERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _summary(result: dict[str, Any]) -> str:
    lines = [result["name"]]
    for name, entry in result["entries"].items():
        lines.append(
            f"  {name:<20} {entry['seconds'] * 1e3:10.3f} ms  spread {entry['spread']:4.0%}  "
            f"{entry['rate']:10.1f} {result['unit']}s/s  {entry['over_ours']:5.2f} x ours"
        )
    return "\n".join(lines)

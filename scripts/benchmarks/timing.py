"""Timing the entries of a contest in turn, and the memory that each needs."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .contest import Contest, Thunk

if TYPE_CHECKING:
    import torch

__all__ = ["measure", "observed"]

_SMALLEST_SHARE = 0.02  # of an operator that is named


def measure(contest: Contest, rounds: int, seconds: float, device: torch.device) -> dict[str, Any]:
    """Time the entries of a contest in turn.

    Args:
        contest: What to time.
        rounds: Measurements of each entry; a round has one of each, so that a busy moment hits all of them alike.
        seconds: Least time of a measurement; quick calls are repeated to fill it.
        device: Where the entries run.

    Returns:
        JSON-able: for each entry the median time of a call in seconds, its spread (interquartile range over median),
        the peak memory above what was there before, in bytes, and the operators that took most of one call, as shares
        of its time; for each ratio whose entries took part the median of its rounds, its quartiles, the ratio of the
        memories, and its goals.
    """
    import torch

    repeats: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in contest.entries}
    memory: dict[str, int] = {}
    operators: dict[str, dict[str, float]] = {}
    with torch.inference_mode(not contest.grad), torch.set_grad_enabled(contest.grad):
        for name, call in contest.entries.items():
            call()  # warms up: what is allocated once, kernels that are chosen
            memory[name], operators[name] = observed(call, device)
            repeats[name] = max(1, round(seconds / max(_time(call, 1, device), 1e-7)))
        for _ in range(rounds):
            for name, call in contest.entries.items():
                times[name].append(_time(call, repeats[name], device))
    entries = {
        name: {**_entry(times[name], memory[name], contest.work), "operators": operators[name]}
        for name in contest.entries
    }
    ratios = [
        {
            "of": ratio.of,
            "to": ratio.to,
            **_ratio(times[ratio.of], times[ratio.to]),
            "memory": memory[ratio.of] / memory[ratio.to] if memory[ratio.to] else None,
            "time_goal": ratio.time,
            "memory_goal": ratio.memory,
        }
        for ratio in contest.ratios
        if ratio.of in times and ratio.to in times
    ]
    head = {"key": contest.key, "unit": contest.unit, "rounds": rounds}
    return {**head, "entries": entries, "ratios": ratios, **contest.facts}


def observed(call: Thunk, device: torch.device) -> tuple[int, dict[str, float]]:
    """Return how far allocated memory rises above where it was while ``call`` runs, in bytes, and what takes the time.

    On a CPU these are the allocations that PyTorch's profiler sees: all tensors and the scratch space of its kernels;
    not what libraries below it take for themselves. Of the time, operators have the shares that are their own, without
    those that they call; the largest first.
    """
    import torch

    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
    # torch.profiler's profile would import the compiler
    with torch.autograd.profiler.profile(profile_memory=not cuda, use_device="cuda" if cuda else None) as profile:
        out = call()  # held, so that its end is not counted among what is given back
        if cuda:
            torch.cuda.synchronize(device)
    del out
    return peak if cuda else _peak_bytes(profile), _shares(profile, cuda)


def _shares(profile: Any, cuda: bool) -> dict[str, float]:
    events = profile.key_averages()
    own = {event.key: event.self_device_time_total if cuda else event.self_cpu_time_total for event in events}
    whole = sum(own.values()) or 1.0
    ranked = sorted(own.items(), key=lambda item: -item[1])
    return {name.removeprefix("aten::"): time / whole for name, time in ranked if time >= _SMALLEST_SHARE * whole}


def _peak_bytes(profile: Any) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        level += event["args"]["Bytes"]
        peak = max(peak, level)
    return peak


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


def _entry(times: Sequence[float], memory: int, work: float) -> dict[str, float]:
    median = statistics.median(times)
    low, high = _quartiles(times)
    return {"seconds": median, "spread": (high - low) / median, "rate": work / median, "peak_bytes": memory}


def _ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles of the ratios of each round."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, high = _quartiles(ratios)
    return {"time": statistics.median(ratios), "low": low, "high": high}


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and third quartile; of fewer than four values the least and the largest."""
    if len(values) < 4:
        return min(values), max(values)
    low, _, high = statistics.quantiles(values, n=4)
    return low, high

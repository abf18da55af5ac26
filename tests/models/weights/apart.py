"""Run as a process of its own, whose memory the tests measure.

``python apart.py open MEGABYTES FILE...`` opens files that may be hostile, with that much memory to spare, and prints
what came of each and how many seconds of work it took. ``python apart.py fill FILE...`` fills a network from each file,
in a fork for each, which share one import of PyTorch. They print a JSON object in a line, ``fill`` one for each file,
with ``growth``: by how many bytes the process grew at most.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steerdiff import UserError
from steerdiff.models.weights import WeightFile, fill, open_weights


def status(field: str) -> int:
    """A number of bytes from what the kernel says about this process."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def outcome(path: str) -> str:
    try:
        weights = open_weights(path)
        return f"opened {sorted(weights.entries)[:3]} {[tuple(weights.read(n).shape) for n in weights.entries][:3]}"
    except UserError as error:
        return f"UserError {error}"
    except BaseException as error:  # whatever else it is, the test wants to see it
        return f"{type(error).__name__} {error}"


def attempts(megabytes: str, *files: str) -> dict[str, tuple[str, float]]:
    limit = status("VmSize") + int(megabytes) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    outcomes = {}
    for path in files:
        start = time.process_time()
        text = outcome(path)
        outcomes[Path(path).name] = (text, time.process_time() - start)
    return outcomes


class Holder(nn.Module):
    """One parameter for each tensor of a file."""

    def __init__(self, weights: WeightFile) -> None:
        super().__init__()
        for name, entry in weights.entries.items():
            self.register_parameter(name, nn.Parameter(torch.empty(entry.shape)))


def filled(path: str) -> bool:
    weights = open_weights(path)
    with torch.device("meta"):
        holder = Holder(weights)
    fill(holder, weights, source=path)
    return not any(parameter.is_meta for parameter in holder.parameters())


def report(what: Callable[..., Any], *arguments: str) -> None:
    before = status("VmRSS")
    result = what(*arguments)
    print(json.dumps({"result": result, "growth": status("VmHWM") - before}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "open":
        report(attempts, *sys.argv[2:])
    for path in sys.argv[2:] if sys.argv[1] == "fill" else ():
        if not (child := os.fork()):
            report(filled, path)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, path

"""Opens hostile files in a process of its own, under a limit on its memory: ``python bombs.py MEGABYTES FILE...``.

Prints one JSON object: for each file what came of it and how many seconds it took, and by how much the process grew.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from pathlib import Path

from steerdiff import UserError
from steerdiff.models.weights import open_weights


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


def main() -> None:
    megabytes, *files = sys.argv[1:]
    limit = status("VmSize") + int(megabytes) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before, outcomes = status("VmRSS"), {}
    for path in files:
        start = time.perf_counter()
        text = outcome(path)
        outcomes[Path(path).name] = (text, time.perf_counter() - start)
    print(json.dumps({"outcomes": outcomes, "growth": status("VmHWM") - before}))


if __name__ == "__main__":
    main()

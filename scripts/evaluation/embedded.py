"""``steerdiff evaluate embedded``: how often samples of the embedded model show what their captions say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steerdiff.scripts.arguments import parse, plain
from steerdiff.scripts.runtime import ModelFlags, environment

__all__ = ["Embedded", "main"]


@dataclass(frozen=True, kw_only=True)
class Embedded(ModelFlags):
    """Measure the embedded model: draw fixed captions and count what a recogniser sees in them."""

    n: int = 512  #: samples of each part: seen combinations, held-out ones, two objects
    steps: int = 25  #: moves of each sample
    guidance: float = 3.0  #: strength of classifier-free guidance
    seed: int = 0  #: decides captions and noise
    batch: int = 32  #: images computed at once
    recogniser: Path | None = None  #: weights of another recogniser than the shipped one
    out: Path = Path("out/evaluate")  #: folder for embedded.json and embedded.md


def main(arguments: Sequence[str], prog: str) -> int:
    """Measure, print the table and write it beside the JSON."""
    flags = parse(Embedded, arguments, prog=prog)
    from steerdiff.io import atomic_write, ensure_writable
    from steerdiff.train.evaluate import evaluate_embedded
    from steerdiff.train.recogniser import load_recogniser

    ensure_writable(flags.out)
    recogniser = load_recogniser(flags.recogniser)
    model = flags.load()
    report = evaluate_embedded(
        model,
        flags.n,
        steps=flags.steps,
        guidance=flags.guidance,
        seed=flags.seed,
        batch=flags.batch,
        recogniser=recogniser,
        progress="evaluate",
    )
    facts = {
        "options": plain(flags),
        "model": {"name": model.name, "sha256": model.weights_hash},
        "environment": environment(str(model.device)),
        "report": report.to_dict(),
    }
    text, table = json.dumps(facts, indent=2) + "\n", report.markdown() + "\n"
    atomic_write(flags.out / "embedded.json", lambda file: file.write(text.encode()))
    atomic_write(flags.out / "embedded.md", lambda file: file.write(table.encode()))
    print(table, end="")
    return 0

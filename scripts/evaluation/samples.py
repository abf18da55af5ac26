"""``steerdiff evaluate samples``: FID, KID, precision, recall, Inception and CLIP score, LPIPS, DINO of images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from steerdiff.errors import require, warn
from steerdiff.scripts.arguments import parse, plain

from .sample_flags import Samples

if TYPE_CHECKING:
    from .sample_report import Report
    from .sample_rows import Measuring
    from .sample_sources import Source

__all__ = ["Samples", "evaluate", "main"]

#: Added to ``reference_seed`` for the reference's scenes: no training run and no caption has it.
_REFERENCE_SEED = 2_000_000


def main(arguments: Sequence[str], prog: str) -> int:
    """Measure, print the table and write it beside the JSON."""
    flags = parse(Samples, arguments, prog=prog)
    from steerdiff.io import atomic_write, ensure_writable

    ensure_writable(flags.out)
    if flags.save_statistics is not None:
        ensure_writable(flags.save_statistics.parent)
    report = evaluate(flags)
    text, table = json.dumps(report.to_dict(), indent=2) + "\n", report.markdown() + "\n"
    atomic_write(flags.out / "samples.json", lambda file: file.write(text.encode()))
    atomic_write(flags.out / "samples.md", lambda file: file.write(table.encode()))
    print(table, end="")
    return 0


def evaluate(flags: Samples) -> Report:
    """Measure what the flags ask for.

    Raises:
        UserError: Something is missing, damaged or does not fit; nothing has been computed then.
    """
    from .fidelity import inception_network, recogniser_network
    from .sample_captions import captioned, read_captions
    from .sample_plan import plan
    from .sample_report import Report
    from .sample_rows import Measuring

    networks = {"recogniser": recogniser_network(flags.recogniser), "Inception": inception_network(flags.inception)}
    for name in ("clip", "dino"):
        path = getattr(flags, name)
        require(path is None or path.is_file(), f"{name} is {path}, which is no file; give a file of weights")
    _warn_of_equal_sides(flags)
    reference = (
        None if flags.reference is None else _source(flags, flags.reference, _REFERENCE_SEED + flags.reference_seed)
    )
    generated = _generated(flags)
    no_captions = ""
    if flags.clip is not None or flags.captions is not None:
        captions = None if flags.captions is None else read_captions(flags.captions)
        generated, no_captions = captioned(generated, captions)
    planned = plan(flags, generated, reference, networks, no_captions)
    measuring = Measuring.of(flags, planned, networks)
    rows = measuring.rows(planned, generated, reference)
    sides = {"generated": generated, **({} if reference is None else {"reference": reference})}
    if reference is not None and "caption scenes" in generated.facts and flags.reference == "scenes":
        sides["true scenes"] = _source(flags, "scenes", generated.facts["caption scenes"])
        rows = measuring.with_ceiling(rows, sides["true scenes"], reference)
    _save(flags, measuring, sides)
    return Report.of(plain(flags), sides, measuring, rows)


def _generated(flags: Samples) -> Source:
    from .sample_captions import read_captions
    from .sample_model import CAPTION_SEED, model_source

    if flags.generated == "model":
        return model_source(flags, None if flags.captions is None else read_captions(flags.captions))
    require(flags.generated != "scenes" or flags.captions is None, "true scenes have captions; leave captions out")
    return _source(flags, flags.generated, CAPTION_SEED + flags.seed)


def _source(flags: Samples, given: str, seed: int) -> Source:
    from .sample_sources import file_source, scene_source

    return scene_source(seed, flags.n) if given == "scenes" else file_source(Path(given))


def _warn_of_equal_sides(flags: Samples) -> None:
    given = [side for side in (flags.generated, flags.reference) if side not in ("model", "scenes", None)]
    if len({Path(str(side)).resolve() for side in given}) < len(given):
        warn(f"both sides are {given[0]}; every distance is then that of a thing to itself")


def _save(flags: Samples, measuring: Measuring, sides: dict[str, Source]) -> None:
    """Write the statistics of one side with our stamp, if they are asked for."""
    from .sample_report import versions
    from .statistics_file import save_statistics

    if flags.save_statistics is None:
        return
    side = sides[flags.statistics_of]
    network = measuring.networks[flags.statistics_features]
    statistics = measuring.statistics(network.name, side)
    stamp = {
        "network": network.to_dict(),
        "images": side.to_dict(),
        "n": side.n,
        "versions": versions(measuring.device),
    }
    save_statistics(flags.save_statistics, statistics.mu, statistics.sigma, stamp)

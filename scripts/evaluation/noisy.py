"""``steerdiff evaluate noisy``: what the networks that guide noisy images still see at each level of noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerdiff.errors import require
from steerdiff.scripts.arguments import parse, plain
from steerdiff.scripts.runtime import environment

if TYPE_CHECKING:
    from steerdiff.train.noisy_scores import Networks, NoisyReport

__all__ = ["Noisy", "main"]

#: Colour and dashes of what is drawn; the clean CLIP is dashed.
_LINES = {
    "classifier: object": ("#009E73", "-"),
    "noisy CLIP: clean image": ("#0072B2", "-"),
    "un-tuned CLIP: clean image": ("#0072B2", "--"),
    "noisy CLIP: caption": ("#D55E00", "-"),
    "un-tuned CLIP: caption": ("#D55E00", "--"),
}


@dataclass(frozen=True, kw_only=True)
class Noisy:
    """Measure the networks that guide noisy images, at ten levels of noise, against a CLIP that knows no noise.

    A measurement that was already made, with the same settings and weights, is only printed.
    """

    n: int = 512  #: scenes of each level, a multiple of group
    group: int = 128  #: images, or captions, among which the right one is to be found
    seed: int = 0  #: decides scenes and noise
    classifier: str = "emoji64-classifier"  #: name or file of a classifier of noisy images; "none" leaves it out
    noisy_clip: str = "emoji64-noisy-clip"  #: name or file of a noisy CLIP
    clip: str = "emoji64-clip"  #: name or file of the clean CLIP that it was tuned to agree with
    out: Path = Path("out/evaluate")  #: folder for noisy.json, noisy.md and noisy.png


def main(arguments: Sequence[str], prog: str) -> int:
    """Measure, print the table and write it beside the JSON and the plot."""
    flags = parse(Noisy, arguments, prog=prog)
    from steerdiff.io import atomic_write, ensure_writable
    from steerdiff.train.noisy_scores import NoisyReport, measure_noisy

    ensure_writable(flags.out)
    networks = _networks(flags)
    facts: dict[str, Any] = {
        "options": {name: value for name, value in plain(flags).items() if name != "out"},
        "weights": {
            "clip": networks.clip.weights_hash,
            "noisy_clip": getattr(networks.noisy_clip, "weights_hash", None),
            "classifier": None if networks.classifier is None else networks.classifier.weights_hash,
        },
    }
    path = flags.out / "noisy.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if {name: known.get(name) for name in facts} == facts:
        report = NoisyReport.from_dict(known["report"])
    else:
        report = measure_noisy(networks, _schedule(networks), n=flags.n, group=flags.group, seed=flags.seed)
        facts |= {"environment": environment("cpu"), "report": report.to_dict()}
        text = json.dumps(facts, indent=2) + "\n"
        atomic_write(path, lambda file: file.write(text.encode()))
    page, picture = _page(report), _plot(report)
    atomic_write(flags.out / "noisy.md", lambda file: file.write(page.encode()))
    atomic_write(flags.out / "noisy.png", lambda file: file.write(picture))
    print(page, end="")
    return 0


def _networks(flags: Noisy) -> Networks:
    """Load what is measured.

    Raises:
        UserError: Weights are missing or of another kind, or the two CLIPs do not belong together.
    """
    from steerdiff.guidance.loading import load_cached
    from steerdiff.train.noisy_scores import Networks

    clip, noisy = load_cached(flags.clip, "clip"), load_cached(flags.noisy_clip, "noisy-clip")
    require(
        noisy.clip_hash in (None, clip.weights_hash),
        f"'{flags.noisy_clip}' was tuned to agree with another CLIP than '{flags.clip}'; give that one",
    )
    classifier = None if flags.classifier == "none" else load_cached(flags.classifier, "classifier")
    require(
        classifier is None or bool(classifier.labels),
        f"'{flags.classifier}' does not name its classes; give a classifier of the embedded domain",
    )
    return Networks(noisy_clip=noisy, clip=clip, classifier=classifier)


def _schedule(networks: Networks) -> Any:
    """Return the noise that the networks learned.

    Raises:
        UserError: It is not known, or they learned different ones.
    """
    learned = [getattr(one, "schedule", None) for one in (networks.noisy_clip, networks.classifier) if one is not None]
    known = [schedule for schedule in learned if schedule is not None]
    require(bool(known), "the noisy CLIP does not say which noise it learned; tune it again")
    same = all(schedule.to_dict() == known[0].to_dict() for schedule in known)
    require(same, "the classifier and the noisy CLIP learned different noise; give a pair for the same model")
    return known[0]


def _page(report: NoisyReport) -> str:
    lines = [
        f"Share of {report.n} scenes recognised when noised to time t, with 95 % Wilson intervals. The classifier",
        f"names the object (48 classes). A CLIP finds the clean image, or its caption, among {report.group}; the",
        "un-tuned CLIP sees the same noised images and knows nothing of noise. `steerdiff evaluate noisy` measures it.",
        "",
        report.markdown(),
        "",
        "![Share recognised against the level of noise](noisy.png)",
    ]
    return "\n".join(lines) + "\n"


def _plot(report: NoisyReport) -> bytes:
    """Return a PNG: the shares against t/T, with their intervals as bands."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, rates in report.rates.items():
        colour, dashes = _LINES[name]
        shares, values = list(rates), [100 * rate.value for rate in rates.values()]
        low, high = zip(*(rate.interval() for rate in rates.values()), strict=True)
        axes.fill_between(shares, [100 * v for v in low], [100 * v for v in high], color=colour, alpha=0.15, lw=0)
        axes.plot(shares, values, dashes, color=colour, marker="o", ms=3, label=name)
    axes.set_xlabel("t / T")
    axes.set_ylabel("recognised, %")
    axes.set_ylim(0, 102)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()

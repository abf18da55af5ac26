"""``make assets``: remake all that depends on the shipped weights, in order, and record the hashes.

Run in a checkout: ``make assets``, or ``make assets BASE=runs/emoji64/weights.safetensors`` to ship other base weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from steerdiff.errors import UserError, require

from .ablation import kept
from .arguments import parse

__all__ = ["HASHES", "STEPS", "Assets", "Stage", "main", "stale"]

#: Where the hashes are recorded, from the root of the repository.
HASHES = Path("assets/hashes.json")

_WEIGHTS = Path("assets/weights")
_BASE = _WEIGHTS / "emoji64.safetensors"
_RECOGNISER = _WEIGHTS / "recogniser.safetensors"
_CLASSIFIER = _WEIGHTS / "emoji64-classifier.safetensors"
_CLIP = _WEIGHTS / "emoji64-clip.safetensors"
_NOISY_CLIP = _WEIGHTS / "emoji64-noisy-clip.safetensors"
_GUIDES = (_CLASSIFIER, _CLIP, _NOISY_CLIP)
_ART = Path("assets/emoji/index.json")
_RESULTS = Path("docs/results")
_GALLERY = Path("docs/gallery.png")
_CLAIMS = Path("docs/claims.md")
#: Of what ``evaluate edits`` writes, what is kept; the page and its pictures are not.
_EDITS = ("edits.json", "edits.md", "edits-summary.md", "edits.png")
_SAMPLES = ("samples.json", "samples.md")
_NOISY = ("noisy.json", "noisy.md", "noisy.png")
#: Ablations of the methods that CLIP guides or tunes, in the order of the overview.
_OVERVIEW = (
    "sdg-weights",
    "sdg-noisy",
    "blended-views",
    "diffusionclip-style",
    "diffusionclip-colour",
    "diffusionclip-object",
    "asyrp-style",
    "asyrp-colour",
    "asyrp-object",
    "asyrp-symmetric",
    "asyrp-boost",
)
#: Deltas that the demo edits with, by method and texts; each is tuned from the base by the CLIP.
_DELTAS = {"asyrp-flat-3d": ("asyrp", "flat", "3d"), "diffusionclip-blue-red": ("diffusionclip", "blue", "red")}
_SHIPPED_DELTAS = tuple(_WEIGHTS / f"{name}.safetensors" for name in _DELTAS)
#: Ablations whose tables are kept in ``guidance``; those of the overview make one table together.
_ABLATIONS = ("adm-scale", *_OVERVIEW)
_GUIDANCE = tuple(
    _RESULTS / "guidance" / name
    for name in ("adm-scale.png", "overview.md", *(f"{name}.{end}" for name in _ABLATIONS for end in ("md", "csv")))
)
#: Of what ``evaluate edits`` writes of these methods.
_TEXT_EDITS = ("edits.md", "edits-summary.md")
_TEXT = tuple(
    _RESULTS / "text" / name
    for name in (
        *(*kept.PICTURES, "overview.md", *_TEXT_EDITS, *(f"{name}-cases.png" for name in kept.SHEETS)),
        *(f"{name}.{end}" for name in kept.names() for end in ("md", "csv")),
    )
)


@dataclass(frozen=True, kw_only=True)
class Assets:
    """Remake what depends on the shipped weights: only what is missing or made from other files than those of now."""

    root: Path = Path()  #: the checkout
    force: bool = False  #: remake everything
    check: bool = False  #: make nothing; name what is stale and leave with 1 if anything is
    base: Path | None = None  #: weights of a training run that first replace the shipped ones, in float16


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One thing to make: from which files, into which files, and how."""

    inputs: tuple[Path, ...]  #: a change of any of them makes the outputs stale
    outputs: tuple[Path, ...]
    make: Callable[[Path], None]  #: called with the root


def _recogniser(root: Path) -> None:
    _steerdiff("train", "recogniser", "--out", root / _RECOGNISER)


def _evaluation(root: Path) -> None:
    flags = ("--steps", 12, "--weights", root / _BASE, "--out", root / _RESULTS)
    _steerdiff("evaluate", "embedded", *flags)


def _noisy(root: Path) -> None:
    _steerdiff("evaluate", "noisy", "--out", root / _RESULTS)


def _deltas(root: Path) -> None:
    for name, (method, source, target) in _DELTAS.items():
        texts = ("--source-text", source, "--target-text", target)
        out = root / _WEIGHTS / f"{name}.safetensors"
        with TemporaryDirectory() as folder:
            _steerdiff("finetune", method, "--preset", "emoji64", *texts, "--folder", folder, "--out", out)


def _guidance(root: Path) -> None:
    from .ablation.overview import overview

    folder = _ablations(root, "guidance", _ABLATIONS)
    _copy(root / "out/ablate/adm-scale/tradeoff.png", folder / "adm-scale.png")
    _write(folder / "overview.md", overview([folder / f"{name}.csv" for name in _OVERVIEW]).encode())


def _text(root: Path) -> None:
    folder = _ablations(root, "text", kept.names())
    for name in kept.SHEETS:
        _copy(root / "out/ablate" / name / "sheet.png", folder / f"{name}-cases.png")
    for name, picture in kept.PICTURES.items():
        _write(folder / name, picture.png(folder))
    _write(folder / "overview.md", kept.page(folder).encode())
    flags = ("--quick", "--cases", 16, "--methods", *kept.METHODS, "--tasks", *kept.TASKS)
    _evaluated(root, "out/evaluate-text", _TEXT_EDITS, folder, *flags)


def _ablations(root: Path, folder: str, names: Sequence[str]) -> Path:
    """Run ablations, keep their tables in a folder of the results, and return it."""
    for name in names:
        out = root / "out/ablate" / name
        _steerdiff("ablate", "--config", name, "--jobs", 2, "--cache", root / "out/cells", "--out", out)
        for suffix in ("md", "csv"):
            _copy(out / f"ablation.{suffix}", root / _RESULTS / folder / f"{name}.{suffix}")
    return root / _RESULTS / folder


def _samples(root: Path) -> None:
    flags = ("--n", 1024, "--steps", 12, "--weights", root / _BASE, "--out", root / _RESULTS)
    _steerdiff("evaluate", "samples", "--generated", "model", "--reference", "scenes", *flags)


def _edits(root: Path) -> None:
    _evaluated(root, "out/evaluate", _EDITS, root / _RESULTS)


def _evaluated(root: Path, out: str, names: Sequence[str], folder: Path, *flags: object) -> None:
    """Run ``evaluate edits`` and keep some of what it writes."""
    _steerdiff("evaluate", "edits", *flags, "--jobs", 2, "--cache", root / "out/cells", "--out", root / out)
    for name in names:
        _copy(root / out / name, folder / name)


def _claims(root: Path) -> None:
    _steerdiff("evaluate", "claims", "--jobs", 2, "--cache", root / "out/cells", "--out", root / "out/claims")
    _copy(root / "out/claims/claims.md", root / _CLAIMS)


def _gallery(root: Path) -> None:
    _steerdiff("demo", "--out", root / "out/demo")
    _copy(root / "out/demo/gallery.png", root / _GALLERY)


def _copy(source: Path, target: Path) -> None:
    _write(target, source.read_bytes())


def _write(target: Path, content: bytes) -> None:
    from steerdiff.io import atomic_write

    atomic_write(target, lambda file: file.write(content))


#: In order: a stage may use what those before it make. The base weights come from ``steerdiff train diffusion``.
STEPS: dict[str, Stage] = {
    "recogniser": Stage(inputs=(_ART,), outputs=(_RECOGNISER,), make=_recogniser),
    "evaluation": Stage(
        inputs=(_BASE, _RECOGNISER), outputs=(_RESULTS / "embedded.json", _RESULTS / "embedded.md"), make=_evaluation
    ),
    "noisy": Stage(inputs=_GUIDES, outputs=tuple(_RESULTS / name for name in _NOISY), make=_noisy),
    "deltas": Stage(
        inputs=(_BASE, _CLIP),
        outputs=_SHIPPED_DELTAS,
        make=_deltas,
    ),
    "guidance": Stage(inputs=(_BASE, _RECOGNISER, *_GUIDES), outputs=_GUIDANCE, make=_guidance),
    "text": Stage(inputs=(_BASE, _RECOGNISER), outputs=_TEXT, make=_text),
    "gallery": Stage(inputs=(_BASE, *_GUIDES, *_SHIPPED_DELTAS), outputs=(_GALLERY,), make=_gallery),
    "samples": Stage(inputs=(_BASE, _RECOGNISER), outputs=tuple(_RESULTS / name for name in _SAMPLES), make=_samples),
    "edits": Stage(inputs=(_BASE, _RECOGNISER), outputs=tuple(_RESULTS / name for name in _EDITS), make=_edits),
    "claims": Stage(inputs=(_BASE, _RECOGNISER), outputs=(_CLAIMS,), make=_claims),
}


def main(arguments: Sequence[str], prog: str = "make assets") -> int:
    """Bring everything up to date."""
    flags = parse(Assets, arguments, prog=prog)
    require((flags.root / "setup.py").is_file(), f"{flags.root.resolve()} is no checkout; run this in one")
    if flags.base is not None:
        _ship(flags.base, flags.root / _BASE)
    if flags.check:
        old = [f"{name}: {reason}" for name, reason in stale(flags.root).items()]
        print("\n".join(old) or "everything is up to date")
        return int(bool(old))
    for name, stage in STEPS.items():
        reason = "forced" if flags.force else stale(flags.root).get(name)
        if reason is None:
            print(f"{name}: up to date")
            continue
        print(f"{name}: {reason}; making it")
        missing = [str(path) for path in stage.inputs if not (flags.root / path).is_file()]
        require(not missing, f"{name} needs {', '.join(missing)}; train it or fetch it first")
        stage.make(flags.root)
        _record(flags.root, name, stage)
    return 0


def _ship(source: Path, target: Path) -> None:
    """Store the weights of a training run in float16, which keeps 11 bits of each in half the space."""
    from steerdiff.models import read_header, read_safetensors, save_safetensors

    header, tensors = read_header(source), read_safetensors(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    halves = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    save_safetensors(target, halves, {**header, "name": target.stem})
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, step {header.get('step')} of the run")


def stale(root: Path) -> dict[str, str]:
    """Return the stages whose outputs are missing, changed by hand or made from other inputs, each with the reason."""
    recorded = _read(root)
    reasons = {}
    for name, stage in STEPS.items():
        known = recorded.get(name, {})
        changed = [path for path in stage.inputs if known.get("inputs", {}).get(str(path)) != _hash(root / path)]
        edited = [path for path in stage.outputs if known.get("outputs", {}).get(str(path)) != _hash(root / path)]
        if not known:
            reasons[name] = "never made"
        elif changed or edited:
            reasons[name] = f"{', '.join(str(path) for path in [*changed, *edited])} changed"
    return reasons


def _record(root: Path, name: str, stage: Stage) -> None:
    from steerdiff.io import atomic_write

    recorded = _read(root)
    recorded[name] = {
        "inputs": {str(path): _hash(root / path) for path in stage.inputs},
        "outputs": {str(path): _hash(root / path) for path in stage.outputs},
    }
    text = json.dumps(recorded, indent=2, sort_keys=True) + "\n"
    atomic_write(root / HASHES, lambda file: file.write(text.encode()))


def _read(root: Path) -> dict[str, Any]:
    path = root / HASHES
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _hash(path: Path) -> str | None:
    from steerdiff.models.checkpoint import file_hash

    return file_hash(path) if path.is_file() else None


def _steerdiff(*arguments: object) -> None:
    """Run a command of the library in this process."""
    from .cli import run

    code = run([str(argument) for argument in arguments])
    if code:
        raise UserError(f"steerdiff {arguments[0]} left with {code}; nothing was recorded")


if __name__ == "__main__":
    from .cli import guarded

    sys.exit(guarded(lambda: main(sys.argv[1:])))

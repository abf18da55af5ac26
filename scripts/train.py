"""``steerdiff train WHAT``: train a model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from steerdiff.errors import require

from .arguments import parse
from .suggestions import closest

__all__ = ["TRAINERS", "main"]

SEVERAL = "torchrun -m steerdiff {prog} runs several processes."


def main(arguments: Sequence[str], prog: str) -> int:
    """Train what the first argument names; without one, list what there is."""
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, TRAINERS))
        lines = [f"  {name:<{width}}  {(run.__doc__ or '').splitlines()[0]}" for name, run in TRAINERS.items()]
        print("\n".join([f"usage: {prog} WHAT [OPTIONS]", "", *lines, "", f"{prog} WHAT --help shows its flags."]))
        return 0
    name, *rest = arguments
    require(name in TRAINERS, f"there is nothing called {name!r} to train; {closest(name, TRAINERS)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return TRAINERS[name](rest, f"{prog} {name}")


def _diffusion(arguments: Sequence[str], prog: str) -> int:
    """A diffusion model, with text or without; one process or several under torchrun."""
    from steerdiff.train.config import TrainConfig
    from steerdiff.train.diffusion import train_diffusion

    return _run(TrainConfig, train_diffusion, arguments, prog, SEVERAL)


def _classifier(arguments: Sequence[str], prog: str) -> int:
    """A classifier of noisy images, for classifier guidance; one process or several under torchrun."""
    from steerdiff.train.classifier import ClassifierConfig, train_classifier

    return _run(ClassifierConfig, train_classifier, arguments, prog, SEVERAL)


def _clip(arguments: Sequence[str], prog: str) -> int:
    """The CLIP of the embedded domain: scenes and captions in one space; one process."""
    from steerdiff.train.clip import ClipTrainConfig, train_clip

    return _run(ClipTrainConfig, train_clip, arguments, prog)


def _noisy_clip(arguments: Sequence[str], prog: str) -> int:
    """A CLIP for noisy images, tuned to agree with a clean one; one process."""
    from steerdiff.train.noisy_clip import NoisyClipTrainConfig, train_noisy_clip

    return _run(NoisyClipTrainConfig, train_noisy_clip, arguments, prog)


def _run(cls: type[Any], train: Callable[..., Any], arguments: Sequence[str], prog: str, note: str = "") -> int:
    """Train what ``cls`` describes; Ctrl-C leaves with 130 and a checkpoint."""
    extra: list[Any] = [
        ("resume", bool, dataclasses.field(default=False)),
        ("progress", bool, dataclasses.field(default=True)),
    ]
    docs = {"resume": "go on from the newest checkpoint in the folder", "progress": "show a progress bar"}
    namespace = {"__doc__": cls.__doc__, "__field_docs__": docs}
    joined = dataclasses.make_dataclass(
        "TrainFlags", extra, bases=(cls,), frozen=True, kw_only=True, namespace=namespace
    )
    flags: Any = parse(joined, arguments, prog=prog, note=note.format(prog=prog.split(maxsplit=1)[-1]))
    config = cls(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(cls)})
    return 0 if train(config, resume=flags.resume, progress=flags.progress).completed else 130


def _recogniser(arguments: Sequence[str], prog: str) -> int:
    """The recogniser of object, style and colour that measures the embedded model."""
    from steerdiff.io import ensure_writable
    from steerdiff.train.recogniser import RecogniserConfig, accuracy, save_recogniser, train_recogniser
    from steerdiff.train.scenes import EmojiScenes

    extra: list[Any] = [("out", Path, dataclasses.field(default=Path("runs/recogniser.safetensors")))]
    namespace = {"__doc__": RecogniserConfig.__doc__, "__field_docs__": {"out": "where the weights go"}}
    cls = dataclasses.make_dataclass(
        "RecogniserFlags", extra, bases=(RecogniserConfig,), frozen=True, kw_only=True, namespace=namespace
    )
    flags: Any = parse(cls, arguments, prog=prog)
    names = [field.name for field in dataclasses.fields(RecogniserConfig)]
    config = RecogniserConfig(**{name: getattr(flags, name) for name in names})
    ensure_writable(flags.out.parent)
    recogniser = train_recogniser(config, progress="recogniser")
    save_recogniser(recogniser, flags.out, config)
    for split in ("train", "held_out"):
        rates = accuracy(recogniser, EmojiScenes(seed=config.seed + 1, split=split), 1024)
        print(f"{split}: " + ", ".join(f"{name} {rate:.1%}" for name, rate in rates.items()))
    print(flags.out)
    return 0


#: What can be trained, by name.
TRAINERS: dict[str, Callable[[Sequence[str], str], int]] = {
    "diffusion": _diffusion,
    "classifier": _classifier,
    "clip": _clip,
    "noisy-clip": _noisy_clip,
    "recogniser": _recogniser,
}

"""``steerdiff finetune METHOD``: tune a model to an edit once, and keep what changed in a small file."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerdiff.errors import require

from .arguments import parse, take_flag
from .method_flags import PICTURES, made_class, method_class, method_of, preset, presets_of, texts_of
from .runtime import ModelFlags
from .suggestions import closest

__all__ = ["FinetuneFlags", "main"]

#: Arguments of a method's ``finetune`` that are flags where it has them, as its picture and its texts are.
_OPTIONS = {"bf16": False, "checkpointing": False}


@dataclass(frozen=True, kw_only=True)
class FinetuneFlags(ModelFlags):
    """What every fine-tuning needs besides the fields of its method."""

    out: Path | None = None  #: file of the result; None is runs/finetune/METHOD.safetensors
    folder: Path | None = None  #: checkpoints and numbers of the run; None is named as the result, without its suffix
    resume: bool = False  #: go on from the newest checkpoint in the folder
    progress: bool = True  #: show a progress bar
    rank: int | None = None  #: store the change of each matrix as two factors of this rank; None stores it whole


def main(arguments: Sequence[str], prog: str) -> int:
    """Tune for the method that the first argument names; without one, list the methods that tune."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_listed(prog))
        return 0
    name, *rest = arguments
    tuning = _tuning_methods()
    require(name in tuning, f"{name!r} is no method that tunes a model; {closest(name, tuning)}")
    rest, label = take_flag(rest, "--preset", "--preset names none; give its name after it")
    values = {} if label is None else preset(name, label)
    note = f"Presets, by --preset NAME: {', '.join(presets_of(name))}." if presets_of(name) else ""
    flags: Any = parse(_flags_class(name), rest, prog=f"{prog} {name}", values=values, note=note)
    return _run(name, flags)


def _run(name: str, flags: Any) -> int:
    from steerdiff.io import ensure_writable, load_image
    from steerdiff.models.delta import compressed, save_delta

    require(flags.rank is None or flags.rank >= 1, f"rank is {flags.rank}; it must be at least 1")
    method = method_of(name, flags)
    out = Path("runs/finetune") / f"{name}.safetensors" if flags.out is None else flags.out
    require(out.suffix == ".safetensors", f"out is {out}; it must end in .safetensors")
    ensure_writable(out.parent)
    pictures = {name: path for name in PICTURES if (path := getattr(flags, name, None)) is not None}
    for picture, path in pictures.items():
        require(path.is_file(), f"{picture} is {path}, which is no file; give the path of a picture")
    options = {option: getattr(flags, option) for option in _OPTIONS if hasattr(flags, option)} | texts_of(flags)
    folder = out.with_suffix("") if flags.folder is None else flags.folder
    model = flags.load()
    options |= {name: load_image(path, model.size) for name, path in pictures.items()}
    delta = method.finetune(model, folder=folder, resume=flags.resume, progress=flags.progress, **options)
    delta = delta if flags.rank is None else compressed(delta, flags.rank)
    save_delta(out, delta)
    print(out)
    print(f"{out.stat().st_size / 1e6:.1f} MB; stored to {delta.error:.2g} of the change")
    return 0


def _tuning_methods() -> Mapping[str, Any]:
    from steerdiff.methods import METHODS

    return {name: cls for name, cls in METHODS.items() if hasattr(cls, "finetune")}


@functools.cache
def _flags_class(name: str) -> type[Any]:
    """Return a dataclass of the method's fields, the arguments and options of its ``finetune``, and what all have."""
    method = method_class(name)
    return made_class("Finetune", method, method.finetune, FinetuneFlags, _OPTIONS)


def _listed(prog: str) -> str:
    tuning = _tuning_methods()
    width = max(map(len, tuning), default=0)
    lines = [f"  {name:<{width}}  {(cls.__doc__ or '').strip().splitlines()[0]}" for name, cls in tuning.items()]
    usage = f"usage: {prog} METHOD [--image FILE] [--prompt TEXT] [--preset NAME] [--out FILE] [--resume] [OPTIONS]"
    last = f"{prog} METHOD --help shows its flags. steerdiff edit METHOD --delta FILE then uses the file."
    return "\n".join([usage, "", *lines, "", last])

"""``steerdiff rerun FILE``: make an image again from the settings that it carries, and compare the bits."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from steerdiff.errors import UserError, require

from .arguments import parse
from .outputs import FORMAT, read_inputs
from .runtime import ModelFlags, environment

__all__ = ["REPLAYS", "Rerun", "main"]

#: Which module makes an image again, by the first word of the command that made it: its ``replay``.
REPLAYS = {"sample": "sample", "edit": "edit", "invert": "invert", "attention": "attention"}


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """Make an image again from the settings it carries; on the same machine and versions it is the same bit for bit.

    The exit code is 0 if the image is the same, 1 if it differs.
    """

    file: tyro.conf.Positional[Path]  #: a PNG of steerdiff, or the JSON file beside one
    out: Path | None = None  #: where to write the new image; None writes FILE-rerun.png beside it
    weights: str | None = None  #: the weights, where they are no longer where they were
    device: str | None = None  #: another device than then
    other_weights: bool = False  #: go on although the weights have changed


def main(arguments: Sequence[str], prog: str) -> int:
    """Make the image again, save it, and say whether it is the same."""
    flags = parse(Rerun, arguments, prog=prog)
    require(flags.file.exists(), f"{flags.file} does not exist")  # before PyTorch is imported
    from steerdiff.io import ensure_writable, load_image, read_settings, save_image, to_uint8

    settings = read_settings(flags.file)
    replay = _replay_of(settings, flags.file)
    out = flags.out or flags.file.with_name(f"{flags.file.stem}-rerun.png")
    ensure_writable(out.parent)
    model = _model_flags(settings, flags).load()
    _check_weights(settings, model.weights_hash, flags)
    image = replay(settings, model, read_inputs(settings))
    now = environment(str(model.device))
    save_image(image, out, {**settings, "environment": now})
    if flags.file.suffix.lower() != ".png":
        print(f"{out}: made again")
        return 0
    before, after = to_uint8(load_image(flags.file)[0]), to_uint8(image)
    require(before.shape == after.shape, f"{flags.file} is {list(before.shape)}, its settings give {list(after.shape)}")
    wrong = int((before != after).any(0).sum())
    if wrong == 0:
        print(f"{out}: the same, bit for bit")
        return 0
    print(f"{out}: differs from {flags.file} in {wrong} of {before[0].numel()} pixels{_changes(settings, now)}")
    return 1


def _replay_of(settings: Mapping[str, Any], file: Path) -> Any:
    known = settings.get("format")
    require(known == FORMAT, f"the settings of {file} have format {known!r}; this version reads {FORMAT}")
    command = str(settings.get("command", "")).split()
    if not command or command[0] not in REPLAYS:
        raise UserError(f"{file} was made by {settings.get('command')!r}, which cannot be run again")
    return importlib.import_module(f"steerdiff.scripts.{REPLAYS[command[0]]}").replay


def _model_flags(settings: Mapping[str, Any], flags: Rerun) -> ModelFlags:
    """Return where the model was and ran then; the number of threads counts, for sums depend on it."""
    names = [field.name for field in dataclasses.fields(ModelFlags)]
    stored = {name: settings["options"][name] for name in names if name in settings["options"]}
    stored["threads"] = settings["environment"]["threads"]
    given = {"weights": flags.weights, "device": flags.device}
    return ModelFlags(**{**stored, **{name: value for name, value in given.items() if value is not None}})


def _check_weights(settings: Mapping[str, Any], now: str | None, flags: Rerun) -> None:
    then = settings["model"]["sha256"]
    same = then == now or flags.other_weights
    hint = "give the old ones with --weights, or --other-weights to go on"
    require(same, f"the weights have changed since (sha256 {str(then)[:12]}, now {str(now)[:12]}); {hint}")


def _changes(settings: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say what is not as it was when the image was made."""
    then = settings["environment"]
    changed = [f"{key} was {then.get(key)}, is {value}" for key, value in now.items() if then.get(key) != value]
    return f" ({'; '.join(changed)})" if changed else ""

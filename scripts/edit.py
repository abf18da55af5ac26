"""``steerdiff edit METHOD``: edit an image with any method of the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerdiff.errors import require

from .arguments import parse, restore, take_flag
from .method_flags import PICTURES, apply, flags_class, method_of, preset, presets_of
from .outputs import Batch, Inputs, save_batch

if TYPE_CHECKING:
    from torch import Tensor

    from steerdiff.guidance import Model

__all__ = ["edit_with", "main", "method_flags", "replay", "run_method"]


def main(arguments: Sequence[str], prog: str) -> int:
    """Edit with the method that the first argument names; without one, list the methods."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_methods(prog))
        return 0
    name, *rest = arguments
    require(not name.startswith("-"), f"the method comes first: {prog} METHOD {name} ...")
    paths, _ = run_method(name, rest, f"{prog} {name}", command=f"edit {name}")
    print("\n".join(str(path) for path in paths))
    return 0


def run_method(name: str, arguments: Sequence[str], prog: str, *, command: str) -> tuple[list[Path], Tensor]:
    """Parse the flags of a method, load the model, run the method and save the results; as ``edit_with``."""
    flags = method_flags(name, arguments, prog)
    from steerdiff.io import ensure_writable

    ensure_writable(flags.out)
    return edit_with(name, flags, flags.load(), command=command)


def method_flags(name: str, arguments: Sequence[str], prog: str) -> Any:
    """Return the flags of a method, checked as far as can be without a model."""
    rest, label = take_flag(arguments, "--preset", "--preset names none; give its name after it")
    values = {} if label is None else preset(name, label)
    note = f"Presets, by --preset NAME: {', '.join(presets_of(name))}." if presets_of(name) else ""
    flags = parse(flags_class(name), rest, prog=prog, values=values, note=note)
    method_of(name, flags)
    require(flags.n >= 1, f"n is {flags.n}; ask for at least one variation")
    for picture in PICTURES:
        path = getattr(flags, picture, None)
        require(path is None or path.is_file(), f"{picture} is {path}, which is no file; give the path of a picture")
    return flags


def edit_with(name: str, flags: Any, model: Model, *, command: str) -> tuple[list[Path], Tensor]:
    """Run a method and save the results.

    Returns:
        The paths of the images, and the images [B, 3, H, W].
    """
    from steerdiff.samplers import resolve_seeds

    seeds = resolve_seeds(flags.seed, flags.n)
    inputs = _load(flags, model.size)
    images = apply(name, flags, model, inputs.images, seeds)
    stem = f"{Path(inputs.paths['image']).stem}-{name}" if "image" in inputs.paths else name
    paths = [flags.out / f"{stem}-seed{seed}.png" for seed in seeds]
    prompts = None if getattr(flags, "prompt", None) is None else [flags.prompt] * len(seeds)
    batch = Batch(prompts=prompts, seeds=seeds)
    extra = {"inputs": inputs.to_dict()}
    save_batch(images, paths, command=command, options=flags, model=model, batch=batch, extra=extra)
    return paths, images


def replay(settings: Mapping[str, Any], model: Model, pictures: Mapping[str, Tensor]) -> Tensor:
    """Return the image [3, H, W] that the settings describe, from the pictures stored in them."""
    name = str(settings["command"]).split()[-1]
    flags = restore(flags_class(name), settings["options"], "the stored settings")
    return apply(name, flags, model, pictures, settings["batch"]["seeds"])[settings["index"]]


def _load(flags: Any, size: tuple[int, int]) -> Inputs:
    from steerdiff.io import load_image, load_mask

    given = {name: getattr(flags, name, None) for name in PICTURES}
    paths = {name: path for name, path in given.items() if path is not None}
    images = {
        name: load_mask(path, size, threshold=flags.mask_threshold) if name == "mask" else load_image(path, size)
        for name, path in paths.items()
    }
    return Inputs(images=images, paths={name: str(path) for name, path in paths.items()})


def _methods(prog: str) -> str:
    from steerdiff.methods import METHODS

    width = max(map(len, METHODS))
    lines = [f"  {name:<{width}}  {(cls.__doc__ or '').strip().splitlines()[0]}" for name, cls in METHODS.items()]
    usage = f"usage: {prog} METHOD --image FILE [--mask FILE] [--prompt TEXT] [--preset NAME] [OPTIONS]"
    return "\n".join([usage, "", *lines, "", f"{prog} METHOD --help shows the flags and presets of a method."])

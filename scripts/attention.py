"""``steerdiff attention``: pictures of where a model looks for each word of a prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from steerdiff.errors import require

from .arguments import parse, restore
from .outputs import Batch, Inputs, save_batch
from .runtime import ModelFlags

if TYPE_CHECKING:
    from torch import Tensor

    from steerdiff.guidance import Model
    from steerdiff.methods.word_maps import WordMaps

__all__ = ["Attention", "main", "replay"]


@dataclass(frozen=True, kw_only=True)
class Attention(ModelFlags):
    """Draw an image, or invert a given one, and show where the model looks for each word: bright is looked at.

    Maps are means over steps, heads and attentions; the sheet ``words.png`` shows each grid by itself.
    """

    prompt: tyro.conf.Positional[str]  #: what the image shows
    words: tuple[str, ...] = ()  #: words of the prompt; none is each of them
    image: Path | None = None  #: a picture to look at; its centre is cropped and resized. None draws one
    steps: int | None = None  #: moves; None is the model's own number
    guidance: float | None = None  #: strength of classifier-free guidance of a drawn image; None is the model's
    seed: int = 0  #: of a drawn image
    out: Path = Path("out/attention")  #: folder for the pictures


def main(arguments: Sequence[str], prog: str) -> int:
    """Make the pictures and say where they are."""
    options = parse(Attention, arguments, prog=prog)
    require(
        options.image is None or options.image.is_file(),
        f"image is {options.image}, which is no file; give the path of a picture",
    )
    from steerdiff.io import ensure_writable, load_image

    ensure_writable(options.out)
    model = options.load()
    given = {} if options.image is None else {"image": load_image(options.image, model.size)}
    found = _look(model, options, given)
    stem = f"seed{options.seed}" if options.image is None else options.image.stem
    names = [stem, *(f"{stem}-{number:02d}-{_plain(word)}" for number, word in enumerate(found.words))]
    paths = [options.out / f"{name}.png" for name in names]
    batch = Batch(prompts=[options.prompt] * len(paths), seeds=[options.seed] * len(paths))
    inputs = Inputs(images=given, paths={name: str(options.image) for name in given})
    extra = {"inputs": inputs.to_dict(), "words": list(found.words)}
    save_batch(_pictures(found), paths, command="attention", options=options, model=model, batch=batch, extra=extra)
    sheet = options.out / "words.png"
    _sheet(found, options.prompt, sheet)
    print("\n".join(str(path) for path in [*paths, sheet]))
    return 0


def replay(settings: Mapping[str, Any], model: Model, pictures: Mapping[str, Tensor]) -> Tensor:
    """Return the picture [3, H, W] that the settings describe."""
    options = restore(Attention, settings["options"], "the stored settings")
    return _pictures(_look(model, options, pictures))[settings["index"]]


def _look(model: Model, options: Attention, pictures: Mapping[str, Tensor]) -> WordMaps:
    from steerdiff.methods.word_maps import look_for

    return look_for(
        model,
        options.prompt,
        options.words,
        image=pictures.get("image"),
        steps=options.steps,
        guidance=options.guidance,
        seed=options.seed,
        progress="attention",
    )


def _pictures(found: WordMaps) -> Tensor:
    """Return the image and its copies lit by word [1 + K, 3, H, W]."""
    import torch

    return torch.cat([found.image.clamp(-1, 1), found.lit()]).cpu()


def _sheet(found: WordMaps, prompt: str, path: Path) -> None:
    """Write a sheet with a row for each grid and a column for each word."""
    from .gallery import Cell, Row, Section, draw_gallery

    picture = Cell(image=found.image[0].clamp(-1, 1).cpu())
    rows = [
        Row(
            label=f"{height} x {width}",
            note="cells",
            cells=(picture, *(Cell(image=image) for image in found.lit((height, width)).cpu())),
        )
        for height, width in found.maps
    ]
    section = Section(title="Attention by word", note=prompt, heads=("image", *found.words), rows=tuple(rows))
    side = found.image.shape[-1]
    draw_gallery("steerdiff attention", [section], zoom=max(1, 192 // side)).save(path)


def _plain(word: str) -> str:
    return re.sub(r"\W+", "-", word).strip("-") or "sign"

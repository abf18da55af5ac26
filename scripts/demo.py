"""``steerdiff demo``: samples and edits by every method, on a page and in one picture."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import parse
from .demo_examples import EXAMPLES, PROMPTS, Example
from .edit import edit_with, method_flags
from .gallery import Cell, Row, Section, draw_gallery
from .page import Figure, Panel, Part, build_page
from .runtime import ModelFlags
from .sample import Sample, sample_with

if TYPE_CHECKING:
    from steerdiff.guidance import Model

__all__ = ["Demo", "main"]

SCENES_SEED = 2_000_000  # scenes that no training run has
TITLE = "steerdiff: one small model, every method"


@dataclass(frozen=True, kw_only=True)
class Demo(ModelFlags):
    """Draw samples and edit scenes with every method; writes index.html and gallery.png."""

    out: Path = Path("out/demo")  #: folder for the page and its pictures
    steps: int = 25  #: moves of each sample
    seed: int = 0  #: of samples and edits


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One edit with all that is shown of it."""

    method: str
    example: Example
    prompt: str
    command: str
    pictures: dict[str, Path]  #: by head: input, mask, result, true answer


def main(arguments: Sequence[str], prog: str) -> int:
    """Run everything, with progress, and say where the pictures are."""
    flags = parse(Demo, arguments, prog=prog)
    from steerdiff.io import ensure_writable

    start = time.monotonic()
    ensure_writable(flags.out, need=32 * 2**20)
    model = flags.load()
    print(f"model {model.name} on {model.device}; {len(PROMPTS)} samples, then {len(EXAMPLES)} methods")
    samples = _samples(flags, model)
    shown = []
    for number, (method, examples) in enumerate(EXAMPLES.items(), 1):
        print(f"[{number}/{len(EXAMPLES)}] {method}")
        shown += [_edit(flags, model, method, f"{method}{i}", example) for i, example in enumerate(examples, 1)]
    _write_gallery(flags, samples, shown)
    _write_page(flags, model, samples, shown)
    print(f"done in {time.monotonic() - start:.0f} s")
    print(f"pictures: {flags.out / 'gallery.png'}\npage:     {flags.out / 'index.html'}")
    return 0


def _samples(flags: Demo, model: Model) -> list[tuple[str, Path]]:
    options = Sample(
        weights=flags.weights,
        device=flags.device,
        precision=flags.precision,
        threads=flags.threads,
        prompts=PROMPTS,
        steps=flags.steps,
        seed=flags.seed,
        out=flags.out / "samples",
    )
    return list(zip(PROMPTS, sample_with(options, model), strict=True))


def _edit(flags: Demo, model: Model, method: str, stem: str, example: Example) -> Shown:
    """Save the inputs of an example and run the very command that the page shows."""
    from steerdiff.io import save_image
    from steerdiff.train.benchmark import box_around
    from steerdiff.train.scenes import EmojiScenes

    pair = EmojiScenes(seed=SCENES_SEED, pairs=0.0, image_size=model.size[0]).edit_pair(example.number, example.kind)
    inputs = flags.out / "inputs"
    truth = pair.source if example.reconstructs else pair.target
    pictures = {"input": save_image(pair.source.image, inputs / f"{stem}.png")}
    words = ["--image", str(pictures["input"])]
    if example.masked:
        pictures["mask"] = save_image(box_around(pair.mask) * 2 - 1, inputs / f"{stem}-mask.png")
        words += ["--mask", str(pictures["mask"])]
    if example.source_flag:
        words += [example.source_flag, pair.source.caption]
    if example.target_flag:
        words += [example.target_flag, truth.caption]
    words += [*example.flags, "--seed", str(flags.seed), "--weights", flags.weights, "--device", flags.device]
    words += ["--out", str(flags.out / "edits")]
    paths, _ = edit_with(method, method_flags(method, words, "steerdiff edit"), model, command=f"edit {method}")
    truth_path = inputs / f"{stem}-{'source' if example.reconstructs else 'true'}.png"
    pictures |= {"result": paths[0], "true answer": save_image(truth.image, truth_path)}
    command = shlex.join(["steerdiff", "edit", method, *words])
    return Shown(method=method, example=example, prompt=truth.caption, command=command, pictures=pictures)


def _write_gallery(flags: Demo, samples: Sequence[tuple[str, Path]], shown: Sequence[Shown]) -> None:
    from steerdiff.io import atomic_write, load_image

    def cell(path: Path | None, text: str = "") -> Cell:
        return Cell(image=None if path is None else load_image(path)[0], text=text)

    columns = 6
    rows = []
    for first in range(0, len(samples), columns):
        some = samples[first : first + columns]
        rows.append(Row(label="" if first else "sample", cells=tuple(cell(path, prompt) for prompt, path in some)))
    sections = [Section(title="Text to image", note="classifier-free guidance", rows=tuple(rows))]
    edits = []
    for one in shown:
        before, mask = one.pictures["input"], one.pictures.get("mask")
        cells = [cell(before), cell(mask) if mask else Cell(text="none", muted=True), cell(None, one.prompt)]
        cells += [cell(one.pictures["result"]), cell(one.pictures["true answer"])]
        edits.append(Row(label=one.method, note=one.example.note, cells=tuple(cells)))
    heads = ("input", "mask (white may change)", "prompt", "result", "true answer")
    sections.append(
        Section(title="Edits", note="the true answers are never shown to a method", heads=heads, rows=tuple(edits))
    )
    sheet = draw_gallery(TITLE, sections)
    atomic_write(flags.out / "gallery.png", lambda file: sheet.save(file, format="PNG", optimize=True))


def _write_page(flags: Demo, model: Model, samples: Sequence[tuple[str, Path]], shown: Sequence[Shown]) -> None:
    from steerdiff._version import __version__
    from steerdiff.io import atomic_write
    from steerdiff.methods import METHODS

    def figure(path: Path, head: str, text: str = "") -> Figure:
        return Figure(source=path.relative_to(flags.out).as_posix(), head=head, text=text)

    drawn = tuple(figure(path, "sample", prompt) for prompt, path in samples)
    command = shlex.join(["steerdiff", "sample", *PROMPTS, "--steps", str(flags.steps), "--seed", str(flags.seed)])
    parts = [Part(title="Text to image", note="Drawn from noise.", panels=(Panel(figures=drawn, command=command),))]
    for method in EXAMPLES:
        panels = []
        for one in (one for one in shown if one.method == method):
            texts = {"result": one.prompt, "input": one.example.note}
            figures = tuple(figure(path, head, texts.get(head, "")) for head, path in one.pictures.items())
            panels.append(Panel(figures=figures, command=one.command))
        note = (METHODS[method].__doc__ or "").split("\n\n")[0].replace("``", "")
        parts.append(Part(title=method, note=" ".join(note.split()), panels=tuple(panels)))
    intro = "One command made all of this. Each picture carries its settings: steerdiff rerun FILE makes it again."
    footer = f"steerdiff {__version__}, weights {model.name}, sha256 {model.weights_hash}"
    page = build_page(TITLE, intro, parts, footer)
    atomic_write(flags.out / "index.html", lambda file: file.write(page.encode()))

"""Recipes as Markdown: what to put where, the exact settings, and the published numbers with their sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steerdiff.models.published import PRESETS
from steerdiff.scripts.arguments import plain
from steerdiff.scripts.papers import PAPERS, Paper
from steerdiff.scripts.papers.recipe import Published, Recipe, Weights

from .metrics import METRICS

__all__ = ["command_of", "document", "overview", "recipe_text"]

_INTRODUCTION = """# Reproduction

<!-- generated: steerdiff reproduce --markdown > docs/reproduction.md -->

For each paper, its main experiments on real data and published weights: what to put where, the exact settings, how the
paper measured, and the numbers that it published. The weights and data are not part of this library; whoever has them
runs the command of a recipe and can compare.

- **Published numbers** are marked. *Read*: found in the official code, its README or the paper's text. *Unverified*:
  recalled and not checked against the paper; look it up before quoting it. Where no number could be verified, the
  recipe says what it reports instead.
- **Without weights** `steerdiff reproduce PAPER` prints the recipe and ends with `not run` and exit code 1 (`--show`
  prints only, exit code 0). It looks for weights at `--weights`, or by their published names in the folder that
  `STEERDIFF_WEIGHTS` names, and for data at `--data`.
- **With them** it draws every result to a file that carries its settings, skips those that are there (a killed run goes
  on where it was), measures, and writes `report.json` and `report.md` to `out/reproduce/PAPER/RECIPE/`. Result k uses
  `--seed` + k, whatever the batch. `--n 100` runs a part, which the report marks as not comparable; `--setting LABEL`
  chooses other rows of the settings than the first, `--setting all` every one.
- **Metrics** use torch-fidelity's Inception network and the LPIPS package, whose weights must be in PyTorch's cache,
  and DINO and CLIP from the folder of `STEERDIFF_WEIGHTS`; a metric whose weights are absent is named as not computed,
  and the others are given.
- **Masks** in these folders are the papers': white is known, black is generated. (The library's own masks and
  `steerdiff edit` mean the opposite.)
- **Toys**: with `--toy` the same code runs on the embedded model and emoji scenes in a few seconds, from reading files
  to the report. The tests run all of them. Their numbers are in features of the shipped recogniser and mean nothing
  beyond that the recipe works.
"""


def document() -> str:
    """Return ``docs/reproduction.md``."""
    parts = [_INTRODUCTION]
    for paper in PAPERS.values():
        if paper.recipes:
            parts.append(f"## {paper.title}\n\n{_citation(paper)}\n")
            parts += [recipe_text(paper, recipe, level=3) for recipe in paper.recipes]
    return "\n".join(parts)


def overview(prog: str) -> str:
    """Return the list of papers and recipes for the terminal."""
    rows = [
        (f"{paper.name}{'' if recipe is paper.recipes[0] else f' --recipe {recipe.name}'}", recipe.title)
        for paper in PAPERS.values()
        for recipe in paper.recipes
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}  {title}" for name, title in rows]
    end = (
        f"{prog} PAPER prints a recipe, and runs it where weights and data are given; {prog} PAPER --help shows flags."
    )
    return "\n".join(["Papers and their recipes:", "", *lines, "", end])


def command_of(paper: Paper, recipe: Recipe, *, toy: bool = False) -> str:
    """Return the command that runs a recipe."""
    words = [f"steerdiff reproduce {paper.name}"]
    words += [] if recipe is paper.recipes[0] else [f"--recipe {recipe.name}"]
    if toy:
        return " ".join([*words, "--toy"])
    words.append(f"--weights {_file(recipe.weights)}")
    if recipe.classifier is not None:
        words.append(f"--classifier {_file(recipe.classifier)}")
    return " ".join([*words, "--data DATA"])


def recipe_text(paper: Paper, recipe: Recipe, level: int = 1) -> str:
    """Return one recipe; ``level`` is that of its heading."""
    sections = [
        f"{'#' * level} `{recipe.name}`: {recipe.title}\n",
        *([f"{_citation(paper)}\n"] if level == 1 else []),
        _weights(recipe),
        _data(recipe),
        f"**Command**\n\n    {command_of(paper, recipe)}\n",
        _settings(recipe),
        _measured(recipe),
        _published(recipe),
        _ours(recipe),
        _remarks(recipe),
        f"**Toy**: `{command_of(paper, recipe, toy=True)}`"
        + (f" ({recipe.toy.remark})" if recipe.toy.remark else "")
        + "\n",
    ]
    return "\n".join(section for section in sections if section)


def _citation(paper: Paper) -> str:
    return f"{paper.authors}, {paper.year}, [arXiv:{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})"


def _file(weights: Weights) -> str:
    return PRESETS[weights.preset].files[0].split(" of ")[0].split(": ")[-1]


def _weights(recipe: Recipe) -> str:
    lines = ["**Weights**", ""]
    for role, weights in (("model", recipe.weights), ("classifier", recipe.classifier)):
        if weights is None:
            continue
        preset = PRESETS[weights.preset]
        files = " or ".join(f"`{file}`" for file in preset.files)
        licence = preset.licence or "see its authors"
        remark = f" {weights.remark[0].upper()}{weights.remark[1:]}." if weights.remark else ""
        line = f"- {role}: {files} (preset `{weights.preset}`), {preset.description}."
        lines.append(f"{line} From {preset.source}. Licence: {licence}.{remark}")
    return "\n".join([*lines, ""])


def _data(recipe: Recipe) -> str:
    data = recipe.data
    tree = [("images/", data.images), ("subject/CLASS/", data.subject)]
    tree += [(f"masks/{kind}/", what) for kind, what in data.masks.items()]
    tree += [("reference/", data.reference)]
    told = "what each image shows" if data.targets else "what each result shows"
    tree += [("prompts.txt", f"{told}, a line each" if data.prompts else None)]
    tree += [("targets.txt", "what each result shows, a line each" if data.targets else None)]
    shown = [(name, what) for name, what in tree if what]
    width = max(len(name) for name, _ in shown)
    each = "line of prompts.txt" if data.images is None and data.prompts else "picture in images/"
    count = f"{recipe.n:,} results" if recipe.n is not None else f"one result for each {each}"
    lines = [f"**Data**: {data.name}; {count}. Preparation: {data.preparation}.", "", "    DATA/"]
    return "\n".join([*lines, *(f"      {name:<{width}}  {what}" for name, what in shown), ""])


def _settings(recipe: Recipe) -> str:
    """Fields that all runs share in a line, the others in a table."""
    values = [plain(run.settings) for run in recipe.runs]
    kinds = {type(run.settings).__name__ for run in recipe.runs}
    names = [name for name in values[0] if name != "classifier_scale" or recipe.classifier is not None]
    varied = [name for name in names if len({str(value.get(name)) for value in values}) > 1]
    shared = [f"{name} = {values[0][name]}" for name in names if name not in varied and values[0][name] is not None]
    head = f"**Settings** (`{', '.join(sorted(kinds))}`; {'the first row is run by default' if len(values) > 1 else ''}"
    lines = [f"{head.rstrip('; ')}): {', '.join(shared)}", ""]
    if len(values) == 1:
        return "\n".join([*lines[:1], f"\nOne setting: `{recipe.runs[0].label}`.", ""])
    masks = any(run.masks for run in recipe.runs)
    lines += _head(["setting", *varied, *(["masks"] if masks else [])])
    for run, value in zip(recipe.runs, values, strict=True):
        cells = [run.label, *(_cell(value[name]) for name in varied), *([run.masks or ""] if masks else [])]
        lines.append(_row(cells))
    return "\n".join([*lines, ""])


def _measured(recipe: Recipe) -> str:
    notes = "; ".join(f"{METRICS[name].title}: {METRICS[name].note}" for name in recipe.metrics)
    return f"**Measured**: {notes}.\n\nThe paper: {recipe.protocol}.\n"


def _published(recipe: Recipe) -> str:
    if not recipe.published:
        return f"**Published numbers**: not verified. {recipe.missing}\n"
    rows: dict[tuple[str, str, bool], list[Published]] = {}
    for one in recipe.published:
        rows.setdefault((one.setting, one.source, one.read), []).append(one)
    names = [name for name in recipe.metrics if any(one.metric == name for one in recipe.published)]
    lines = ["**Published numbers**", "", *_head(["setting", *(METRICS[name].title for name in names), "source", ""])]
    for (setting, source, read), found in rows.items():
        values = {one.metric: f"{one.value:g}" for one in found}
        status = "read" if read else "unverified"
        lines.append(_row([setting, *(values.get(name, "") for name in names), source, status]))
    return "\n".join([*lines, "", *([f"{recipe.missing}\n"] if recipe.missing else [])])


def _ours(recipe: Recipe) -> str:
    if not recipe.ours:
        return "**Our run**: `not run: weights absent`\n"
    lines = ["**Our run**", "", *_head(["setting", "metric", "value", "n", "version", "command"])]
    for one in recipe.ours:
        cells = [one.setting, METRICS[one.metric].title, f"{one.value:g}", str(one.n), one.version, f"`{one.command}`"]
        lines.append(_row(cells))
    return "\n".join([*lines, ""])


def _remarks(recipe: Recipe) -> str:
    lines = [f"- {remark}" for remark in recipe.remarks]
    return "\n".join(["**Before believing a difference**", "", *lines, ""]) if lines else ""


def _head(titles: Sequence[str]) -> list[str]:
    return [_row(titles), _row(["---"] * len(titles))]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _cell(value: Any) -> str:
    return "" if value is None else str(value)

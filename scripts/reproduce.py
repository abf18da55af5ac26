"""``steerdiff reproduce PAPER``: the main experiment of a paper, with its published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from steerdiff.errors import require

from .arguments import parse
from .runtime import Precision
from .suggestions import closest

if TYPE_CHECKING:
    from .papers import Paper
    from .papers.recipe import Recipe

__all__ = ["Reproduce", "main"]


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Run the recipe of a paper on its weights and data; where they are absent, print it.

    The exit code is 0 if it ran (or with --show), 1 if weights or data are absent, 2 for bad input.
    """

    recipe: str | None = None  #: which experiment of the paper; None is the main one
    setting: tuple[str, ...] = ()  #: labels of the settings to run, or all; without one the first
    show: bool = False  #: print the recipe and do nothing else
    toy: bool = False  #: run it on the embedded model and emoji scenes, in seconds
    weights: Path | None = None  #: published weights; None looks into the folder that STEERDIFF_WEIGHTS names
    weights_config: str | None = None  #: what they are; None is the preset of the recipe
    classifier: Path | None = None  #: published weights of the classifier, where the recipe has one
    classifier_config: str | None = None  #: what they are; None is the preset of the recipe
    data: Path | None = None  #: folder of pictures, laid out as the recipe says
    n: int | None = None  #: results; fewer than the recipe's are not comparable
    seed: int = 0  #: result k uses seed + k
    batch: int = 16  #: results computed together
    fresh: bool = False  #: draw again the results that are there with other settings
    device: str = "auto"  #: cpu, cuda, cuda:1, ...; auto takes CUDA if there is one
    precision: Precision = "float32"  #: floating type of the networks
    threads: int | None = None  #: CPU threads; None leaves it to PyTorch
    out: Path = Path("out/reproduce")  #: results go to PAPER/RECIPE in this folder

    def __post_init__(self) -> None:
        """Check the numbers."""
        require(self.n is None or self.n >= 1, f"n is {self.n}; ask for at least one result")
        require(self.batch >= 1, f"batch is {self.batch}; it must be at least 1")
        require(self.seed >= 0, f"seed is {self.seed}; it must be at least 0")
        require(not (self.toy and self.show), "--toy runs and --show only prints; give one of them")


def main(arguments: Sequence[str], prog: str) -> int:
    """Print or run the recipe of the paper that the first argument names; without one, list them."""
    if arguments and arguments[0] in ("-h", "--help"):  # without PyTorch, which the list of papers imports
        parse(Reproduce, ["--help"], prog=f"{prog} PAPER", note=f"{prog} without more lists papers and recipes.")
    if not arguments:
        from .reproduction.text import overview

        print(overview(prog))
        return 0
    if list(arguments) == ["--markdown"]:
        from .reproduction.text import document

        print(document(), end="")
        return 0
    name, *rest = arguments
    require(not name.startswith("-"), f"the paper comes first: {prog} PAPER {name} ...")
    flags = parse(Reproduce, rest, prog=f"{prog} {name}")
    from .papers import PAPERS

    papers = {word: paper for word, paper in PAPERS.items() if paper.recipes}
    require(name in papers, f"there is no paper {name!r}; {closest(name, papers)}")
    paper = papers[name]
    recipe = _recipe(paper, flags.recipe)
    from .reproduction import session

    if flags.show:
        print(session.shown(paper, recipe), end="")
        return 0
    lacking = [] if flags.toy else session.lacking(recipe, flags)
    if lacking:
        print(session.shown(paper, recipe, lacking), end="")
        return 1
    report = session.run_toy(paper, recipe, flags) if flags.toy else session.run_real(paper, recipe, flags)
    print(report.markdown(), end="")
    return 0


def _recipe(paper: Paper, name: str | None) -> Recipe:
    recipes = {recipe.name: recipe for recipe in paper.recipes}
    chosen = paper.recipes[0].name if name is None else name
    require(chosen in recipes, f"{paper.name} has no recipe {chosen!r}; {closest(chosen, recipes)}")
    return recipes[chosen]

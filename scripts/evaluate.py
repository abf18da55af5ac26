"""``steerdiff evaluate WHAT``: measure models, edits and samples."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NamedTuple

from steerdiff.errors import require

from .suggestions import closest

__all__ = ["EVALUATIONS", "Evaluation", "main"]


class Evaluation(NamedTuple):
    """Where an evaluation lives and what it does."""

    module: str  #: with ``main(arguments, prog)``
    help: str  #: one line


#: What can be evaluated, by name. Only the module of the one that is called is imported.
EVALUATIONS = {
    "embedded": Evaluation("steerdiff.scripts.evaluation.embedded", "how often samples show what their captions say"),
    "edits": Evaluation("steerdiff.scripts.evaluation.edits", "every method on the edits it claims, against the truth"),
    "samples": Evaluation("steerdiff.scripts.evaluation.samples", "FID, KID, precision, CLIP score... of images"),
    "noisy": Evaluation("steerdiff.scripts.evaluation.noisy", "what classifier and CLIP still see in noised images"),
    "claims": Evaluation("steerdiff.scripts.evaluation.claims", "which claims of the papers hold on this domain"),
}


def main(arguments: Sequence[str], prog: str) -> int:
    """Evaluate what the first argument names; without one, list what there is."""
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:<10}{evaluation.help}" for name, evaluation in EVALUATIONS.items()]
        print("\n".join([f"usage: {prog} WHAT [OPTIONS]", "", *lines, "", f"{prog} WHAT --help shows its flags."]))
        return 0
    name, *rest = arguments
    require(name in EVALUATIONS, f"there is nothing called {name!r} to evaluate; {closest(name, EVALUATIONS)}")
    module = importlib.import_module(EVALUATIONS[name].module)
    code: int = module.main(rest, f"{prog} {name}")
    return code

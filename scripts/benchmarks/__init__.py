"""The cases of ``steerdiff bench``: each is our work and, where they are installed, others doing the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .contest import Contest, Ratio, Setting
from .edits import EDITS, edits
from .floors import FLOORS, floors
from .loops import BATCHES, LOOP, loop
from .networks import FORWARD, TRAINING, backward, forward
from .parts import ATTENTION, SHAPES, attention, sampling
from .scaling import scaling
from .sizes import SIZES
from .wholes import WHOLES, wholes

__all__ = ["CASES", "PLANNED", "SIZES", "Contest", "Ratio", "Setting"]

#: Groups of cases by name; each yields contests.
CASES: dict[str, Callable[[Setting], Iterator[Contest]]] = {
    "attention": attention,
    "forward": forward,
    "backward": backward,
    "edits": edits,
    "floors": floors,
    "loop": loop,
    "whole": wholes,
    "sampling": sampling,
    "scaling": scaling,
}

#: The ratios that the tables have, measured or not, by the key of their contest.
PLANNED: dict[str, tuple[Ratio, ...]] = {
    **{f"attention, {name}": ATTENTION for name in SHAPES},
    **{f"forward, {name}": FORWARD for name in SIZES},
    **{f"forward and backward, {name}": TRAINING for name in SIZES},
    **{f"Prompt-to-Prompt, {name}": EDITS for name, size in SIZES.items() if size.context is not None},
    **FLOORS,
    **{f"whole sample, {name}": WHOLES for name, size in SIZES.items() if size.context is not None},
    **{f"loop, DDIM, batch {batch}": LOOP for batch in BATCHES},
    **{f"loop, DPM-Solver++(2M), batch {batch}": LOOP for batch in BATCHES},
}

"""The ablations of text-to-image methods whose results the repository keeps, and its tables and pictures of them.

Needs no PyTorch to be imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .curves import Curve

__all__ = ["METHODS", "PICTURES", "SHEETS", "TABLES", "TASKS", "Along", "Picture", "Table", "names", "page"]


@dataclass(frozen=True, kw_only=True)
class Along:
    """One curve of a picture: settings of an ablation along a swept field."""

    ablation: str
    field: str
    label: str = ""  #: for the legend
    where: Mapping[str, float] = dataclasses.field(default_factory=dict)  #: numbers that other swept fields must have


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Curves of one score against another."""

    title: str
    note: str  #: below the title
    scores: tuple[str, str]  #: what goes upwards, and what to the right
    curves: tuple[Along, ...]
    compares: bool = False  #: the page says what lies to the right where the curves are as high

    def read(self, folder: Path) -> list[Curve]:
        """Return the curves, from ``NAME.csv`` in a folder."""
        from .curves import read_curve

        return [
            read_curve(folder / f"{curve.ablation}.csv", curve.label, self.scores, curve.field, curve.where)
            for curve in self.curves
        ]

    def png(self, folder: Path) -> bytes:
        """Return the picture, from ``NAME.csv`` in a folder."""
        from .curves import curve_plot

        return curve_plot(self.read(folder), self.scores, self.title, self.note)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Ablations that make one table together."""

    ablations: tuple[str, ...]
    columns: tuple[str, ...]  #: names in ``SCORES``


#: Of ``evaluate edits``: the text-to-image methods beside SDEdit and DDIM inversion, on the tasks that they claim.
METHODS = ("sdedit", "invert", "p2p", "nulltext", "negprompt", "diffedit", "imagic", "unitune", "dreambooth")
TASKS = ("object", "style", "colour", "cat to panda", "reconstruct", "subject", "class beside subject")

#: Ablations whose contact sheet is kept, a row for each case.
SHEETS = ("p2p-cross", "nulltext-reconstruct", "diffedit-ratio", "imagic-eta", "dreambooth-prior", "dreambooth-class")

#: The tables of the page, by title.
TABLES = {
    "Prompt-to-Prompt": Table(
        ablations=("p2p-control", "p2p-cross", "p2p-self"), columns=("right", "layout", "outside", "feature_outside")
    ),
    "DiffEdit's mask": Table(
        ablations=("diffedit-mask", "diffedit-mask-style", "diffedit-mask-colour"), columns=("iou",)
    ),
    "DiffEdit and SDEdit": Table(
        ablations=("diffedit-ratio", "diffedit-sdedit"), columns=("right", "outside", "feature_outside", "guide")
    ),
    "Reconstruction under guidance": Table(
        ablations=("nulltext-reconstruct", "negprompt-edit"), columns=("right", "inside", "outside", "feature_outside")
    ),
    "Imagic": Table(
        ablations=("imagic-eta", "imagic-stages"), columns=("right", "layout", "outside", "feature_outside", "guide")
    ),
    "UniTune": Table(
        ablations=("unitune-guidance",), columns=("right", "layout", "outside", "feature_outside", "guide")
    ),
    "DreamBooth": Table(
        ablations=("dreambooth-prior", "dreambooth-class"), columns=("right", "feature_outside", "guide", "diversity")
    ),
}

_TUNED, _PLAIN = {"tune_steps": 80}, {"tune_steps": 0}
#: The pictures, by name of their file.
PICTURES = {
    "p2p-windows.png": Picture(
        title="Prompt-to-Prompt, windows of attention",
        note="labels are the share of steps that follows the source",
        scores=("right", "outside"),
        curves=(Along(ablation="p2p-cross", field="cross_replace_steps", label="cross, with self 0.4"),),
    ),
    "diffedit-sdedit.png": Picture(
        title="DiffEdit beside SDEdit, cat to panda",
        note="along t0",
        scores=("right", "outside"),
        curves=(
            Along(ablation="diffedit-ratio", field="t0", label="DiffEdit"),
            Along(ablation="diffedit-sdedit", field="t0", label="SDEdit"),
        ),
        compares=True,
    ),
    "imagic-eta.png": Picture(
        title="Imagic between the image and the text",
        note="along eta, the weight of the text",
        scores=("right", "guide"),
        curves=(Along(ablation="imagic-eta", field="eta"),),
    ),
    "unitune-guidance.png": Picture(
        title="UniTune beside SDEdit, along guidance",
        note="along guidance, from t0 = 0.8",
        scores=("right", "feature_outside"),
        curves=(
            Along(ablation="unitune-guidance", field="guidance", label="UniTune", where=_TUNED),
            Along(ablation="unitune-guidance", field="guidance", label="SDEdit (no updates)", where=_PLAIN),
        ),
        compares=True,
    ),
}

_EQUAL = (
    "Interpolated linearly along each curve, the ends of the intervals too; how uncertain the share is does not enter."
)


def names() -> list[str]:
    """Return the ablations, in the order of the tables."""
    return [name for table in TABLES.values() for name in table.ablations]


def page(folder: Path) -> str:
    """Return all tables as Markdown, from ``NAME.csv`` in a folder.

    Raises:
        UserError: A setting failed.
    """
    from .curves import at_equal
    from .overview import overview

    parts = []
    for title, table in TABLES.items():
        files = [folder / f"{name}.csv" for name in table.ablations]
        parts.append(f"## {title}\n\n{overview(files, table.columns)}")
    for picture in (picture for picture in PICTURES.values() if picture.compares):
        equal = at_equal(picture.read(folder), picture.scores)
        parts.append(f"## {picture.title}: where as many are right\n\n{_EQUAL}\n\n{equal}")
    return "\n".join(parts)

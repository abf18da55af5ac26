"""What a recipe is made of: weights, data, exact settings, metrics, and the numbers that were published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from steerdiff.errors import require

__all__ = ["Data", "MetricName", "Ours", "Published", "Recipe", "Run", "Toy", "Weights"]

#: A metric by its key in ``steerdiff.scripts.reproduction.metrics.METRICS``.
MetricName = Literal[
    "fid",
    "kid",
    "precision",
    "recall",
    "is",
    "lpips",
    "mse",
    "rms",
    "kept",
    "low_pass",
    "dino",
    "clip_i",
    "clip_t",
    "div",
]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Published weights; the preset knows the names of the files, their source and their licence."""

    preset: str  #: as ``steerdiff info --presets`` lists it
    remark: str = ""  #: what else to know about them


@dataclass(frozen=True, kw_only=True)
class Data:
    """What the folder of ``--data`` holds. Pictures are taken in the order of their paths."""

    name: str  #: the data set and its part
    images: str | None = None  #: what lies in ``images``, one for each result; None: nothing goes in
    subject: str | None = None  #: what lies in ``subject/CLASS``, to which one model is tuned for all results
    masks: Mapping[str, str] = field(default_factory=dict)  #: what lies in ``masks/KIND``, by kind; white is known
    reference: str | None = None  #: what lies in ``reference`` or ``reference.npz``, that results are compared with
    preparation: str = "ADM's centre crop to the model's size"  #: what is done to each picture, in words
    box: tuple[int, int, int, int] | None = None  #: rows and columns (top, bottom, left, right) that are kept first
    bilinear: bool = False  #: resize bilinearly what ``box`` cut out; else ADM's box and bicubic filters
    prompts: bool = False  #: ``prompts.txt`` says what each result shows, a line each
    targets: bool = False  #: ``targets.txt`` says what each result shows, and ``prompts.txt`` what its image shows


@dataclass(frozen=True, kw_only=True)
class Run:
    """One setting of the experiment."""

    label: str  #: short; rows of tables and ``--setting`` name it
    settings: Any  #: a `Sampling`, or an instance of a method's class
    masks: str | None = None  #: kind of masks, a key of ``Data.masks``


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number of the paper, or of its code's README."""

    value: float
    metric: MetricName
    setting: str  #: label of a run; any other text is a setting that the recipe does not run
    source: str  #: where it is printed
    read: bool  #: it was read there; False: it was recalled and is unverified
    n: int | None = None  #: images it was computed from; None: not known


@dataclass(frozen=True, kw_only=True)
class Ours:
    """What a full run of this recipe gave; whoever has the weights adds it."""

    value: float
    metric: MetricName
    setting: str  #: label of a run
    n: int  #: images
    version: str  #: of steerdiff
    command: str  #: that gave it


@dataclass(frozen=True, kw_only=True)
class Toy:
    """The same recipe at toy size: the embedded model in place of the weights, emoji scenes in place of the data."""

    runs: tuple[Run, ...]
    task: str = "draw"  #: of the benchmark, whose cases are the data
    n: int = 4  #: results
    remark: str = ""  #: what is not like the real run


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An experiment of a paper that the library can run."""

    name: str  #: word after ``--recipe``
    title: str  #: what it shows, in one line
    weights: Weights
    data: Data
    runs: tuple[Run, ...]  #: the first is what runs if nothing else is asked for
    metrics: tuple[MetricName, ...]
    protocol: str  #: how the paper measured
    toy: Toy
    classifier: Weights | None = None  #: the noisy classifier that guides
    classifier_scale: float = 1.0  #: its strength in a method; a `Sampling` has its own
    n: int | None = None  #: results of a full run; None: one for each picture of the data
    published: tuple[Published, ...] = ()
    missing: str = ""  #: numbers that could not be verified, and what is reported in their place
    remarks: tuple[str, ...] = ()  #: what to know before believing a difference
    ours: tuple[Ours, ...] = ()

    def __post_init__(self) -> None:
        """Check that labels differ, that masks are described and that numbers name a metric of the recipe."""
        labels = [run.label for run in self.runs]
        require(len(labels) > 0 and len(set(labels)) == len(labels), f"the runs of {self.name} are {labels}")
        for run in self.runs:
            known = run.masks is None or run.masks in self.data.masks
            require(known, f"{self.name}: {run.label} uses masks {run.masks!r}, which the data do not describe")
        for metric in [number.metric for number in self.published] + [result.metric for result in self.ours]:
            require(metric in self.metrics, f"{self.name}: {metric} is published but not measured")
        for result in self.ours:
            require(result.setting in labels, f"{self.name}: our result is of {result.setting!r}, which is no run")

    def pulls(self, run: Run) -> bool:
        """Say whether a run uses the classifier."""
        return self.classifier is not None and getattr(run.settings, "classifier_scale", self.classifier_scale) != 0

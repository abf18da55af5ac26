"""ADM: class-conditional ImageNet with and without a classifier, and LSUN."""

from __future__ import annotations

from dataclasses import dataclass

from steerdiff.guidance.settings import Sampling
from steerdiff.samplers import DDIM, DDPM

from .recipe import Data, MetricName, Published, Recipe, Run, Toy, Weights

__all__ = ["ADM_RECIPES"]

_README = "README of github.com/openai/guided-diffusion"
_METRICS: tuple[MetricName, ...] = ("fid", "precision", "recall", "is")
_PROTOCOL = (
    "FID of 50,000 samples against the whole training set (statistics of the reference file), precision and recall "
    "(k = 3) against 10,000 of its images, by OpenAI's evaluator and TensorFlow's Inception graph"
)
_INCEPTION = "Another port of the Inception network shifts FID by up to some tenths; sFID is not computed here."


def _ancestral(scale: float, steps: int = 250) -> Sampling:
    return Sampling(steps=steps, solver=DDPM(), spacing="respaced", guidance=1.0, clip="clip", classifier_scale=scale)


def _few(scale: float) -> Sampling:
    return Sampling(
        steps="ddim25", solver=DDIM(), spacing="respaced", guidance=1.0, clip="clip", classifier_scale=scale
    )


def _unguided(steps: int = 250) -> Run:
    return Run(label=f"no classifier, {steps} steps", settings=_ancestral(0.0, steps))


def _guided(scale: float) -> Run:
    return Run(label=f"classifier scale {scale:g}, 250 steps", settings=_ancestral(scale))


def _guided_few(scale: float) -> Run:
    return Run(label=f"classifier scale {scale:g}, 25 steps of DDIM", settings=_few(scale))


@dataclass(frozen=True, kw_only=True)
class _Row:
    """Published numbers of one run; None where none is known."""

    run: Run
    fid: float
    precision: float | None = None
    recall: float | None = None
    read: bool = False

    def numbers(self) -> tuple[Published, ...]:
        found: tuple[tuple[MetricName, float | None], ...]
        found = (("fid", self.fid), ("precision", self.precision), ("recall", self.recall))
        source = _README if self.read else "paper"
        return tuple(
            Published(value=value, metric=metric, setting=self.run.label, source=source, read=self.read, n=50_000)
            for metric, value in found
            if value is not None
        )


_TOY_LABELS = Toy(
    runs=(
        Run(label="classifier", settings=Sampling(steps=8, solver=DDPM(), guidance=1.0, classifier_scale=1.0)),
        Run(label="no classifier", settings=Sampling(steps=8, solver=DDPM(), guidance=1.0, classifier_scale=0.0)),
        Run(label="DDIM", settings=Sampling(steps=5, solver=DDIM(), guidance=1.0, classifier_scale=1.0)),
    ),
    remark="the embedded model without a prompt, pulled by its own classifier of 48 objects, draws four labels in "
    "a few steps",
)
_TOY_PLAIN = Toy(runs=(Run(label="plain", settings=Sampling(steps=8, solver=DDPM(), guidance=1.0)),))


def _imagenet(size: int, *rows: _Row | Run, name: str = "", remarks: tuple[str, ...] = ()) -> Recipe:
    """A recipe on ImageNet; rows with numbers and runs without any, the main one first."""
    reference = f"VIRTUAL_imagenet{size}_labeled.npz"
    return Recipe(
        name=name or f"imagenet{size}",
        title=f"FID, precision and recall on ImageNet, {size} x {size}"
        + (", from the model without labels" if name else ""),
        weights=Weights(preset=f"adm-{size}-uncond" if name else f"adm-{size}"),
        classifier=Weights(preset=f"adm-{size}-classifier"),
        data=Data(
            name="ImageNet, training part",
            reference=f"OpenAI's reference batch `{reference}` as reference.npz, or the training images",
            preparation="none for the reference batch; for images ADM's centre crop",
        ),
        runs=tuple(row.run if isinstance(row, _Row) else row for row in rows),
        metrics=_METRICS,
        protocol=_PROTOCOL,
        n=50_000,
        published=tuple(number for row in rows if isinstance(row, _Row) for number in row.numbers()),
        remarks=("Labels are drawn uniformly, one for each image, from the seed.", *remarks, _INCEPTION),
        toy=_TOY_LABELS,
    )


def _lsun(category: str, fid: float, precision: float, recall: float) -> Recipe:
    row = _Row(run=_unguided(1000), fid=fid, precision=precision, recall=recall, read=True)
    return Recipe(
        name=f"lsun-{category}",
        title=f"FID, precision and recall on LSUN {category}s, 256 x 256",
        weights=Weights(preset=f"adm-lsun-{category}"),
        data=Data(
            name=f"LSUN {category}, training part",
            reference="OpenAI's reference batch of the category as reference.npz, or the training images",
        ),
        runs=(row.run,),
        metrics=_METRICS[:-1],
        protocol=_PROTOCOL,
        n=50_000,
        published=row.numbers(),
        remarks=("1000 steps, with which the README has the best samples.", _INCEPTION),
        toy=_TOY_PLAIN,
    )


ADM_RECIPES = (
    _imagenet(
        256,
        _Row(run=_guided(1.0), fid=4.59, precision=0.82, recall=0.52, read=True),
        _Row(run=_unguided(), fid=10.94),
        _Row(run=_guided(10.0), fid=9.11),
        _Row(run=_guided_few(2.5), fid=5.44),
        remarks=(
            "The scale of the 25 steps was tuned by the paper, 2.5 as we recall.",
            "FID 3.94 (precision 0.83, recall 0.53, README) is of a second model that enlarges 128 or 64 pixels; this "
            "recipe has one stage.",
        ),
    ),
    _imagenet(
        64,
        _Row(run=_unguided(), fid=2.07, precision=0.74, recall=0.63, read=True),
        _guided(1.0),
        remarks=(
            "The README lists 2.07 among the results of guided models and gives a command with scale 1.0; in the "
            "paper, as we recall, it is the number without a classifier, and so it stands here.",
        ),
    ),
    _imagenet(
        128,
        _Row(run=_guided(0.5), fid=2.97, precision=0.78, recall=0.59, read=True),
        _Row(run=_unguided(), fid=5.91),
        _Row(run=_guided_few(1.25), fid=5.98),
        _guided_few(1.0),
        remarks=("The README's command of 25 steps has scale 1.0; the paper's, as we recall, 1.25.",),
    ),
    _imagenet(
        256,
        _Row(run=_guided(10.0), fid=12.00),
        _Row(run=_unguided(), fid=26.21),
        _Row(run=_guided(1.0), fid=33.03),
        name="imagenet256-uncond",
    ),
    _imagenet(
        512,
        _Row(run=_guided(4.0), fid=7.72, precision=0.87, recall=0.42, read=True),
        _Row(run=_unguided(), fid=23.24),
        _Row(run=_guided_few(9.0), fid=8.41),
        remarks=("The scale of the 25 steps was tuned by the paper, 9.0 as we recall.",),
    ),
    _lsun("bedroom", 1.90, 0.66, 0.51),
    _lsun("cat", 5.57, 0.63, 0.52),
    _lsun("horse", 2.57, 0.71, 0.55),
)

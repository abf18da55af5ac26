"""Scores of edits against their true answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import require
from steerdiff.io import to_uint8
from steerdiff.train.recogniser import Recogniser, Sighting, reading_order
from steerdiff.train.scenes import CANVAS

from .cases import Case
from .tasks import TASKS, shipped_recogniser

__all__ = ["SCORES", "THRESHOLD", "Score", "Scores", "score_edits"]

#: Grey levels by which a channel must differ from the given image for a pixel to count as edited. Nine in ten pixels
#: that an inversion should have left alone drift by less than 18; a higher one loses much of a change of style.
THRESHOLD = 20
_CHUNK = 64  # cases scored at once: their features take about 1 MB each

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a score is."""

    title: str  #: head of a column
    note: str  #: what it measures, in one line
    better: str  #: "higher" or "lower"; "" where neither is better
    percent: bool = False  #: shown as a share


SCORES: dict[str, Score] = {
    "right": Score(
        title="right",
        note="share of results in which the recogniser sees what was asked for (each task says what that is)",
        better="higher",
        percent=True,
    ),
    "inside": Score(
        title="error inside",
        note="root mean square difference from the true answer where it differs from the image; grey levels, 0 to 255",
        better="lower",
    ),
    "outside": Score(
        title="error outside",
        note="root mean square difference from the true answer where it equals the image; grey levels, 0 to 255",
        better="lower",
    ),
    "feature_inside": Score(
        title="feature distance inside",
        note="distance from the true answer in features of the recogniser, as LPIPS but unweighted, where it differs "
        "from the image; 0 to 2",
        better="lower",
    ),
    "feature_outside": Score(
        title="feature distance outside",
        note="the same where the true answer equals the image; 0 to 2",
        better="lower",
    ),
    "iou": Score(
        title="mask IoU",
        note=f"pixels that the edit changes by more than {THRESHOLD} grey levels against those that the true answer "
        "does: intersection over union, 0 to 1",
        better="higher",
    ),
    "layout": Score(
        title="layout kept",
        note="share of results in which the recogniser sees the layout of the true answer: one object, or two beside "
        "or above each other",
        better="higher",
        percent=True,
    ),
    "guide": Score(
        title="distance to the image given",
        note="root mean square difference from what the method was given; grey levels, 0 to 255",
        better="",
    ),
    "diversity": Score(
        title="diversity",
        note="mean feature distance over the whole image between the results of two seeds of a case; 0 to 2",
        better="",
    ),
    "kid": Score(
        title="KID x 1000",
        note="kernel distance between the results and the true answers as sets, in features of the recogniser, "
        "times 1000; unbiased, so that it may be negative",
        better="lower",
    ),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """The scores of one cell. ``summary`` and ``difference`` read them."""

    values: Mapping[str, FloatArray]  #: by name, [cases, seeds], or [cases, 1] of "diversity"; may be NaN
    features: FloatArray  #: of the results, as the recogniser sees them, [cases, seeds, D]: for "kid"
    truths: FloatArray  #: of the true answers, [cases, D]


def score_edits(cases: Sequence[Case], images: Tensor, recogniser: Recogniser | None = None) -> Scores:
    """Score edits against their true answers.

    A score that says nothing about a task (``Task.without``), or that has no pixel to be taken over, is NaN. Features
    are those of the five blocks of the recogniser: of each, every place's channels are scaled to length 1, and squared
    differences are summed over channels and enlarged to 64 x 64; the mean of the five is averaged over a region. No
    weights are learned for it. For "kid" it is the last block's mean over all places, 128 numbers.

    Args:
        cases: What was asked for, all of one task.
        images: The results as they would be saved, uint8 [cases, seeds, 3, 64, 64].
        recogniser: None takes the shipped one.

    Raises:
        UserError: The images have another shape or type, or the cases are of several tasks.

    Source: Zhang et al. 2018, "The unreasonable effectiveness of deep features", eq. 1, with w = 1.
    """
    expected = f"expected uint8 [{len(cases)}, seeds, 3, {CANVAS}, {CANVAS}], as steerdiff.io.to_uint8 gives them"
    fits = images.dtype == torch.uint8 and images.ndim == 5 and images.shape[0] == len(cases) > 0
    fits = fits and images.shape[1] > 0 and tuple(images.shape[2:]) == (3, CANVAS, CANVAS)
    require(fits, f"images are {images.dtype} {list(images.shape)} of {len(cases)} cases; {expected}")
    tasks = sorted({case.task for case in cases})
    require(len(tasks) == 1, f"the cases are of {len(tasks)} tasks ({', '.join(tasks)}); score one task at a time")
    recogniser = recogniser or shipped_recogniser()
    parts = [
        _score(cases[first : first + _CHUNK], images[first : first + _CHUNK].cpu(), recogniser)
        for first in range(0, len(cases), _CHUNK)
    ]
    values = {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values}
    return Scores(
        values=values,
        features=np.concatenate([part.features for part in parts]),
        truths=np.concatenate([part.truths for part in parts]),
    )


@torch.no_grad()
def _score(cases: Sequence[Case], images: Tensor, recogniser: Recogniser) -> Scores:
    shape = images.shape[:2]
    results = images.flatten(0, 1)
    truth, given = (
        to_uint8(torch.stack(pictures)) for pictures in ([c.truth for c in cases], [c.image for c in cases])
    )
    region = torch.stack([case.changed for case in cases])
    seen, true = _blocks(recogniser, results), _blocks(recogniser, truth)
    owner = torch.arange(len(cases)).repeat_interleave(shape[1])
    distance = _distance(seen, [block[owner] for block in true])
    error = (results.double() - truth[owner].double()).square().mean(1, keepdim=True)
    change = (results.double() - given[owner].double()).square().mean((1, 2, 3)).sqrt()
    region = region[owner].double()
    values = {
        "inside": _mean(error, region).sqrt(),
        "outside": _mean(error, 1 - region).sqrt(),
        "feature_inside": _mean(distance, region),
        "feature_outside": _mean(distance, 1 - region),
        "iou": _overlap(results, truth[owner], given[owner], region),
        "guide": change,
        **_seen(cases, owner, recogniser.read(_unit(results))),
    }
    without = TASKS[cases[0].task].without
    arrays = {name: value.reshape(*shape).numpy() for name, value in values.items()}
    arrays["diversity"] = _diversity([block.reshape(*shape, *block.shape[1:]) for block in seen])
    for name in without:
        arrays[name] = np.full_like(arrays[name], np.nan)
    return Scores(
        values={name: arrays[name] for name in SCORES if name in arrays},
        features=seen[-1].mean((2, 3)).double().reshape(*shape, -1).numpy(),
        truths=true[-1].mean((2, 3)).double().numpy(),
    )


def _unit(pictures: Tensor) -> Tensor:
    return pictures.to(torch.float32).div(127.5).sub(1)


def _blocks(recogniser: Recogniser, pictures: Tensor) -> list[Tensor]:
    """Return the features of each block of the recogniser, each [N, C, H, W]."""
    training = recogniser.training
    recogniser.eval()
    h, blocks = _unit(pictures).to(recogniser.place), []
    for block in recogniser.features:
        h = block(h)
        blocks.append(h.to("cpu", torch.float32))
    recogniser.train(training)
    return blocks


def _distance(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return the distance at each pixel [N, 1, 64, 64] of features [N, C, H, W], the mean over blocks; float64."""
    maps = []
    for a, b in zip(left, right, strict=True):
        difference = functional.normalize(a, eps=1e-6) - functional.normalize(b, eps=1e-6)
        small = difference.square().sum(1, keepdim=True)
        maps.append(functional.interpolate(small, size=(CANVAS, CANVAS), mode="bilinear", align_corners=False))
    return torch.stack(maps).double().mean(0)


def _mean(values: Tensor, region: Tensor) -> Tensor:
    """Return the mean of values [N, 1, H, W] over a region of 0 and 1; NaN where the region is empty."""
    return (values * region).sum((1, 2, 3)) / region.sum((1, 2, 3))


def _overlap(results: Tensor, truth: Tensor, given: Tensor, region: Tensor) -> Tensor:
    """Return intersection over union of what results and truths change; NaN where all is asked to change."""
    edited, wanted = ((p.int() - given.int()).abs().amax(1) > THRESHOLD for p in (results, truth))
    both, either = (edited & wanted).sum((1, 2)).double(), (edited | wanted).sum((1, 2)).double()
    return torch.where(region.all(3).all(2).all(1), torch.nan, both / either)


def _seen(cases: Sequence[Case], owner: Tensor, sightings: Sequence[Sighting]) -> dict[str, Tensor]:
    """Return what depends on the recogniser's reading: "right" and "layout", each [N]."""
    right, layout = [], []
    for number, sight in zip(owner.tolist(), sightings, strict=True):
        case = cases[number]
        right.append(float(TASKS[case.task].right(case, sight)))
        target = case.target
        layout.append(float(sight.layout == reading_order(target.description).layout) if target else np.nan)
    return {"right": torch.tensor(right, dtype=torch.float64), "layout": torch.tensor(layout, dtype=torch.float64)}


def _diversity(blocks: Sequence[Tensor]) -> FloatArray:
    """Return the mean distance between results of two seeds, [cases, 1], of features [cases, seeds, C, H, W]."""
    cases, seeds = blocks[0].shape[:2]
    pairs = list(combinations(range(seeds), 2))
    if not pairs:
        return np.full((cases, 1), np.nan)
    distances = [_distance([b[:, i] for b in blocks], [b[:, j] for b in blocks]).mean((1, 2, 3)) for i, j in pairs]
    mean: FloatArray = torch.stack(distances).mean(0)[:, None].numpy()
    return mean

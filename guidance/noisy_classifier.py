"""A classifier of noisy images as guidance uses it."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from steerdiff.errors import UserError, require
from steerdiff.models.checkpoint import hash_of
from steerdiff.samplers import NoiseSchedule

if TYPE_CHECKING:
    from .model import Model

__all__ = ["Classes", "Classifier", "NoisyClassifier", "class_numbers", "hash_of", "same_noise", "targets_of"]

#: ``classifier(x [B, C, H, W], t [B]) -> logits [B, classes]``
Classifier = Callable[[Tensor, Tensor], Tensor]

#: Classes by number or by name, one or one for each image.
Classes = int | str | Sequence[int] | Sequence[str] | Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisyClassifier:
    """A noisy classifier with what is known of it; called as ``classifier(x, t) -> logits``."""

    network: nn.Module  #: ``network(x, t)``
    num_classes: int  #: number of logits
    image_size: int  #: height and width of its images in pixels
    labels: tuple[str, ...] = ()  #: names of its classes by number; of published classifiers none are known
    schedule: NoiseSchedule | None = None  #: the noise that it learned, where the file says
    name: str = "custom"  #: where the weights come from, for the record
    files: tuple[Path, ...] = ()  #: files of the weights, for the record

    @functools.cached_property
    def weights_hash(self) -> str | None:
        """SHA-256 of the weights' file, for the record."""
        return hash_of(self.files)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits [B, num_classes] in float32 for noisy images [B, 3, H, W] at times ``t`` [B]."""
        weight = next(self.network.parameters())
        logits: Tensor = self.network(x.to(weight.dtype), t)
        return logits.to(torch.float32)


def class_numbers(classifier: Classifier, y: Classes) -> list[int]:
    """Return classes by number, of which some may be given by name; the text of a number is that number.

    Raises:
        UserError: A name that is none of the classifier's, a number outside, or none at all.
    """
    given: list[int | str]
    given = y.reshape(-1).tolist() if isinstance(y, Tensor) else [y] if isinstance(y, int | str) else [*y]
    require(len(given) > 0, "the list of classes is empty; give at least one")
    labels: tuple[str, ...] = getattr(classifier, "labels", ())
    count: int | None = getattr(classifier, "num_classes", None)
    name = getattr(classifier, "name", "the classifier")
    return [_number(one, labels, count, name) for one in given]


def _number(given: int | str, labels: tuple[str, ...], count: int | None, name: str) -> int:
    numbers = f"it has {count} classes, numbered 0 to {count - 1}" if count else "its classes are numbered from 0"
    if isinstance(given, str) and given in labels:
        return labels.index(given)
    if isinstance(given, str) and not given.isdecimal():
        require(bool(labels), f"{given!r} names no class of {name}, whose classes have no names; {numbers}")
        near = difflib.get_close_matches(given.lower(), labels, n=1, cutoff=0.0)[0]
        raise UserError(f"{given!r} is no class of {name}; the nearest is {near!r}, of {', '.join(labels)}")
    number = int(given)
    inside = number >= 0 and (count is None or number < count)
    nearest = 0 if number < 0 or not count else count - 1
    called = f" ({labels[nearest]})" if labels else ""
    require(inside, f"{number} is no class of {name}; the nearest is {nearest}{called}: {numbers}")
    return number


def targets_of(classifier: Classifier, y: Classes | None, model: Model) -> Tensor:
    """Return the class numbers [B] that a classifier pulls images of ``model`` towards.

    Raises:
        UserError: There are none or unknown ones, or the classifier is known to see images of another size or another
            noise than the model's.
    """
    if y is None:
        raise UserError("a classifier pulls towards a class; give y")
    if isinstance(classifier, NoisyClassifier):
        side = classifier.image_size
        seen = model.factor == 1 and model.size == (side, side)
        drawn = f"{model.size[0]} x {model.size[1]}" if model.factor == 1 else "latents of them"
        require(seen, f"the classifier sees images of {side} x {side} pixels; {model.name} draws {drawn}")
        require(
            classifier.schedule is None or same_noise(classifier.schedule, model.schedule),
            f"{classifier.name} learned other noise levels than those of {model.name}; train one with its schedule",
        )
    return torch.tensor(class_numbers(classifier, y), device=model.device)


def same_noise(a: NoiseSchedule, b: NoiseSchedule) -> bool:
    """Say whether two schedules have the same levels."""
    return a.T == b.T and bool(np.allclose(a.alpha_bars, b.alpha_bars, rtol=1e-6, atol=1e-9))

"""What the methods share that tune a model on a few given images: the images as samples, the loss, and the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from steerdiff.errors import warn
from steerdiff.guidance import Model
from steerdiff.guidance.classifier_free import Condition
from steerdiff.guidance.prompts import Prompt
from steerdiff.models.delta import Delta
from steerdiff.samplers.prediction import Parameterization
from steerdiff.train.data import Labels
from steerdiff.train.finetune import recomputed
from steerdiff.train.losses import Batch
from steerdiff.train.noising import Noising
from steerdiff.train.randomness import SampleRandom, mix

from .finetuned import digest, given_delta, identity

__all__ = ["DenoisingLoss", "TunedImages", "alike", "gather", "own_delta", "rows_of", "separate", "told_key"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TunedImages:
    """Given states as training samples, taken in their order, round and round."""

    states: Tensor  #: what ``model.encode`` gave, [N, C, h, w]

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Labels]:
        """Return samples number ``indices``: their states, and their places among the N."""
        places = [i % len(self.states) for i in indices]
        return self.states[places], torch.tensor(places)


class DenoisingLoss:
    """The loss that a network was trained with, of given images: it is asked for what the noise left of each.

    ``mean |output - target|^2`` over all elements of a sample, at a time drawn evenly from all trained ones; the target
    is eps, x0, v or the score, as the network predicts. A learned variance is left as it is. Time and noise of a sample
    are functions of its number alone, so that four parts of one sample are one part of four.

    Args:
        model: Its network is tuned, or is frozen and passes gradients to the condition. Weights should be float32: in
            half precision small steps vanish.
        conditions: One row for all images, or one for each; or what returns the rows of places [B], for conditions that
            are tuned in another way than as their own tensors.
        weights: Of the images, [N]; None weighs each by 1. The loss is the mean over samples of weight times error.
        stream: Name of the times and noise; losses of other names draw others for samples of the same numbers.
        checkpointing: Keep no activations but compute them again.
    """

    def __init__(
        self,
        model: Model,
        conditions: Condition | Callable[[Tensor], Condition],
        *,
        weights: Tensor | None = None,
        stream: str = "",
        checkpointing: bool = False,
    ) -> None:
        self.model, self.conditions, self.weights, self.stream = model, conditions, weights, stream
        self.noising = Noising(model.schedule)
        self._run = recomputed(self._output, enabled=checkpointing)

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of samples whose labels are places, and the mean error to report."""
        places = cast(Tensor, batch.labels)  # as TunedImages gives them
        squared = self.each(batch.images, places, batch.random)
        weighted = squared if self.weights is None else self.weights.to(squared)[places] * squared
        return weighted.mean(), {"mse": squared.mean().detach()}

    def each(self, x0: Tensor, places: Tensor, random: SampleRandom) -> Tensor:
        """Return the error of each sample [B], float32: images ``x0`` [B, C, h, w] at ``places`` [B]."""
        if self.stream:
            random = SampleRandom(int(mix(random.seed, self.stream, [0])[0]), random.indices)
        x0 = x0.float()
        t = self.noising.times(random)
        eps = random.normal("noise", x0.shape[1:]).to(x0.device, non_blocking=True)
        signal, noise = self.noising.roots(t, x0.device)
        condition = self.conditions(places) if callable(self.conditions) else rows_of(self.conditions, places)
        scaled = t.to(x0.device, non_blocking=True).float() * self.model.time_scale
        output = self._run(signal * x0 + noise * eps, scaled, condition)
        target = _target(self.model.parameterization, x0, eps, signal, noise)
        return (output[:, : x0.shape[1]].float() - target).square().flatten(1).mean(1)

    def _output(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        dtype = self.model.dtype
        given = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in condition.arguments().items()
        }
        return self.model.network(x.to(dtype), t, **given)


def _target(kind: Parameterization, x0: Tensor, eps: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """Return what a network predicts of ``signal * x0 + noise * eps``."""
    if kind == "v":
        return signal * eps - noise * x0
    if kind == "score":
        return -eps / noise
    return eps if kind == "eps" else x0


def rows_of(condition: Condition, places: Tensor) -> Condition:
    """Return the rows at ``places`` [B], with gradients; a single row stands for all places."""
    return condition[places].expand(len(places))


def separate(prompt: Prompt, rows: int) -> list[str | Condition | None]:
    """Return what each of so many images is told; the model has checked that the number fits."""
    if isinstance(prompt, Condition):
        return [prompt if prompt.rows == 1 else prompt[k : k + 1] for k in range(rows)]
    given: list[str | Condition | None] = [prompt] if prompt is None or isinstance(prompt, str) else list(prompt)
    return given * rows if len(given) == 1 else given


def told_key(told: str | Condition | None) -> str:
    """Return what tells one prompt from another in a cache: the text itself, or a hash of what it became."""
    if isinstance(told, Condition):
        return digest(*told.arguments().values())
    return "" if told is None else told


def alike(x: Tensor, told: Sequence[str | Condition | None]) -> list[list[int]]:
    """Return the places of equal states [B, C, h, w] that are told the same: tuned on one, tuned on all."""
    places: dict[tuple[str, str], list[int]] = {}
    for k, one in enumerate(told):
        places.setdefault((digest(x[k]), told_key(one)), []).append(k)
    return list(places.values())


def gather(parts: Sequence[Tensor], places: Sequence[Sequence[int]]) -> Tensor:
    """Return the rows of all parts in the order of their places."""
    order = [place for some in places for place in some]
    return torch.cat(list(parts))[torch.tensor(order).argsort()]


def own_delta(source: Any, method: str, model: Model, x: Tensor) -> Delta:
    """Return the delta of a file or of a shipped name, with a warning if none of the states is what it was tuned on.

    Raises:
        UserError: There is no such file, or it is no delta of ``method`` and of the model.
    """
    found = given_delta(source, method, identity(model))
    if all(digest(one[None]) != found.settings.get("image") for one in x):
        warn(f"{source} was tuned on another image than those given")
    return found

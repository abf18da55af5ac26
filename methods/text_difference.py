"""Where two texts disagree about an image: the difference of the noises that a network predicts for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from steerdiff.errors import require, warn
from steerdiff.guidance import Condition, Model
from steerdiff.guidance.prompts import Prompt, TextEncoder, listed
from steerdiff.samplers import Level

__all__ = ["TextPair", "cells_above", "check_found", "noise_difference"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TextPair:
    """What an image should show, and what it is compared with, for each of B images."""

    query: Condition  #: B rows
    reference: Condition  #: B rows
    differ: Tensor  #: [B, 1, 1, 1], 1 where the two say something else, else 0

    @staticmethod
    def of(model: Model, prompt: Prompt, target: Prompt, images: int) -> TextPair:
        """Read the two texts of an edit: ``target`` against ``prompt``, and one alone against the empty text.

        Texts are compared by their tokens, other conditions by their numbers.

        Raises:
            UserError: Texts that the model cannot take, or neither one nor one for each image.
        """
        query, reference = (prompt, None) if target is None else (target, prompt)
        wanted = model.condition(query).expand(images)
        if reference is not None or not isinstance(query, Condition):
            compared = model.condition(reference).expand(images)
        else:  # of labels, the null class
            compared = model.branches(query)[1].expand(images)
        if model.text is None or isinstance(query, Condition) or isinstance(reference, Condition):
            differ = _rows_differ(wanted, compared, images)
        else:
            differ = _tokens_differ(model.text, listed(query), listed(reference)).expand(images)
        return TextPair(query=wanted, reference=compared, differ=differ.to(model.device).reshape(-1, 1, 1, 1))


def _tokens_differ(text: TextEncoder, first: list[str], second: list[str]) -> Tensor:
    """Whether the tokens of texts differ, [1] or [B]; the same text is the same, however its states are rounded."""
    ids, mask = text.tokenize([*first, *second])
    ids = ids if mask is None else torch.where(mask, ids, -1)
    return (ids[: len(first)] != ids[len(first) :]).any(1)


def _rows_differ(first: Condition, second: Condition, rows: int) -> Tensor:
    a, b = first.arguments(), second.arguments()
    differ = torch.zeros(rows, dtype=torch.bool)
    for name in a.keys() | b.keys():
        if name not in a or name not in b or a[name].shape != b[name].shape:
            return torch.ones(rows, dtype=torch.bool)
        differ = differ.to(a[name].device) | (a[name] != b[name]).reshape(rows, -1).any(1)
    return differ


def noise_difference(
    model: Model, x: Tensor, texts: TextPair, level: Level, draw: Callable[[], Tensor], draws: int
) -> Tensor:
    """Return the mean over draws and channels of ``|eps(x_t, query) - eps(x_t, reference)|``, [B, 1, h, w].

    Both texts see the same noise, in one batch. Guidance would only scale the difference, for both share its other
    branch.

    Args:
        model: Any model.
        x: What ``model.encode`` gave, [B, C, h, w].
        texts: The two texts.
        level: How far ``x`` is noised.
        draw: Gives the next standard normal noise of the shape of ``x``.
        draws: How many noises.

    Raises:
        UserError: The network's output is not finite.
    """
    denoise = model.denoiser(texts.query.join(texts.reference), clip="none")
    total = torch.zeros_like(x[:, :1])
    for _ in range(draws):
        noised = model.schedule.q_sample(x, level, draw())
        query, reference = denoise(torch.cat([noised, noised]), level).eps.chunk(2)
        total = total + (query - reference).abs().mean(1, keepdim=True)
    finite = bool(total.isfinite().all())
    require(finite, f"the network's prediction at t = {level.t:g} is not finite; no mask can be found from it")
    return total / draws * texts.differ


def cells_above(difference: Tensor, clamp: float | None, threshold: float) -> Tensor:
    """Return 1 where a difference [B, 1, h, w], clamped and divided by its largest value, is above the threshold.

    ``min(D, m) / m > threshold`` with ``m = clamp * mean(D)`` of each image, or ``max(D)`` without a clamp; as a
    threshold is below 1, ``D > threshold * m``. A difference of 0 everywhere, which is 0 / 0, selects nothing.
    """
    image = (1, 2, 3)
    largest = difference.amax(image, keepdim=True) if clamp is None else clamp * difference.mean(image, keepdim=True)
    return (difference > threshold * largest).to(torch.float32)


def check_found(free: Tensor, *, at_least_one: bool) -> None:
    """Warn of masks [B, 1, h, w] that are empty or everything.

    Raises:
        UserError: All of them are, where ``at_least_one`` must not be.
    """
    shares = free.flatten(1).mean(1).tolist()
    bad = {number: "everything" if share else "empty" for number, share in enumerate(shares) if share in (0.0, 1.0)}
    if not bad:
        return
    found = ", ".join(f"{what} for image {number}" for number, what in bad.items())
    advice = "change clamp or threshold (lower ones select more), or give a mask"
    require(len(bad) < len(shares) or not at_least_one, f"the mask found is {found}; {advice}")
    warn(f"the mask found is {found}; {advice}")

"""Teach a text encoder where captions put things, before its network learns to draw them there.

Whether "a left of b" puts a thing left is an exclusive-or of its place in the sentence and the relation: neither says
anything alone, so a denoising loss, which hears of places faintly and at high noise only, stays on a plateau for long.
From captions alone it is learned in seconds. The encoder is taught to give its own states as they were, but for two
directions in which the words of a thing (its style and its name) carry the side that it is on.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import require
from steerdiff.models import WordEncoder

from .scenes import EmojiScenes, Scene

__all__ = ["sides", "teach_places"]

#: Length of the place within a state, whose own length is about the square root of its width.
REACH = 4.0
_SIDES = {"left of": (-1.0, 0.0), "right of": (1.0, 0.0), "above": (0.0, -1.0), "below": (0.0, 1.0)}


def sides(encoder: WordEncoder, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Return where the things that each token names are.

    Args:
        encoder: Whose tokens.
        scenes: Scenes, B of them.

    Returns:
        Sides [B, L, 2], x and y in -1, 0, 1 (0 for an object alone), and a mask [B, L], True at the styles and objects.
    """
    places = torch.zeros(len(scenes), encoder.config.length, 2)
    named = torch.zeros(len(scenes), encoder.config.length, dtype=torch.bool)
    for row, scene in enumerate(scenes):
        words = encoder.words(scene.caption)
        for item, sign in zip(scene.items, (1.0, -1.0), strict=False):
            token = words.index(item.object) + 1  # after the mark at the beginning
            named[row, token - 1 : token + 1] = True
            if scene.relation is not None:
                places[row, token - 1 : token + 1] = sign * torch.tensor(_SIDES[scene.relation])
    return places, named


def teach_places(
    encoder: WordEncoder,
    scenes: EmojiScenes,
    *,
    steps: int,
    seed: int = 0,
    batch: int = 64,
    learning_rate: float = 2e-3,
) -> float:
    """Train ``encoder`` in place, on captions alone.

    Args:
        encoder: In float32; the network that reads it may have been trained already.
        scenes: Where captions come from; scene number ``step * batch + row`` is used.
        steps: Optimiser steps of AdamW, whose rate falls linearly to 0.
        seed: Decides the two directions.
        batch: Captions of a step; one in eight is replaced by the empty one, which keeps its states.
        learning_rate: At the start.

    Returns:
        The share of words in two-object captions whose states name the right side, over the last quarter of the steps.

    Raises:
        UserError: ``steps`` below 1.
    """
    require(steps >= 1, f"steps is {steps}; teach places for at least 1 step")
    old = copy.deepcopy(encoder).requires_grad_(False)
    device, width = encoder.position.device, encoder.config.width
    start = torch.randn(width, 2, generator=torch.Generator().manual_seed(seed))
    directions = torch.linalg.qr(start).Q.to(device)  # [width, 2]
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    right = total = 0
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, (step + 1) / 50) * (1 - step / steps)
        drawn = scenes.scenes(range(step * batch, (step + 1) * batch))
        places, named = (part.to(device) for part in sides(encoder, drawn))
        captions = [scene.caption for scene in drawn]
        captions[::8], named[::8] = [""] * len(captions[::8]), False
        ids, mask = (part.to(device) for part in encoder.tokenize(captions))
        states, target = encoder(ids, mask), old(ids, mask)
        overwritten = target + (REACH * places - target @ directions) @ directions.mT
        target = torch.where(named[..., None], overwritten, target)
        loss = functional.mse_loss(states[mask], target[mask])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step >= steps - max(1, steps // 4):
            placed = named & (places != 0).any(-1)
            read = ((states.detach() @ directions) * places).sum(-1)[placed]
            right, total = right + int((read > REACH / 2).sum()), total + len(read)
    return right / total if total else 1.0

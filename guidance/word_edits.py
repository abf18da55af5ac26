"""Prompt-to-Prompt's attention edits of a whole run: from two prompts to one `AttentionEdit` for each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from steerdiff.errors import UserError, require
from steerdiff.models.alignment import (
    Span,
    Window,
    WordTokens,
    equalizer,
    find,
    refinement_mapper,
    replacement_mapper,
    window_ends,
    word_gates,
)
from steerdiff.models.control import AttentionEdit

__all__ = ["Pairing", "WordEdits", "WordPairing", "word_rows"]

#: How the words of two prompts are paired: one for one, by alignment, place for place, or whichever of the first two
#: fits the number of words.
Pairing = Literal["auto", "replace", "refine", "reweight"]


@dataclass(frozen=True, kw_only=True, eq=False)
class WordEdits:
    """The edits of pairs of prompts over the steps of a run; row k of the sources leads row k of the targets.

    Source: Hertz et al. 2022, section 3.2 and Algorithm 1; windows by word and the self-attention's are the official
    code's.
    """

    source: tuple[int, ...]  #: rows of the batch that lead
    target: tuple[int, ...]  #: rows that follow, one for each
    gates: Tensor  #: [steps, E, L] in {0, 1}: where cross edits count
    mapper: Tensor | None = None  #: [E, L, L]; None keeps each token
    blend: Tensor | None = None  #: [E, L]; None is all 1
    equalizer: Tensor | None = None  #: [E, L]; None is all 1
    self_steps: range = range(0)  #: steps in which self-attention follows the source
    self_cells: int = 0  #: on grids of at most so many cells
    cross_cells: int | None = None  #: cross-attention is edited on grids of at most so many cells; None is all
    _active: tuple[bool, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Note the steps that have a cross edit, so that no step has to ask the device."""
        object.__setattr__(self, "_active", tuple(self.gates.flatten(1).any(1).tolist()))

    def at(self, index: int) -> AttentionEdit | None:
        """Return the edit of step ``index``; None where nothing is edited."""
        cross, copies = self._active[index], index in self.self_steps and self.self_cells > 0
        if not cross and not copies:
            return None
        return AttentionEdit(
            source=self.source,
            target=self.target,
            mapper=self.mapper,
            blend=self.blend,
            equalizer=self.equalizer,
            gate=self.gates[index],
            cross=cross,
            cross_tokens=self.cross_cells if cross else None,
            self_tokens=self.self_cells if copies else 0,
        )


@dataclass(frozen=True, kw_only=True)
class WordPairing:
    """How a target prompt's attention follows its source prompt's, before there are prompts."""

    pairing: Pairing = "auto"  #: how words are paired
    windows: Window | Mapping[str, Window] = 1.0  #: in which part of the steps words follow; see `word_gates`
    factors: Mapping[str, float] = field(default_factory=dict)  #: of the attention to words of each target
    self_window: Window = 0.0  #: in which part of the steps self-attention follows the source's
    self_cells: int = 0  #: see `WordEdits`
    cross_cells: int | None = None  #: see `WordEdits`
    official: bool = False  #: the official code's mappers and tables; see `steerdiff.models.alignment`

    def __post_init__(self) -> None:
        """Check the pairing."""
        given, known = self.pairing, get_args(Pairing)
        require(given in known, f"pairing is {given!r}; known are {', '.join(known)}")

    def edits(
        self,
        text: WordTokens,
        prompts: Sequence[str],
        targets: Sequence[str],
        *,
        steps: int,
        length: int,
        seen: Tensor | None = None,
    ) -> WordEdits:
        """Return the edits of ``targets`` by ``prompts``; all sources come before all targets in the batch.

        Args:
            text: The text encoder, which knows the words' tokens.
            prompts: Source prompts.
            targets: As many target prompts.
            steps: Of the run.
            length: Tokens of a row.
            seen: [E, L], True where the network may look at a token of the target; None is everywhere.

        Raises:
            UserError: Words that cannot be paired, or that are not in a prompt, or a window outside [0, 1].
        """
        spans = [text.spans(target) for target in targets]
        maps = [self._mapper(text, *pair, length) for pair in zip(prompts, targets, strict=True)]
        mapper, blend = (torch.stack(parts) for parts in zip(*maps, strict=True))
        gates = [word_gates(self.windows, one, steps, length, official=self.official)[:steps] for one in spans]
        factors = torch.stack([equalizer(self.factors, one, length) for one in spans])
        table, device = torch.stack(gates, 1), None if seen is None else seen.device
        return WordEdits(
            source=tuple(range(len(spans))),
            target=tuple(range(len(spans), 2 * len(spans))),
            gates=table if seen is None else table.to(device) * seen.to(table.dtype),
            mapper=None if torch.equal(mapper, torch.eye(length).expand_as(mapper)) else mapper.to(device),
            blend=None if bool((blend == 1).all()) else blend.to(device),
            equalizer=None if bool((factors == 1).all()) else factors.to(device),
            self_steps=_steps(self.self_window, steps),
            self_cells=self.self_cells,
            cross_cells=self.cross_cells,
        )

    def _mapper(self, text: WordTokens, prompt: str, target: str, length: int) -> tuple[Tensor, Tensor]:
        """Return the mapper [L, L] and the blend [L] of one pair."""
        if self.pairing == "reweight":
            return torch.eye(length), torch.ones(length)
        spans = text.spans(prompt), text.spans(target)
        if self.pairing == "replace" or (self.pairing == "auto" and len(spans[0]) == len(spans[1])):
            return replacement_mapper(*spans, length, official_tail=self.official), torch.ones(length)
        ids = text.token_ids(prompt), text.token_ids(target)
        return refinement_mapper(*ids, length, official_padding=self.official)


def word_rows(text: WordTokens, prompts: Sequence[str], words: Sequence[str], length: int) -> Tensor:
    """Return 1 at the tokens of ``words`` in each prompt, [B, L]; a word may be in some of the prompts only.

    Raises:
        UserError: A word is in none of the prompts.
    """
    rows = torch.zeros(len(prompts), length)
    spans = [text.spans(prompt) for prompt in prompts]
    for word in words:
        found = [_find_or_none(row, word) for row in spans]
        if not any(found):
            find(spans[-1], word)  # names the nearest
        for row, places in zip(rows, found, strict=True):
            row[list(places)] = 1
    return rows


def _find_or_none(spans: Sequence[Span], word: str) -> tuple[int, ...]:
    try:
        return find(spans, word)
    except UserError:
        return ()


def _steps(window: Window, steps: int) -> range:
    """Return the steps of a window of the self-attention."""
    a, b = window_ends(window, "self_replace_steps")
    return range(int(a * steps + 1e-9), int(b * steps + 1e-9))

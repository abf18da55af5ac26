"""What a caller may read from a UNet or change in it during one call: attention maps, attention edits and h-space.

All of it is data passed along with the call. A network that gets no ``Control`` runs the plain path and pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import require

__all__ = ["AttentionEdit", "Control", "HShift", "Site", "Taps"]

Kind = Literal["self", "cross"]
#: ``shift(h [B, C, h, w], emb [B, D], t [B])``, broadcast over the bottleneck h; emb is the UNet's embedding of t
HShift = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Site:
    """One attention of a UNet: what it attends to and where it stands."""

    name: str  #: module path, e.g. "input_blocks.1.1.transformer_blocks.0.attn2"
    kind: Kind  #: "self" over the image's own cells, "cross" over the text
    place: Literal["down", "mid", "up"]  #: part of the UNet
    factor: int  #: downsampling factor of the grid it runs on


@dataclass(frozen=True, kw_only=True)
class AttentionEdit:
    """Prompt-to-Prompt as data: for pairs of batch rows, how a target row's attention follows its source row.

    Cross-attention of target row e becomes, with P the probabilities after the softmax,
    ``P' = gate * equalizer * (blend * (P_source @ mapper) + (1 - blend) * P_target) + (1 - gate) * P_target``;
    self-attention uses the source's queries and keys with the target's own values, so no map over cells is formed.

    Source: Hertz et al. 2022, section 3.2, eq. for replacement, refinement and re-weighting.
    """

    source: tuple[int, ...]  #: rows of the batch that lead, one for each edited row
    target: tuple[int, ...]  #: rows of the batch that follow
    mapper: Tensor | None = None  #: [E, L, L], column n says which source words word n looks at; None keeps each word
    blend: Tensor | None = None  #: [E, L] in [0, 1], 1 takes the source's mapped map for that word; None is all 1
    equalizer: Tensor | None = None  #: [E, L], factor of each target word; None is all 1
    gate: Tensor | None = None  #: [E, L] in [0, 1], how far cross edits count at this step; None is all 1
    cross: bool = True  #: whether cross-attention is edited
    self_tokens: int = 0  #: self-attention is injected on grids of at most this many cells; 0 for none

    def __post_init__(self) -> None:
        require(
            len(self.source) == len(self.target) > 0,
            f"an attention edit pairs {len(self.source)} source rows with {len(self.target)} target rows; give as many",
        )

    def touches(self, site: Site, cells: int) -> bool:
        """Say whether this edit changes the attention at ``site``, whose grid has ``cells`` cells."""
        return self.cross if site.kind == "cross" else cells <= self.self_tokens

    def edited(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the edited cross-attention maps [E, heads, N, L] from those of the source and the target rows."""
        mapped = source if self.mapper is None else source @ self.mapper.to(source)[:, None]
        if self.blend is not None:
            blend = self.blend.to(source)[:, None, None]
            mapped = blend * mapped + (1 - blend) * target
        if self.equalizer is not None:
            mapped = mapped * self.equalizer.to(source)[:, None, None]
        if self.gate is None:
            return mapped
        gate = self.gate.to(source)[:, None, None]
        return gate * mapped + (1 - gate) * target


@dataclass(kw_only=True)
class Taps:
    """A basket for what one call of the network shows: fill in what to keep, read it afterwards."""

    h: bool = False  #: keep the bottleneck activation
    kinds: tuple[Kind, ...] = ()  #: kinds of attention whose maps are kept
    max_cells: int = 1024  #: maps over larger grids are not kept, they would not fit in memory
    bottleneck: Tensor | None = None  #: [B, C, h, w] after the call: the output of the middle block (h-space)
    maps: dict[Site, Tensor] = field(default_factory=dict)  #: [B, heads, N, L] after the call, for each site kept

    def wants(self, site: Site, cells: int) -> bool:
        """Say whether the maps of ``site`` are kept."""
        return site.kind in self.kinds and cells <= self.max_cells


@dataclass(frozen=True, kw_only=True)
class Control:
    """Everything a call may read or change inside the network. ``None`` for each part that is not used."""

    edit: AttentionEdit | None = None  #: attention edits
    taps: Taps | None = None  #: what to keep
    #: added to the bottleneck, broadcast over [B, C, h, w], or what computes it from there (Kwon et al. 2023, eq. 5)
    h_shift: Tensor | HShift | None = None
    #: also go up without the shift: the output's channels are first those without it, then those with it
    keeps_plain: bool = False
    #: activations inside a block are not kept for the gradient but computed again: less memory, more time
    checkpoints: bool = False

    def __post_init__(self) -> None:
        require(
            self.h_shift is not None or not self.keeps_plain,
            "keeps_plain goes up with and without h_shift, and none is given; give h_shift too",
        )

    def shifted(self, h: Tensor, emb: Tensor, t: Tensor) -> Tensor:
        """Return the bottleneck ``h`` [B, C, h, w] with its shift; ``emb`` [B, D] and ``t`` [B] are the time's."""
        if self.h_shift is None:
            return h
        shift = self.h_shift if isinstance(self.h_shift, Tensor) else self.h_shift(h, emb, t)
        return h + shift.to(h)

    def check(self, sites: Iterable[tuple[Site, int]]) -> None:
        """Raise ``UserError`` if an edit or a tap concerns none of the network's attentions: it would do nothing.

        Args:
            sites: Each attention of the network with the number of cells of its grid.
        """
        sites = list(sites)
        if self.edit is not None:
            require(
                any(self.edit.touches(site, cells) for site, cells in sites),
                f"the attention edit touches none of this network's {len(sites)} attentions; "
                "set cross=True on a network with text, or a larger self_tokens",
            )
        if self.taps is not None and self.taps.kinds:
            require(
                any(self.taps.wants(site, cells) for site, cells in sites),
                f"no attention of kind {' or '.join(self.taps.kinds)} has at most {self.taps.max_cells} cells here; "
                "ask for another kind or a larger max_cells",
            )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, site: Site) -> Tensor | None:
        """Return the edited or recorded attention [B, heads, N, d], or None where the plain path will do.

        Args:
            q: Queries [B, heads, N, d].
            k: Keys [B, heads, L, d].
            v: Values [B, heads, L, d].
            mask: [B, 1, 1, L], True where a key may be seen, or None.
            site: Which attention this is.
        """
        edit = self.edit if self.edit is not None and self.edit.touches(site, q.shape[2]) else None
        taps = self.taps if self.taps is not None and self.taps.wants(site, q.shape[2]) else None
        if edit is not None and site.kind == "self":
            q, k = _injected(edit, q), _injected(edit, k)
            if taps is None:
                return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        elif edit is None and taps is None:
            return None
        probabilities = _softmax(q, k, mask)
        if edit is not None and site.kind == "cross":
            rows = edit.edited(probabilities[list(edit.source)], probabilities[list(edit.target)])
            probabilities = probabilities.index_copy(0, _index(edit.target, q), rows.to(probabilities))
        if taps is not None:
            taps.maps[site] = probabilities
        return probabilities @ v


def _softmax(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    probabilities: Tensor = scores.softmax(dim=-1).to(q.dtype)
    return probabilities


def _injected(edit: AttentionEdit, rows: Tensor) -> Tensor:
    return rows.index_copy(0, _index(edit.target, rows), rows[list(edit.source)])


def _index(rows: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.tensor(rows, device=like.device)

"""Attention edits as data: what they are, what they do to the maps, and the same on fused attention without maps."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from steerdiff.errors import require

from .kernels import reference
from .kernels.reference import attention_maps, rows_of, with_rows
from .site import Kind, Site

__all__ = ["AttentionEdit", "edited_attention", "fused_edit"]


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionEdit:
    """Prompt-to-Prompt as data: for pairs of batch rows, how a target row's attention follows its source row.

    Cross-attention of target row e becomes, with P the probabilities after the softmax,
    ``P' = gate * equalizer * (blend * (P_source @ mapper) + (1 - blend) * P_target) + (1 - gate) * P_target``;
    nothing is normalised afterwards. Self-attention uses the source's queries and keys with the target's own values,
    so no map over cells is formed. All sources are read as they are without the edit, so one row may lead several and
    a row may lead itself (``equalizer`` then re-weights its own map). Under classifier-free guidance the conditional
    rows come first, and the rows named here are among them.

    A leading 1 of the tensors fits any number of edited rows. They are best made on the network's device, and an edit
    is best made once a step: what each attention needs of it is computed at the first of them.

    Source: Hertz et al. 2022, section 3.2, eq. for replacement, refinement and re-weighting.
    """

    source: tuple[int, ...]  #: rows of the batch that lead, one for each edited row
    target: tuple[int, ...]  #: rows of the batch that follow
    mapper: Tensor | None = None  #: [E, L, L], column n says which source words word n looks at; None keeps each word
    blend: Tensor | None = None  #: [E, L] in [0, 1], 1 takes the source's mapped map for that word; None is all 1
    equalizer: Tensor | None = None  #: [E, L], factor of each target word; None is all 1
    gate: Tensor | None = None  #: [E, L] in [0, 1], how far cross edits count at this step; None is all 1
    cross: bool = True  #: whether cross-attention is edited
    #: cross-attention is edited on grids of at most this many cells; None on all; a tuple has one for each edited row
    cross_tokens: int | tuple[int | None, ...] | None = None
    #: self-attention is injected on grids of at most this many cells; 0 for none; a tuple has one for each edited row
    self_tokens: int | tuple[int, ...] = 0
    _prepared: dict[tuple[torch.device, torch.dtype], tuple[Tensor | None, ...]] = field(
        default_factory=dict, init=False, repr=False
    )
    _parts: dict[tuple[int, ...], AttentionEdit] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        count = len(self.target)
        require(
            len(self.source) == count > 0,
            f"an attention edit pairs {len(self.source)} source rows with {count} target rows; give as many",
        )
        require(
            len(set(self.target)) == count and min(*self.source, *self.target) >= 0,
            f"the attention edit has source rows {self.source} and target rows {self.target}; "
            "count from 0 and edit a row once",
        )
        lengths = set()
        for name, dims in (("mapper", 3), ("blend", 2), ("equalizer", 2), ("gate", 2)):
            given: Tensor | None = getattr(self, name)
            if given is None:
                continue
            fits = given.ndim == dims and given.shape[0] in (1, count) and given.shape[-1] == given.shape[1]
            form = f"[{count}, L, L]" if dims == 3 else f"[{count}, L]"
            require(fits, f"{name} of the attention edit is {list(given.shape)}; it must be {form} or start with 1")
            lengths.add(given.shape[-1])
        require(len(lengths) < 2, f"the attention edit's tensors are for {sorted(lengths)} tokens; make them for one")
        self._check_bounds()

    def _check_bounds(self) -> None:
        """Raise ``UserError`` for bounds of grids that fit no rows or that nothing is done with."""
        for name in ("cross_tokens", "self_tokens"):
            bounds = getattr(self, name)
            fits = not isinstance(bounds, tuple) or len(bounds) == len(self.target)
            require(fits, f"{name} is {bounds} for {len(self.target)} edited rows; give one number, or one for each")
        some = self.cross_tokens if isinstance(self.cross_tokens, tuple) else (self.cross_tokens,)
        require(
            some == (None,) or (self.cross and all(bound is None or bound > 0 for bound in some)),
            f"cross_tokens is {self.cross_tokens} with cross={self.cross}; give a number above 0 and cross=True",
        )

    @property
    def tokens(self) -> int | None:
        """L, the number of tokens that the tensors are for; None where none is given."""
        given = (self.mapper, self.blend, self.equalizer, self.gate)
        return next((tensor.shape[-1] for tensor in given if tensor is not None), None)

    def at(self, site: Site, cells: int) -> AttentionEdit | None:
        """Return what counts of this edit at ``site``, whose grid has ``cells`` cells: all, some rows, or None."""
        if site.kind == "cross" and not self.cross:
            return None
        bounds = self.self_tokens if site.kind == "self" else self.cross_tokens
        each = bounds if isinstance(bounds, tuple) else (bounds,) * len(self.target)
        return self._only(tuple(row for row, bound in enumerate(each) if bound is None or cells <= bound))

    def _only(self, rows: tuple[int, ...]) -> AttentionEdit | None:
        """Return the edit of some of the edited rows, made once; it has no bounds any more."""
        if len(rows) in (0, len(self.target)):
            return self if rows else None
        if rows not in self._parts:
            given = (self.mapper, self.blend, self.equalizer, self.gate)
            parts = [part if part is None or len(part) == 1 else rows_of(part, rows) for part in given]
            self._parts[rows] = AttentionEdit(
                source=tuple(self.source[row] for row in rows),
                target=tuple(self.target[row] for row in rows),
                mapper=parts[0],
                blend=parts[1],
                equalizer=parts[2],
                gate=parts[3],
            )
        return self._parts[rows]

    def check(self, rows: int, tokens: int | None) -> None:
        """Raise ``UserError`` unless the edit fits a call with ``rows`` images and ``tokens`` text states."""
        highest = max(*self.source, *self.target)
        require(
            highest < rows,
            f"the attention edit names row {highest}, and the network sees rows 0 to {rows - 1}; pair those",
        )
        require(
            tokens is None or self.tokens in (None, tokens),
            f"the attention edit is for {self.tokens} tokens, and the text has {tokens}; make its tensors that long",
        )

    @property
    def rows(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The source rows and the target rows."""
        return self.source, self.target

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

    def injected(self, rows: Tensor) -> Tensor:
        """Return queries or keys of self-attention with the source's rows in the place of the target's."""
        return with_rows(rows, self.target, rows_of(rows, self.source))

    def values(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the source's and what the target's map must be multiplied with, for `fused_edit`.

        ``P' V = P_source (A V) + P_target (1 - C) V`` with ``A = mapper * gate * equalizer * blend`` by columns and
        ``C = gate * (1 - equalizer) + gate * equalizer * blend``. ``A V`` is formed as ``a V + (mapper - 1) a V``:
        where the mapper is the identity it is ``a V`` to the bit, even in TF32.

        Args:
            values: Of the target rows, [E, heads, L, d].

        Returns:
            ``A V`` and ``C V``, each [E, heads, L, d].
        """
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        moved, taken, left = self._factors(wide)
        a = wide if taken is None else wide * taken
        c = wide if left is None else wide * left
        if moved is not None:
            a = a + moved @ a
        return a.to(values.dtype), c.to(values.dtype)

    def _factors(self, like: Tensor) -> tuple[Tensor | None, ...]:
        """Return ``mapper - 1`` [E, 1, L, L], ``a`` and ``c`` [E, 1, L, 1] beside ``like``; None where all is 1."""
        key = (like.device, like.dtype)
        if key in self._prepared:
            return self._prepared[key]
        given = (self.mapper, self.blend, self.equalizer, self.gate)
        mapper, blend, equalizer, gate = (None if tensor is None else tensor.to(like) for tensor in given)
        moved = None
        if mapper is not None:
            moved = (mapper - torch.eye(mapper.shape[-1], device=like.device, dtype=like.dtype))[:, None]
        a = c = None
        if blend is not None or equalizer is not None or gate is not None:
            one = torch.ones(1, 1, device=like.device, dtype=like.dtype)
            b, e, g = (one if tensor is None else tensor for tensor in (blend, equalizer, gate))
            a, c = (factor[:, None, :, None] for factor in (g * e * b, g * (1 - e) + g * e * b))
        factors = (moved, a, c)
        if not any(factor is not None and factor.requires_grad for factor in factors):
            self._prepared[key] = factors
        return factors


def edited_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, edit: AttentionEdit, kind: Kind = "cross"
) -> Tensor:
    """Return the edited attention of a batch by the definition, in float64: the reference for every faster path.

    Args:
        q: Queries [B, heads, N, d].
        k: Keys [B, heads, L, d].
        v: Values [B, heads, L, d].
        mask: [B, 1, 1, L], True where a key may be seen, or None.
        edit: What is done to which rows.
        kind: Which of its two parts applies.

    Returns:
        [B, heads, N, d] in float64.
    """
    probabilities = attention_maps(q.double(), k.double(), mask)
    source, target = list(edit.source), list(edit.target)
    rows = probabilities[source]
    probabilities[target] = rows if kind == "self" else edit.edited(rows, probabilities[target])
    return probabilities @ v.double()


def fused_edit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, edit: AttentionEdit) -> Tensor:
    """Return what `edited_attention` does for cross-attention, by fused attention alone: no map is formed.

    An edit is linear in the maps, so it can be done to the values. Every row runs the plain attention, and the edited
    ones get ``attention(q_source, k_source, A v) - attention(q_target, k_target, C v)`` on top. All rows that are not
    edited keep the bits of a plain call, and so does an edited row that equals its source, unless it is re-weighted.
    """
    values = edit.values(rows_of(v, edit.target))
    return reference.edited(q, k, v, mask, edit.rows, values)

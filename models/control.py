"""What a caller may read from a UNet or change in it during one call: attention maps, attention edits and h-space.

All of it is data passed along with the call. A network that gets no ``Control`` runs the plain path and pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from steerdiff.errors import require

from . import kernels
from .attention_edit import AttentionEdit, fused_edit
from .kernels.reference import rows_of
from .site import Site
from .taps import Taps

__all__ = ["AttentionEdit", "Control", "HShift", "Site", "Taps"]

#: ``shift(h [B, C, h, w], emb [B, D], t [B])``, broadcast over the bottleneck h; emb is the UNet's embedding of t
HShift = Callable[[Tensor, Tensor, Tensor], Tensor]


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
        require(
            self.taps is None or self.taps.weights is None or not (self.keeps_plain or self.checkpoints),
            "keeps_plain and checkpoints run attentions twice, which word maps would count twice; leave one out",
        )

    def shifted(self, h: Tensor, emb: Tensor, t: Tensor) -> Tensor:
        """Return the bottleneck ``h`` [B, C, h, w] with its shift; ``emb`` [B, D] and ``t`` [B] are the time's."""
        if self.h_shift is None:
            return h
        shift = self.h_shift if isinstance(self.h_shift, Tensor) else self.h_shift(h, emb, t)
        return h + shift.to(h)

    def begin(self, sites: Iterable[tuple[Site, int]], rows: int, tokens: int | None) -> None:
        """Check that a call has what the control names, and count it.

        Args:
            sites: Each attention of the network with the number of cells of its grid.
            rows: Images of the batch.
            tokens: Text states of each; None without text.

        Raises:
            UserError: See `check`; or an edit or word weights for other rows or another number of tokens.
        """
        self.check(sites)
        if self.edit is not None:
            self.edit.check(rows, tokens)
        if self.taps is not None:
            self.taps.check(rows, tokens)
            self.taps.begin()

    def check(self, sites: Iterable[tuple[Site, int]]) -> None:
        """Raise ``UserError`` if an edit or a tap concerns none of the network's attentions: it would do nothing.

        Args:
            sites: Each attention of the network with the number of cells of its grid.
        """
        sites, edit, taps = list(sites), self.edit, self.taps
        if edit is not None:
            require(
                any(edit.at(site, cells) is not None for site, cells in sites),
                f"the attention edit touches none of this network's {len(sites)} attentions; "
                "set cross=True on a network with text, or a larger cross_tokens or self_tokens",
            )
        if taps is not None and taps.kinds:
            require(
                any(taps.wants(site, cells) for site, cells in sites),
                f"no attention of kind {' or '.join(taps.kinds)} has at most {taps.max_cells} cells here; "
                "ask for another kind or a larger max_cells",
            )
        if taps is not None and taps.weights is not None:
            grids = sorted({cells for site, cells in sites if site.kind == "cross"})
            require(
                any(taps.wants_words(site, cells) for site, cells in sites),
                f"word maps of {'any grid' if taps.cells is None else f'{taps.cells[0]} x {taps.cells[1]} cells'} are "
                f"kept of no attention here; cross-attention has grids of {grids} cells",
            )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, site: Site) -> Tensor | None:
        """Return the edited attention [B, heads, N, d], or None where the plain path will do; keep what is tapped.

        Args:
            q: Queries [B, heads, N, d].
            k: Keys [B, heads, L, d].
            v: Values [B, heads, L, d].
            mask: [B, 1, 1, L], True where a key may be seen, or None.
            site: Which attention this is.
        """
        edit = None if self.edit is None else self.edit.at(site, q.shape[2])
        if kernels.fused(q):
            return self._attend_fused(q, k, v, mask, site, edit)
        out = None
        if edit is not None and site.kind == "self":
            q, k, edit = edit.injected(q), edit.injected(k), None
            out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        elif edit is not None:
            out = fused_edit(q, k, v, mask, edit)
        if self.taps is not None:
            self.taps.record(q, k, mask, site, edit)
        return out

    def _attend_fused(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, site: Site, edit: AttentionEdit | None
    ) -> Tensor | None:
        """Do what `attend` does on the fused kernels, which also make the word maps of cross-attention.

        The plain path stays with PyTorch even where its words are kept: looking changes no bit.
        """
        taps = self.taps
        if edit is not None and site.kind == "self":
            if taps is not None and taps.wants(site, q.shape[2]):
                taps.record(edit.injected(q), edit.injected(k), mask, site, None)
            return kernels.led_attention(q, k, v, mask, edit.rows)
        words = None
        if taps is not None and taps.wants(site, q.shape[2]):
            taps.record(q, k, mask, site, edit)  # forms the maps, so that the words come of them
        elif taps is not None and taps.wants_words(site, q.shape[2]):
            words = taps.words(edit, q.device)
        if edit is None and words is None:
            return None
        rows = ((), ()) if edit is None else edit.rows
        values = None if edit is None else edit.values(rows_of(v, edit.target))
        out, sums = kernels.edited_attention(q, k, v, mask, rows, values, words)
        if taps is not None and words is not None:
            taps.add(site, sums)
        return None if edit is None else out

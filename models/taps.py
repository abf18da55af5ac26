"""What a call of a network shows: its attention maps, whole or summed up by words, and its bottleneck."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steerdiff.errors import require

from .attention_edit import AttentionEdit
from .kernels.reference import attention_maps, rows_of, with_rows
from .site import Kind, Site

__all__ = ["Taps"]


@dataclass(kw_only=True)
class Taps:
    """A basket for what calls of the network show: fill in what to keep, read it afterwards.

    Whole maps are those of the last call. Word maps are sums over all calls since the last `clear` and take
    ``B * K * N`` numbers a site, however many heads and tokens there are. Edited rows show their edited maps, as the
    official code of Prompt-to-Prompt stores them. Looking never changes what the network gives.
    """

    h: bool = False  #: keep the bottleneck activation
    kinds: tuple[Kind, ...] = ()  #: kinds of attention whose maps are kept
    max_cells: int = 1024  #: maps over larger grids are not kept, they would not fit in memory
    bottleneck: Tensor | None = None  #: [B, C, h, w] after the call: the output of the middle block (h-space)
    maps: dict[Site, Tensor] = field(default_factory=dict)  #: [B, heads, N, L] after the call, for each site kept
    #: [B, K, L]: for each of the first B rows of the batch K sums over tokens, kept of cross-attention; None keeps none
    weights: Tensor | None = None
    cells: tuple[int, int] | None = None  #: height and width of the grid whose word maps are kept; None keeps all
    sums: dict[Site, Tensor] = field(default_factory=dict)  #: [B, K, N] float32, sum over calls of the mean over heads
    calls: int = 0  #: how many calls are in ``sums``
    _made: list[tuple[AttentionEdit | None, torch.device, tuple[Tensor, Tensor]]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )  #: what `words` made in this call, and of what; a dict by edit would not compile

    def __post_init__(self) -> None:
        require(
            self.weights is None or self.weights.ndim == 3,
            f"weights of the taps are {list(self.weights.shape) if self.weights is not None else None}; "
            "give [B, K, L]: for each image K sums over the L tokens",
        )
        require(
            self.cells is None or self.weights is not None,
            f"cells is {self.cells}, the grid of word maps, and no word is asked for; give weights too",
        )

    def clear(self) -> None:
        """Forget what was kept."""
        self.bottleneck, self.calls = None, 0
        self.maps.clear()
        self.sums.clear()
        self._made.clear()

    def begin(self) -> None:
        """Count a call."""
        self.calls += 1
        self._made.clear()

    def wants(self, site: Site, cells: int) -> bool:
        """Say whether the maps of ``site`` are kept."""
        return site.kind in self.kinds and cells <= self.max_cells

    def wants_words(self, site: Site, cells: int) -> bool:
        """Say whether the word maps of ``site`` are kept."""
        if self.weights is None or site.kind != "cross":
            return False
        return cells <= self.max_cells if self.cells is None else cells == self.cells[0] * self.cells[1]

    def check(self, rows: int, tokens: int | None) -> None:
        """Raise ``UserError`` unless the word weights fit a call with ``rows`` images and ``tokens`` text states."""
        if self.weights is None:
            return
        count, _, length = self.weights.shape
        require(count <= rows, f"the taps weigh words for {count} rows, and the network sees {rows}; give fewer")
        require(
            tokens is None or length == tokens,
            f"the taps weigh {length} tokens, and the text has {tokens}; make weights [B, K, {tokens}]",
        )

    def averaged(self, cells: tuple[int, int] | None = None, sites: Iterable[Site] | None = None) -> Tensor:
        """Return word maps [B, K, h, w]: the mean over calls and over sites, each of which counts alike.

        Args:
            cells: Height and width of the grid; None is the one that the taps keep.
            sites: Which attentions; None is all on that grid that were kept.

        Raises:
            UserError: No grid is known, or nothing was kept of it.
        """
        grid = self.cells if cells is None else cells
        require(grid is not None, "word maps were kept on every grid; say which one: cells=(height, width)")
        height, width = grid or (0, 0)
        wanted = self.sums if sites is None else [site for site in sites if site in self.sums]
        kept = [self.sums[site] for site in wanted if self.sums[site].shape[-1] == height * width]
        require(
            len(kept) > 0,
            f"no word map was kept on a grid of {height} x {width}; run the network with these taps first, or ask for "
            f"another grid (there are {sorted({sums.shape[-1] for sums in self.sums.values()})} cells)",
        )
        mean = torch.stack(kept).mean(0) / self.calls
        return mean.reshape(*mean.shape[:2], height, width)

    def record(self, q: Tensor, k: Tensor, mask: Tensor | None, site: Site, edit: AttentionEdit | None) -> None:
        """Keep what is wanted of one attention.

        Args:
            q: Queries [B, heads, N, d].
            k: Keys [B, heads, L, d].
            mask: [B, 1, 1, L], True where a key may be seen, or None.
            site: Which attention this is.
            edit: What is done to its maps, or None.
        """
        whole, words = self.wants(site, q.shape[2]), self.wants_words(site, q.shape[2])
        if not whole and not words:
            return
        rows = q.shape[0]
        if not whole and self.weights is not None:  # the word maps' rows, and those that their edits read
            needed = () if edit is None else (*edit.source, *edit.target)
            rows = max(self.weights.shape[0] - 1, *needed, 0) + 1
        maps = attention_maps(q[:rows], k[:rows], None if mask is None else mask[:rows])
        if edit is not None:
            edited = edit.edited(rows_of(maps, edit.source), rows_of(maps, edit.target))
            maps = with_rows(maps, edit.target, edited)
        if whole:
            self.maps[site] = maps.to(q.dtype)
        if words and self.weights is not None:
            self._add(site, maps)

    def words(self, edit: AttentionEdit | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return what the source's and a row's own maps are summed with, each [B, K, L] in float32.

        It is made once in each call of the network, for all its sites.

        Args:
            edit: What is done to the maps, or None.
            device: Where the maps are.
        """
        for known, place, words in self._made:
            if known is edit and place == device:
                return words
        words = self._words(edit, device)
        self._made.append((edit, device, words))
        return words

    def _words(self, edit: AttentionEdit | None, device: torch.device) -> tuple[Tensor, Tensor]:
        weights = self.weights if self.weights is not None else torch.empty(0)
        taken = left = weights.to(device, torch.float32)
        if edit is None:
            return taken, left
        unread = torch.zeros_like(left[0])
        own = torch.stack([left[row] if row < len(left) else unread for row in edit.target])
        moved, removed = (part[:, 0].transpose(-1, -2) for part in edit.values(own.transpose(-1, -2)[:, None]))
        kept = [index for index, row in enumerate(edit.target) if row < len(left)]
        if not kept:
            return taken, left
        rows = [edit.target[index] for index in kept]
        return with_rows(taken, rows, rows_of(moved, kept)), with_rows(left, rows, rows_of(own - removed, kept))

    def add(self, site: Site, words: Tensor) -> None:
        """Count the word maps [B, K, N] that a call had at ``site``."""
        self.sums[site] = words if site not in self.sums else self.sums[site] + words

    def _add(self, site: Site, maps: Tensor) -> None:
        weights = self.weights.to(maps) if self.weights is not None else maps.new_empty(0)
        mean = maps[: len(weights)].detach().mean(dim=1)
        self.add(site, (weights @ mean.transpose(-1, -2)).float())

"""Which tokens stand for which words, and what Prompt-to-Prompt makes of that: mappers, gates and equalisers.

A mapper is a matrix [L, L] over the tokens of two prompts: its column n says which tokens of the source the target's
token n looks at, so that ``P_source @ mapper`` is a map of the target (`AttentionEdit`).
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from steerdiff.errors import UserError, require

from .tokenizers import is_punctuation

__all__ = [
    "DEFAULT",
    "Span",
    "Window",
    "WordTokens",
    "equalizer",
    "find",
    "refinement_mapper",
    "replacement_mapper",
    "spans_of",
    "window_ends",
    "word_gates",
]

#: A part of the steps: up to a fraction of them, or from one fraction to another.
Window = float | tuple[float, float]

DEFAULT = "default_"  #: the key of `word_gates` for all words that have no entry of their own
GAP, MATCH, MISMATCH = 0, 1, -1  # scores of an alignment: to leave one out is better than a wrong pair


@dataclass(frozen=True)
class Span:
    """A word of a prompt and the tokens that stand for it."""

    word: str  #: as the encoder reads it: lower case, with CLIP's or BERT's cleaning
    start: int  #: position of its first token in the row; the begin mark is 0
    stop: int  #: position after its last token


@runtime_checkable
class WordTokens(Protocol):
    """A text encoder that says which tokens stand for a word. Encoders of classes have no words."""

    def spans(self, prompt: str, /) -> list[Span]:
        """Return the words of a prompt in their order; together they hold every token between both marks."""
        ...

    def token_ids(self, prompt: str, /) -> list[int]:
        """Return the token numbers of a prompt with begin and end, without padding."""
        ...


def spans_of(chunks: Sequence[Sequence[str]]) -> list[Span]:
    """Return the words of a prompt from what its tokens stand for.

    Punctuation before and after a word is a word of its own, so that "cat," is found as "cat"; what is inside, as in
    "don't", belongs to the word. Where a token goes over such a border, there is none.

    Args:
        chunks: For each part of the prompt between spaces the letters of its tokens; a letter made of several tokens
            belongs to the last of them, and the others are "".
    """
    spans, first = [], 1
    for pieces in chunks:
        text, ends = "".join(pieces), [0, *accumulate(len(piece) for piece in pieces)]
        cuts = [0, *(ends.index(letter) for letter in _borders(text) if letter in ends), len(pieces)]
        for start, stop in zip(cuts, cuts[1:], strict=False):
            word = text[ends[start] : ends[stop]]
            spans.append(Span(word, first + start, first + stop))
        first += len(pieces)
    return spans


def find(spans: Sequence[Span], words: str, *, nth: int | None = None) -> tuple[int, ...]:
    """Return the positions of all tokens of a word, or of several words in a row, wherever they occur.

    Args:
        spans: The words of the prompt.
        words: What to look for; case and spaces do not count, and accents only where a word with them is there too.
        nth: Which occurrence, 0 for the first; None for all.

    Raises:
        UserError: The prompt has no such word (the nearest are named), or not so many of them.
    """
    wanted = _plain("".join(words.split()))
    require(wanted != "", f"the word to look for is '{words}'; give a word of the prompt")
    found = _occurrences([_plain(span.word) for span in spans], wanted)
    if not found:
        found = _occurrences([_bare(span.word) for span in spans], _bare(wanted))
    if not found:
        raise UserError(f"'{words}' is not in the prompt '{_text(spans)}'{_nearest(spans, wanted)}; name one that is")
    if nth is not None:
        require(
            0 <= nth < len(found),
            f"nth is {nth} and '{words}' is {len(found)} times in the prompt; give 0 to {len(found) - 1}",
        )
        found = [found[nth]]
    return tuple(sorted({token for a, b in found for token in range(spans[a].start, spans[b - 1].stop)}))


def replacement_mapper(
    source: Sequence[Span], target: Sequence[Span], length: int, *, official_tail: bool = False
) -> Tensor:
    """Return the mapper [L, L] of two prompts that have word k of one in the place of word k of the other.

    Words of as many tokens are paired token by token. Otherwise each of a word's n target tokens gets the sum of the
    source's tokens divided by n, so that rows sum to 1 and no attention is lost. After the last word come the end and
    the padding, one to one; what is over on either side goes with the last.

    Args:
        source: The words of the source prompt.
        target: The words of the target prompt, as many.
        length: Tokens of a row.
        official_tail: After the last changed word token n follows token n even where the words before it have not as
            many tokens, as in the official code: later words then follow wrong ones.

    Raises:
        UserError: One prompt has more words than the other, or does not fit into ``length``.

    Source: Hertz et al. 2022, section 3.2, word swap.
    """
    require(
        len(source) == len(target),
        f"'{_text(source)}' has {len(source)} words (signs counted) and '{_text(target)}' {len(target)}; to replace, "
        "give prompts with as many words, or use refine",
    )
    ends = [_end(spans, length) for spans in (source, target)]
    mapper = torch.zeros(length, length)
    mapper[0, 0] = 1
    changed = (0, 0)
    for old, new in zip(source, target, strict=True):
        _pair(mapper, range(old.start, old.stop), range(new.start, new.stop))
        if old.word != new.word:
            changed = (old.stop, new.stop)
    if official_tail:
        mapper[:, changed[1] :] = 0
        place = torch.arange(changed[1], length - max(0, changed[0] - changed[1]))
        mapper[place, place] = 1
        return mapper
    rest = length - max(ends)  # of the end and the padding
    for k in range(rest - 1):
        mapper[ends[0] + k, ends[1] + k] = 1
    last = [range(end + rest - 1, length) for end in ends]
    mapper[last[0].start : length, last[1].start : length] = 1 / len(last[1])
    return mapper


def refinement_mapper(
    source_ids: Sequence[int], target_ids: Sequence[int], length: int, *, official_padding: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the mapper [L, L] and the blend [L] of a prompt and one with other words added, left out or changed.

    The longest common row of tokens is aligned; a target token outside it has blend 0 and an empty column, so that it
    keeps its own map. Padding follows the padding in the same place.

    Args:
        source_ids: The source's token numbers with begin and end, without padding.
        target_ids: The target's.
        length: Tokens of a row.
        official_padding: Padding of the target follows the same place of the source whatever stands there, as in the
            official code: where the source is longer, that is a word or the end. Otherwise it keeps its own map there.

    Raises:
        UserError: A prompt does not fit into ``length``.

    Source: Hertz et al. 2022, section 3.2, adding a new phrase; the alignment is Needleman and Wunsch's.
    """
    for ids in (source_ids, target_ids):
        require(len(ids) <= length, f"a prompt has {len(ids)} tokens and a row {length}; shorten it")
    mapper, blend = torch.zeros(length, length), torch.zeros(length)
    pairs = list(_aligned(source_ids, target_ids))
    begin = len(target_ids) if official_padding else max(len(source_ids), len(target_ids))
    for i, j in [*pairs, *((place, place) for place in range(begin, length))]:
        mapper[i, j] = blend[j] = 1
    return mapper, blend


def word_gates(
    windows: Window | Mapping[str, Window], spans: Sequence[Span], steps: int, length: int, *, official: bool = False
) -> Tensor:
    """Return for each step and token whether cross edits count, 1 or 0: [steps, L].

    Args:
        windows: In which part of the steps: a fraction f from the start, a pair (a, b) of fractions, or such a value
            for a word or several in a row, where "default_" stands for all others (every step unless given). A later
            entry overrides an earlier one where both have a token.
        spans: The words of the target prompt.
        steps: How many steps there are.
        length: Tokens of a row.
        official: The official code's table of steps + 1 rows, of which the last is not used: a window from a to b has
            the rows int(a (steps + 1)) up to int(b (steps + 1)), so that b = 0.99 is all of 50 steps.

    Raises:
        UserError: A word is not in the prompt, or a window is no part of [0, 1].

    Source: Hertz et al. 2022, section 3.2, tau; the windows by word are the official code's.
    """
    require(steps >= 1, f"steps is {steps}; give at least 1")
    by_word = dict(windows) if isinstance(windows, Mapping) else {DEFAULT: windows}
    rows = steps + 1 if official else steps
    gates = torch.zeros(rows, length)
    every = _window(DEFAULT, by_word.pop(DEFAULT, 1.0), rows, official)
    gates[every.start : every.stop] = 1
    for words, window in by_word.items():
        tokens, part = list(find(spans, words)), _window(words, window, rows, official)
        gates[:, tokens] = 0
        for row in part:
            gates[row, tokens] = 1
    return gates


def window_ends(window: Window, name: str) -> tuple[float, float]:
    """Return where a window begins and ends, in shares of the steps; ``name`` is what the error calls it.

    Raises:
        UserError: It is no part of [0, 1].
    """
    ends = tuple(window) if isinstance(window, tuple | list) else (0.0, window)
    is_part = len(ends) == 2 and 0 <= ends[0] <= ends[1] <= 1
    require(is_part, f"{name} is {window}; give a fraction, or (a, b) with 0 <= a <= b <= 1")
    return ends[0], ends[1]


def equalizer(values: Mapping[str, float], spans: Sequence[Span], length: int) -> Tensor:
    """Return the factor of each token's map [L]: 1 but for the words in ``values``.

    Args:
        values: A factor for a word, or for several in a row; below 0 turns it round. A later entry overrides an earlier
            one where both have a token.
        spans: The words of the target prompt.
        length: Tokens of a row.

    Raises:
        UserError: A word is not in the prompt, or a factor is not finite.

    Source: Hertz et al. 2022, section 3.2, attention re-weighting.
    """
    factors = torch.ones(length)
    for words, value in values.items():
        require(abs(value) < float("inf"), f"the factor of '{words}' is {value}; give a finite number")
        factors[list(find(spans, words))] = float(value)
    return factors


def _pair(mapper: Tensor, source: range, target: range) -> None:
    """Fill in a word: token by token, or each target token with its share of all."""
    if len(source) == len(target):
        mapper[list(source), list(target)] = 1
    else:
        mapper[source.start : source.stop, target.start : target.stop] = 1 / len(target)


def _end(spans: Sequence[Span], length: int) -> int:
    """Return the position of the end mark."""
    end = spans[-1].stop if spans else 1
    require(end < length, f"'{_text(spans)}' has {end + 1} tokens with both marks and a row {length}; shorten it")
    return end


def _aligned(source: Sequence[int], target: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of positions that a global alignment puts together, from the end; ties leave the target's out."""
    best = [[GAP * (i + j) for j in range(len(target) + 1)] for i in range(len(source) + 1)]
    for i, one in enumerate(source, 1):
        for j, other in enumerate(target, 1):
            pair = best[i - 1][j - 1] + (MATCH if one == other else MISMATCH)
            best[i][j] = max(best[i][j - 1] + GAP, best[i - 1][j] + GAP, pair)
    i, j = len(source), len(target)
    while i and j:
        if best[i][j] == best[i][j - 1] + GAP:
            j -= 1
        elif best[i][j] == best[i - 1][j] + GAP:
            i -= 1
        else:
            i, j = i - 1, j - 1
            yield i, j


def _window(name: str, window: Window, rows: int, official: bool) -> range:
    """Return the rows of a window."""
    a, b = window_ends(window, f"the window of '{name}'")
    slack = 0 if official else 1e-9  # 0.58 * 50 is a little less than 29
    return range(int(a * rows + slack), int(b * rows + slack))


def _borders(text: str) -> tuple[int, ...]:
    """Return where the punctuation around a word ends and begins, if there is any."""
    inside = [place for place, letter in enumerate(text) if not is_punctuation(letter)]
    edges = (inside[0], inside[-1] + 1) if inside else ()
    return tuple(edge for edge in edges if 0 < edge < len(text))


def _occurrences(words: Sequence[str], wanted: str) -> list[tuple[int, int]]:
    """Return (first, stop) for each row of whole words that is spelled as ``wanted``."""
    rows = ((first, enumerate(accumulate(words[first:]), first + 1)) for first in range(len(words)))
    return [(first, stop) for first, ends in rows for stop, text in ends if text == wanted]


def _plain(word: str) -> str:
    return unicodedata.normalize("NFC", "".join(letter.lower() for letter in word))


def _bare(word: str) -> str:
    """Return a word without accents, as BERT reads it; one of accents alone is left whole."""
    plain = unicodedata.normalize("NFD", word)
    return "".join(letter for letter in plain if unicodedata.category(letter) != "Mn") or word


def _text(spans: Sequence[Span]) -> str:
    return " ".join(span.word for span in spans)


def _nearest(spans: Sequence[Span], wanted: str) -> str:
    near = difflib.get_close_matches(wanted, list(dict.fromkeys(span.word for span in spans)), n=3, cutoff=0.5)
    return f" (nearest: {', '.join(near)})" if near else ""

"""Words for what a model does not know yet: rare ones of a vocabulary, and rows that a closed vocabulary gains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from steerdiff.errors import UserError, require

from .bert_text import BertText
from .clip_text import ClipText
from .text import SPECIAL, WordEncoder
from .tokenizers import clip_vocabulary

__all__ = ["new_rows", "rare_words", "with_words"]

_CONSONANTS = "bcdfghjklmnpqrstvwxz"
_TRIES = 100_000  # draws before a search gives up


def with_words(encoder: WordEncoder, rows: Mapping[str, Tensor]) -> WordEncoder:
    """Return a copy of the encoder that knows more words; what it says of the others is the same bit for bit.

    Args:
        encoder: Knows a closed list of words.
        rows: The embedding [width] of each new word.

    Raises:
        UserError: It knows such a word already, or it is not one lower-case word.
    """
    for word in rows:
        require(encoder.words(word) == [word], f"{word!r} cannot be a new word; give one word in lower case")
        known = word in encoder.token_number
        require(not known, f"{word!r} is a word that the model knows already; choose one that it does not know")
    old = encoder.embedding.weight
    config = replace(encoder.config, words=(*encoder.config.words, *rows))
    copy = WordEncoder(config).to(old.device, old.dtype)
    state = dict(encoder.state_dict())
    added = [row.detach().to(old)[None] for row in rows.values()]
    copy.load_state_dict({**state, "embedding.weight": torch.cat([old.detach(), *added])})
    return copy.train(encoder.training).requires_grad_(old.requires_grad)


def new_rows(before: nn.Module | None, after: nn.Module | None) -> dict[str, Tensor]:
    """Return the embedding of each word that ``after`` knows and ``before``, from which it was made, does not."""
    if not isinstance(before, WordEncoder) or not isinstance(after, WordEncoder):
        return {}
    first = len(before.config.words)
    return {word: after.embedding.weight[SPECIAL + first + k] for k, word in enumerate(after.config.words[first:])}


def rare_words(
    encoder: nn.Module,
    n: int = 1,
    *,
    tokens: int = 1,
    among: tuple[int, int] | None = None,
    characters: int = 3,
    seed: int = 0,
) -> tuple[str, ...]:
    """Return words that an encoder has hardly an opinion of, to name a subject with.

    Of a vocabulary of pieces: rare token numbers are drawn, and those are kept that stand for few letters, and that are
    the tokens which the word they spell is read as. English words and random letters are neither: they have a meaning,
    or fall apart into common pieces. A closed list of words has no rare one: such a word is free, and has to be added.

    Args:
        encoder: Reads the prompts.
        n: How many different words.
        tokens: k, pieces of each word.
        among: First and last token number; both vocabularies list common pieces first. None is the last fifth of them;
            the paper has 5000 to 10000 of T5's 32000.
        characters: Most letters of a piece.
        seed: Decides the draws.

    Raises:
        UserError: Another text encoder, or fewer words than asked for.

    Source: Ruiz et al. 2023 (DreamBooth), section 3.2, "rare-token identifiers". Letters are ASCII ones here, to type.
    """
    require(n >= 1 and tokens >= 1, f"n is {n} and tokens {tokens}; both must be at least 1")
    require(characters >= 1, f"characters is {characters}; it must be at least 1")
    generator = np.random.Generator(np.random.PCG64(seed))
    found: dict[str, None] = {}
    for word in _drawn(encoder, tokens, among, characters, generator):
        found[word] = None
        if len(found) == n:
            return tuple(found)
    raise UserError(f"only {len(found)} of {n} rare words were found; widen among, or allow more characters")


def _drawn(
    encoder: nn.Module, tokens: int, among: tuple[int, int] | None, characters: int, generator: np.random.Generator
) -> Iterator[str]:
    """Yield rare words, some of them again."""
    if isinstance(encoder, WordEncoder):
        for _ in range(_TRIES):
            word = "".join(generator.choice(list(_CONSONANTS), size=characters * tokens))
            if word not in encoder.token_number:
                yield word
        return
    pieces = _pieces(encoder)
    first, last = (len(pieces) * 4 // 5, len(pieces) - 1) if among is None else among
    inside = 0 <= first <= last < len(pieces)
    require(inside, f"among is {first} to {last}; the vocabulary has the numbers 0 to {len(pieces) - 1}")
    kept = [k for k in range(first, last + 1) if 0 < len(pieces[k][0]) <= characters and _is_plain(pieces[k][0])]
    if isinstance(encoder, ClipText):  # its pieces say whether they end a word, BERT's whether they begin one
        pools = [[k for k in kept if pieces[k][1] == (place == tokens - 1)] for place in range(tokens)]
    else:
        pools = [[k for k in kept if pieces[k][1] == (place == 0)] for place in range(tokens)]
    for _ in range(_TRIES if all(pools) else 0):
        numbers = [pool[int(generator.integers(len(pool)))] for pool in pools]
        word = "".join(pieces[k][0] for k in numbers)
        if _numbers(encoder, word) == numbers:
            yield word


def _pieces(encoder: nn.Module) -> Sequence[tuple[str, bool]]:
    """Return what each token number stands for, and whether it ends a word (CLIP) or begins one (BERT)."""
    if isinstance(encoder, ClipText):
        return clip_vocabulary()
    if isinstance(encoder, BertText) and encoder.word_pieces is not None:
        names = sorted(encoder.word_pieces.number, key=encoder.word_pieces.number.__getitem__)
        return [(name.removeprefix("##"), not name.startswith("##")) for name in names]
    raise UserError(f"a {type(encoder).__name__} has no vocabulary to search for rare words; choose one yourself")


def _numbers(encoder: nn.Module, word: str) -> list[int]:
    """Return the token numbers that an encoder reads a word as, without begin, end and padding."""
    pieces = encoder.pieces(word)  # type: ignore[operator]
    row = encoder.tokenize([word])[0][0]  # type: ignore[operator]
    numbers: list[int] = row[1 : 1 + len(pieces)].tolist()
    return numbers


def _is_plain(piece: str) -> bool:
    return piece.isascii() and piece.isalpha() and piece.islower()

"""The tokens of a CLIP with a vocabulary of its own: whole words, as the prompts of a small domain are made of."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import Tensor

from steerdiff.errors import UserError, require

from .tokenizers import Frame, Words, token_table

__all__ = ["own_vocabulary", "word_table"]

PAD, BEGIN = 0, 1
FIRST = 2  #: number of the first word


def own_vocabulary(words: Sequence[str]) -> int:
    """Return how many tokens a vocabulary of ``words`` has: the words, padding, and the marks of begin and end.

    Padding is 0, the begin 1, the words follow in their order, and the end has the largest number, for open_clip takes
    the text's vector from the place of the largest one.

    Raises:
        UserError: There is no word, or one is named twice or is not lower case.
    """
    require(len(set(words)) == len(words) > 0, "words is empty or names a word twice")
    wrong = [word for word in words if word != word.lower() or word.split() != [word]]
    require(not wrong, f"words has {', '.join(map(repr, wrong[:3]))}; give lower-case words without spaces")
    return FIRST + len(words) + 1


def word_table(texts: Sequence[str], words: Sequence[str], length: int, *, truncates: bool = False) -> Tensor:
    """Return the token numbers of texts [B, length], int64; commas and full stops are dropped, case is ignored.

    Args:
        texts: The texts.
        words: The vocabulary.
        length: Tokens of a row, with begin and end.
        truncates: Cut a text that is too long instead of an error.

    Raises:
        UserError: A text has unknown words (named, with the nearest known ones) or too many, or is no string.
    """
    number = {word: FIRST + i for i, word in enumerate(words)}
    frame = Frame(begin=BEGIN, end=FIRST + len(words), pad=PAD, length=length)

    def split(text: str) -> Words:
        found = text.lower().replace(",", " ").replace(".", " ").split()
        unknown = [word for word in dict.fromkeys(found) if word not in number]
        if unknown:
            raise UserError(f"'{text}' has words that this CLIP does not know: {', '.join(_hint(unknown, number))}")
        return [(word, [number[word]]) for word in found]

    return token_table(texts, split, frame, truncates=truncates)


def _hint(unknown: Sequence[str], known: dict[str, int]) -> list[str]:
    """Return each unknown word with the known ones nearest to it."""
    near = {word: difflib.get_close_matches(word, known, n=3, cutoff=0.5) for word in unknown}
    return [f"'{word}'" + (f" (did you mean {' or '.join(found)}?)" if found else "") for word, found in near.items()]

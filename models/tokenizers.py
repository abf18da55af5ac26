"""From a prompt to token numbers: CLIP's byte pairs and BERT's word pieces, each split word by word."""

from __future__ import annotations

import codecs
import functools
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerdiff.errors import UserError, require

__all__ = [
    "CLIP_VOCABULARY",
    "Frame",
    "WordPiece",
    "Words",
    "clip_chunks",
    "clip_vocabulary",
    "clip_words",
    "is_punctuation",
    "read_vocab",
    "token_table",
]

#: Each word of a prompt and the numbers of its tokens.
Words = list[tuple[str, list[int]]]

CLIP_VOCABULARY = 49408  # byte pairs and the two marks
LONGEST_WORD = 100  # letters; BERT reads a longer word as unknown
CHINESE = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2CEAF), (0x2F800, 0x2FA1F))


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What stands around the tokens of a prompt."""

    begin: int  #: number before the first token
    end: int  #: number after the last token
    pad: int  #: number that fills up the row
    length: int  #: tokens of a row, with begin and end

    def row(self, text: str, words: Words, truncates: bool = False) -> list[int]:
        """Return the numbers of one prompt, ``length`` of them.

        Raises:
            UserError: The prompt is too long, unless ``truncates``.
        """
        numbers = [number for _, tokens in words for number in tokens]
        room = self.length - 2
        if len(numbers) > room and not truncates:
            outside = list(_outside(words, room))
            start = text if len(text) <= 40 else f"{text[:37]}..."
            named = f"'{' '.join(outside[:4])}{' ...' if len(outside) > 4 else ''}'"
            raise UserError(
                f"the prompt '{start}' has {len(numbers)} tokens and this model reads at most {room}, so {named} would "
                "be lost: shorten it"
            )
        row = [self.begin, *numbers[:room], self.end]
        return row + [self.pad] * (self.length - len(row))


def token_table(
    texts: Sequence[str], split: Callable[[str], Words], frame: Frame, *, truncates: bool = False
) -> Tensor:
    """Return the numbers of prompts [B, length], int64.

    Args:
        texts: The prompts; "" is the empty one.
        split: Gives the words of a prompt with their numbers.
        frame: What stands around them.
        truncates: Cut a prompt that is too long, as the official tools do without a word, instead of an error.

    Raises:
        UserError: ``texts`` is no list of strings, or a prompt is too long.
    """
    require(not isinstance(texts, str), "prompts is a string; give a list of strings")
    for text in texts:
        require(isinstance(text, str), f"a prompt is {type(text).__name__}; expected a string")
    table = torch.full((len(texts), frame.length), frame.pad)
    for row, text in enumerate(texts):
        table[row] = torch.tensor(frame.row(text, split(text), truncates))
    return table


def clip_words(text: str, undoes_html: bool) -> Words:
    """Split a prompt into lower-case words and CLIP's byte pairs.

    Args:
        text: The prompt.
        undoes_html: True mends the text and undoes HTML entities first, as open_clip does; False only composes
            accents, as transformers does.

    Source: Radford et al. 2021, section 2.4; the vocabulary is the one inside open_clip.
    """
    tokenizer = _byte_pairs()
    clean = tokenizer.clean_fn(text) if undoes_html else _lower(unicodedata.normalize("NFC", text))
    return [(word, list(_encode(tokenizer, word))) for word in clean.split()]


def clip_chunks(text: str, undoes_html: bool) -> list[list[str]]:
    """Return for each part of a prompt between spaces what CLIP's tokens stand for; together they are the clean part.

    A letter made of several tokens belongs to the last of them, and the others are "".
    """
    tokenizer = _byte_pairs()
    chunks = []
    for _, numbers in clip_words(text, undoes_html):
        decoder = codecs.getincrementaldecoder("utf-8")()
        tokens = (tokenizer.decoder[number].removesuffix("</w>") for number in numbers)
        chunks.append([decoder.decode(bytes(map(tokenizer.byte_decoder.__getitem__, token))) for token in tokens])
    return chunks


@functools.cache
def clip_vocabulary() -> tuple[tuple[str, bool], ...]:
    """Return what each of CLIP's tokens stands for and whether it ends a word; pairs come in the order of frequency.

    A token that is no whole letter, or a mark, stands for "".
    """
    tokenizer = _byte_pairs()
    found = []
    for number in range(CLIP_VOCABULARY):
        symbols = tokenizer.decoder[number]
        ends, symbols = symbols.endswith("</w>"), symbols.removesuffix("</w>")
        is_mark = number >= CLIP_VOCABULARY - 2
        text = b"" if is_mark else bytes(tokenizer.byte_decoder[symbol] for symbol in symbols)
        found.append((text.decode("utf-8", errors="ignore"), ends))
    return tuple(found)


def read_vocab(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read a ``vocab.txt``: one piece a line, whose number is that of its line.

    Raises:
        UserError: The file is missing or not text.
    """
    require(Path(path).is_file(), f"{path} is not a file; it should be the vocab.txt of bert-base-uncased")
    try:
        return tuple(Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file ({error.reason}); expected one word piece a line") from error


class WordPiece:
    """BERT's uncased tokens: the longest known piece first, pieces inside a word marked by ``##``.

    Source: Devlin et al. 2019, section 3.1; the rules are those of bert-base-uncased.
    """

    def __init__(self, vocab: Sequence[str]) -> None:
        """Take the pieces in the order of their numbers.

        Raises:
            UserError: One of the marks [PAD], [UNK], [CLS] and [SEP] is missing.
        """
        self.number = {piece: number for number, piece in enumerate(vocab)}
        missing = [mark for mark in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if mark not in self.number]
        require(not missing, f"the vocabulary has no {', '.join(missing)}; give the vocab.txt of bert-base-uncased")

    def frame(self, length: int) -> Frame:
        """Return what stands around the tokens in rows of ``length``."""
        number = self.number
        return Frame(begin=number["[CLS]"], end=number["[SEP]"], pad=number["[PAD]"], length=length)

    def words(self, text: str) -> Words:
        """Split a prompt into words and their numbers; what is not in the vocabulary is [UNK]."""
        unknown = self.number["[UNK]"]
        return [(word, [self.number.get(piece, unknown) for piece in self._pieces(word)]) for word in _bert_words(text)]

    def chunks(self, text: str) -> list[list[str]]:
        """Return for each part of a prompt between spaces what its tokens stand for; together they are the clean part.

        A Chinese character is a part by itself.
        """
        parts = ([self._pieces(word) for word in _bert_words(part)] for part in _spread_out(text).split())
        return [[piece.removeprefix("##") for pieces in words for piece in pieces] for words in parts if words]

    def _pieces(self, word: str) -> list[str]:
        """Cut a word into known pieces, or leave an unknown one whole."""
        pieces: list[str] = []
        start = 0
        while start < len(word) <= LONGEST_WORD:
            lead = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if lead + word[start:end] in self.number), None)
            if end is None:
                return [word]
            pieces.append(lead + word[start:end])
            start = end
        return pieces or [word]


def _outside(words: Words, room: int) -> Iterator[str]:
    """Yield the words that do not wholly fit into ``room`` tokens."""
    used = 0
    for word, numbers in words:
        used += len(numbers)
        if used > room:
            yield word


@functools.cache
def _byte_pairs() -> Any:
    from open_clip import SimpleTokenizer

    return SimpleTokenizer()


def _encode(tokenizer: Any, word: str) -> Iterator[int]:
    for part in tokenizer.pat.findall(word):
        symbols = "".join(tokenizer.byte_encoder[byte] for byte in part.encode())
        yield from (tokenizer.encoder[pair] for pair in tokenizer.bpe(symbols).split(" "))


def _lower(text: str) -> str:
    """Lower each letter by itself: as a whole Python would give a sigma at the end of a word another form."""
    return "".join(letter.lower() for letter in text)


def _bert_words(text: str) -> list[str]:
    """Split as bert-base-uncased does: lower case, no accents, punctuation and Chinese characters alone."""
    plain = unicodedata.normalize("NFD", _lower(_spread_out(text)))
    words = "".join(
        f" {letter} " if is_punctuation(letter) else letter for letter in plain if unicodedata.category(letter) != "Mn"
    )
    return words.split()


def _spread_out(text: str) -> str:
    """Return a text without control characters, with plain spaces, also around Chinese characters."""
    return "".join(_spread(letter) for letter in text)


def _spread(letter: str) -> str:
    """Return a letter, a space for each kind of white space, nothing for a control character."""
    if letter in "\t\n\r" or unicodedata.category(letter) == "Zs":
        return " "
    if letter == "\ufffd" or unicodedata.category(letter).startswith("C"):
        return ""
    return f" {letter} " if _is_chinese(letter) else letter


def is_punctuation(letter: str) -> bool:
    """Whether a letter is punctuation, as BERT takes it: ASCII signs such as "$" and "^" too."""
    ascii_sign = "!" <= letter <= "~" and not letter.isalnum()
    return ascii_sign or unicodedata.category(letter).startswith("P")


def _is_chinese(letter: str) -> bool:
    """Whether a letter is in one of the blocks of CJK ideographs."""
    return any(first <= ord(letter) <= last for first, last in CHINESE)

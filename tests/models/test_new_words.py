"""Rare and new words: they are read as the tokens that were meant, and nothing else changes its meaning."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from steerdiff import UserError
from steerdiff.models.bert_text import BertText
from steerdiff.models.clip_text import ClipText
from steerdiff.models.new_words import new_rows, rare_words, with_words
from steerdiff.models.text import TextConfig, WordEncoder
from steerdiff.models.text_config import BertTextConfig, ClipTextConfig
from steerdiff.models.tokenizers import clip_vocabulary, clip_words

PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "xq", "zv", "b", "kjw", "##rt", "##pf", "##longer", "xqrt")


def encoder() -> WordEncoder:
    torch.manual_seed(0)
    return WordEncoder(TextConfig(words=("a", "cat"), width=8, depth=1, heads=2, length=6)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clip() -> ClipText:
    return ClipText(ClipTextConfig(width=8, heads=1, layers=1))


def test_a_new_word_is_read_as_its_row_and_the_others_as_before_bit_for_bit() -> None:
    before, row = encoder(), torch.linspace(-1, 1, 8)
    after = with_words(before, {"lynx": row})
    ids, _ = after.tokenize(["a lynx"])
    assert torch.equal(after.embedding(ids)[0, 2], row)
    assert torch.equal(after(*after.tokenize(["a cat"])), before(*before.tokenize(["a cat"])))
    assert not any(parameter.requires_grad for parameter in after.parameters()) and not after.training
    rows = new_rows(before, after)
    assert list(rows) == ["lynx"] and torch.equal(rows["lynx"], row)
    with pytest.raises(UserError, match="does not know: 'lynx'"):
        before.tokenize(["a lynx"])


@pytest.mark.parametrize(
    ("word", "message"),
    [("cat", "knows already"), ("two words", "one word in lower case"), ("Lynx", "one word in lower case")],
)
def test_a_word_that_cannot_be_new_is_an_error(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_words(encoder(), {word: torch.zeros(8)})


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_rare_words_of_clip_are_read_as_as_many_rare_tokens_of_few_letters(clip: ClipText, tokens: int) -> None:
    words = rare_words(clip, 8, tokens=tokens, among=(45_000, 49_000), seed=tokens)
    assert len(set(words)) == 8
    for word in words:
        ((_, numbers),) = clip_words(word, undoes_html=False)
        assert len(numbers) == tokens and all(45_000 <= number <= 49_000 for number in numbers)
        assert "".join(clip_vocabulary()[number][0] for number in numbers) == word
        assert all(0 < len(clip_vocabulary()[number][0]) <= 3 for number in numbers)
    assert words == rare_words(clip, 8, tokens=tokens, among=(45_000, 49_000), seed=tokens)
    assert words != rare_words(clip, 8, tokens=tokens, among=(45_000, 49_000), seed=9)


def test_by_default_the_rarest_fifth_of_a_vocabulary_is_searched(clip: ClipText) -> None:
    numbers = [clip_words(word, undoes_html=False)[0][1][0] for word in rare_words(clip, 30)]
    assert min(numbers) >= 49_408 * 4 // 5


def test_rare_words_of_bert_are_those_that_its_longest_first_rule_does_not_read_otherwise() -> None:
    text = BertText(BertTextConfig(vocab_size=len(PIECES), length=8, width=8, heads=1, layers=1), PIECES)
    every = {"among": (4, len(PIECES) - 1)}
    assert set(rare_words(text, 5, **every)) == {"the", "xq", "zv", "b", "kjw"}
    found = set(rare_words(text, 9, tokens=2, **every))
    assert "xqrt" not in found and {"xqpf", "zvrt"} <= found  # "xqrt" is a piece of its own


def test_a_closed_list_of_words_has_no_rare_one_so_a_free_one_is_found() -> None:
    words = rare_words(encoder(), 5, characters=4)
    assert len(set(words)) == 5 and all(len(word) == 4 for word in words)
    with_words(encoder(), dict.fromkeys(words, torch.zeros(8)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n is 0 and tokens 1"),
        ({"characters": 0}, "characters is 0"),
        ({"among": (48_000, 60_000)}, "among is 48000 to 60000; the vocabulary has the numbers 0 to 49407"),
        ({"n": 50, "among": (48_000, 48_020)}, r"only \d+ of 50 rare words were found; widen among"),
    ],
)
def test_a_search_that_finds_nothing_says_what_to_change(
    clip: ClipText, arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerdiff.models.new_words._TRIES", 300)
    with pytest.raises(UserError, match=message):
        rare_words(clip, **arguments)


def test_an_encoder_without_a_vocabulary_has_no_rare_words() -> None:
    text = BertText(BertTextConfig(vocab_size=9, length=8, width=8, heads=1, layers=1))
    with pytest.raises(UserError, match="a BertText has no vocabulary to search"):
        rare_words(text)

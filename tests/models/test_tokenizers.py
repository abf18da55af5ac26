"""Prompts become the token numbers that the official tokenizers give."""

import numpy as np
import pytest
import torch

from steerdiff.errors import UserError
from steerdiff.models.clip_text import ClipText
from steerdiff.models.text_config import ClipTextConfig
from steerdiff.models.tokenizers import WordPiece, clip_chunks, read_vocab, token_table

from ..helpers import golden_files, load_golden

FILES = golden_files("clip/tokens*.npz")
SD1 = ClipTextConfig()
SD2 = ClipTextConfig(pad=0, undoes_html=True)

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
PIECES = ["a", "cat", "un", "##aff", "##able", "##a", "##b", "cafe", "!", "$", "'", "s", "猫", "犬", "straße", "."]
VOCAB = (*MARKS, *PIECES)


def tower(config: ClipTextConfig) -> ClipText:
    with torch.device("meta"):
        return ClipText(config)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize(("config", "column"), [(SD2, "ids"), (SD1, "ids_transformers")])
def test_clip_tokens_agree_with_the_official_ones(path, config, column):
    arrays, meta = load_golden(path)
    ids, mask = tower(config).tokenize(meta["texts"], truncates=True)
    assert mask is None and ids.dtype == torch.int64
    np.testing.assert_array_equal(ids.numpy(), arrays[column])


def test_golden_tokens_are_there():
    assert len(FILES) >= 1


def test_a_prompt_that_is_too_long_names_the_words_that_would_be_lost():
    model = tower(SD1)
    fits = "word " * 75
    assert model.tokenize([fits])[0][0, -1] == 49407
    with pytest.raises(UserError) as error:
        model.tokenize(["a cat", fits + "one rhinoceros two three four five"])
    message = str(error.value)
    assert "'word word word word word word word wo...' has 83 tokens and this model reads at most 75" in message
    assert "so 'one rhinoceros two three ...' would be lost: shorten it" in message


def test_a_word_that_fits_only_in_part_is_named():
    with pytest.raises(UserError, match="has 76 tokens .* so 'lasagne' would be lost"):
        tower(SD1).tokenize(["word " * 74 + "lasagne"])


def test_pieces_of_a_prompt_are_its_letters_without_spaces():
    model = tower(SD1)
    assert model.pieces("A painting of  a rhinoceros") == ["a", "painting", "of", "a", "rhino", "cer", "os"]
    for text in ("don't stop, it's 3.14", "café naïve — 猫", "emoji 😀 test", "hello_world  sks dog", "a&amp;b"):
        pieces = model.pieces(text)
        ids, _ = model.tokenize([text])
        assert "".join(pieces) == text.replace(" ", "")
        assert len(pieces) == int((ids[0] == 49407).int().argmax()) - 1
    assert model.pieces("") == []
    assert model.pieces("cafe\u0301") == model.pieces("café")  # accents are composed ...
    assert "".join(model.pieces("ﬁre")) == "ﬁre"  # ... and nothing else is changed
    assert model.pieces("ΑΣ") == ["", "α", "", "σ"]  # each letter by itself; Python's lower() would end on "ς"
    assert clip_chunks("a&amp;b c", undoes_html=True) == [["a", "&", "b"], ["c"]]


def test_prompts_are_a_list_of_strings():
    for tokenize in (tower(SD1).tokenize, lambda texts: token_table(texts, VOCABULARY.words, VOCABULARY.frame(8))):
        with pytest.raises(UserError, match="prompts is a string; give a list of strings"):
            tokenize("a cat")
        with pytest.raises(UserError, match="a prompt is int; expected a string"):
            tokenize(["a cat", 5])
        assert tokenize([]).shape[0] == 0 if tokenize.__name__ == "<lambda>" else tokenize([])[0].shape == (0, 77)


VOCABULARY = WordPiece(VOCAB)


def numbers(text: str) -> list[int]:
    return [number for _, tokens in VOCABULARY.words(text) for number in tokens]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a cat", ["a", "cat"]),
        ("A  Cat\t\n", ["a", "cat"]),
        ("unaffable", ["un", "##aff", "##able"]),  # longest piece first: "##aff", not "##a"
        ("unab", ["un", "##a", "##b"]),
        ("unxa", ["[UNK]"]),  # a word that does not come out whole is unknown as a whole
        ("CAFÉ", ["cafe"]),
        ("cafe\u0301", ["cafe"]),
        ("cat's", ["cat", "'", "s"]),
        ("cat$cat!", ["cat", "$", "cat", "!"]),  # "$" is no punctuation in Unicode; it is here
        ("猫犬", ["猫", "犬"]),
        ("ca\u0000t\ufffd\u200b", ["cat"]),  # control characters vanish
        ("a\u00a0cat", ["a", "cat"]),
        ("Straße", ["straße"]),
        ("", []),
        ("a" * 101, ["[UNK]"]),
        ("dog 🐕", ["[UNK]", "[UNK]"]),
    ],
)
def test_word_pieces_are_cut_by_the_rules_of_bert(text, pieces):
    assert numbers(text) == [VOCAB.index(piece) for piece in pieces]


def test_word_pieces_stand_in_their_frame():
    ids = token_table(["a cat", ""], VOCABULARY.words, VOCABULARY.frame(6))
    assert ids.tolist() == [[2, 4, 5, 3, 0, 0], [2, 3, 0, 0, 0, 0]]
    with pytest.raises(
        UserError, match="'a cat a cat unaffable' has 7 tokens .* at most 6, so 'unaffable' would be lost"
    ):
        token_table(["a cat a cat unaffable"], VOCABULARY.words, VOCABULARY.frame(8))
    cut = token_table(["a cat a cat unaffable"], VOCABULARY.words, VOCABULARY.frame(8), truncates=True)
    assert cut.tolist() == [[2, 4, 5, 4, 5, 6, 7, 3]]


def test_word_pieces_say_which_letters_they_stand_for():
    assert VOCABULARY.chunks("unaffable Dogs, CATS!") == [["un", "aff", "able"], ["dogs", ","], ["cats", "!"]]


def test_a_vocabulary_is_read_line_by_line(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    assert read_vocab(path) == VOCAB
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not a text file"):
        read_vocab(path)
    with pytest.raises(UserError, match="is not a file; it should be the vocab.txt of bert-base-uncased"):
        read_vocab(tmp_path / "none.txt")


def test_a_vocabulary_needs_its_marks():
    with pytest.raises(UserError, match=r"the vocabulary has no \[UNK\], \[SEP\]"):
        WordPiece(["[PAD]", "[CLS]", "a"])

"""The tokens of a CLIP that reads whole words."""

import pytest

from steerdiff.errors import UserError
from steerdiff.models.clip_words import own_vocabulary, word_table

WORDS = ("a", "cat", "carrot", "on", "blue")


def test_the_end_has_the_largest_number_where_open_clip_looks_for_it() -> None:
    table = word_table(["a cat", "A Cat, on blue.", ""], WORDS, 7)
    assert table.tolist() == [[1, 2, 3, 7, 0, 0, 0], [1, 2, 3, 5, 6, 7, 0], [1, 7, 0, 0, 0, 0, 0]]
    assert table.argmax(1).tolist() == [3, 5, 1] and own_vocabulary(WORDS) == 8


def test_an_unknown_word_names_the_nearest_ones() -> None:
    with pytest.raises(
        UserError, match=r"'a caat' has words .* does not know: 'caat' \(did you mean cat or carrot\?\)"
    ):
        word_table(["a cat", "a caat"], WORDS, 7)


def test_a_text_that_is_too_long_is_an_error_unless_it_may_be_cut() -> None:
    with pytest.raises(UserError, match="has 4 tokens and this model reads at most 3, so 'blue' would be lost"):
        word_table(["a cat on blue"], WORDS, 5)
    assert word_table(["a cat on blue"], WORDS, 5, truncates=True).tolist() == [[1, 2, 3, 5, 7]]


@pytest.mark.parametrize("words", [(), ("a", "a"), ("A",), ("two words",)])
def test_a_vocabulary_is_of_different_lower_case_words(words: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="words"):
        own_vocabulary(words)

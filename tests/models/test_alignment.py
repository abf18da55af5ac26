"""Words and their tokens in every text encoder; mappers, gates and factors beyond the golden files."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from steerdiff.errors import UserError
from steerdiff.models import (
    BertText,
    BertTextConfig,
    ClassContext,
    ClassContextConfig,
    ClipText,
    ClipTextConfig,
    TextConfig,
    WordEncoder,
)
from steerdiff.models.alignment import (
    Span,
    WordTokens,
    equalizer,
    find,
    refinement_mapper,
    replacement_mapper,
    spans_of,
    word_gates,
)

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
PIECES = [
    "a",
    "cat",
    "##s",
    "rhino",
    "##cer",
    "##os",
    "on",
    "mat",
    "cafe",
    "don",
    "t",
    "'",
    ",",
    "(",
    ")",
    ".",
    "猫",
    "犬",
]
WORDS = ("a", "cat", "cats", "on", "mat", "blue", "pea", "soup", "black-cat")
TEXTS = [
    "",
    "a cat on a mat",
    "A cat,  on a rhinoceros.",
    "(a cat) don't...",
    "Café naïve — 猫犬 😀!",
    "t-shirt 3.14 '90s 'tis cats' \"a\" x",
    "a\tcat\non a mat",
    "!? ,, ...",
    "ΑΣ!? é́ ﬁre",
]


def clip(undoes_html: bool = False) -> ClipText:
    with torch.device("meta"):
        return ClipText(ClipTextConfig(layers=1, undoes_html=undoes_html))


def bert() -> BertText:
    vocab = [*MARKS, *PIECES]
    return BertText(BertTextConfig(vocab_size=len(vocab), width=8, heads=1, layers=1), vocab)


def words() -> WordEncoder:
    return WordEncoder(TextConfig(words=WORDS, width=8, heads=1, depth=1, length=8))


def named(spans: list[Span]) -> dict[str, tuple[int, int]]:
    return {span.word: (span.start, span.stop) for span in spans}


@pytest.mark.parametrize("encoder", [clip(), clip(undoes_html=True), bert()], ids=["clip", "clip-html", "bert"])
def test_words_share_out_all_tokens_and_letters_of_a_prompt(encoder):
    for text in TEXTS:
        spans, ids, pieces = encoder.spans(text), encoder.token_ids(text), encoder.pieces(text)
        assert len(ids) == len(pieces) + 2
        assert encoder.tokenize([text])[0][0, : len(ids)].tolist() == ids
        assert [span.start for span in spans] + [len(ids) - 1] == [1] + [span.stop for span in spans]
        for span in spans:
            assert span.word == "".join(pieces[span.start - 1 : span.stop - 1]) != ""
            assert set(range(span.start, span.stop)) <= set(find(spans, span.word))


def test_the_closed_vocabulary_has_a_token_for_each_word():
    encoder = words()
    assert encoder.spans("A cat, on a  mat.") == [
        Span("a", 1, 2), Span("cat", 2, 3), Span("on", 3, 4), Span("a", 4, 5), Span("mat", 5, 6)
    ]  # fmt: skip
    ids = encoder.token_ids("A cat, on a  mat.")
    assert encoder.tokenize(["a cat on a mat"])[0][0, : len(ids)].tolist() == ids
    for call in (encoder.spans, encoder.token_ids):
        with pytest.raises(UserError, match=r"does not know: 'dog'"):
            call("a dog")
        with pytest.raises(UserError, match="reads at most 6"):
            call("a cat on a mat a cat")


def test_prompts_that_do_not_fit_are_errors_before_anything_is_aligned():
    for encoder in (clip(), bert()):
        for call in (encoder.spans, encoder.token_ids):
            with pytest.raises(UserError, match="reads at most 75"):
                call("a " * 76)
            with pytest.raises(UserError, match="a prompt is int"):
                call(5)


def test_encoders_say_whether_they_have_words():
    for encoder in (clip(), bert(), words()):
        assert isinstance(encoder, WordTokens)
    assert not isinstance(ClassContext(ClassContextConfig(classes=3, width=8)), WordTokens)


def test_signs_around_a_word_are_words_and_signs_inside_belong_to_it():
    assert named(clip().spans("(a cat), don't stop...")) == {
        "(": (1, 2), "a": (2, 3), "cat": (3, 4), "),": (4, 5), "don't": (5, 7), "stop": (7, 8), "...": (8, 9)
    }  # fmt: skip
    assert named(bert().spans("(a cat), don't")) == {
        "(": (1, 2), "a": (2, 3), "cat": (3, 4), "),": (4, 6), "don't": (6, 9)
    }  # fmt: skip
    assert [span.word for span in clip().spans("'tis cats'")] == ["'tis", "cats", "'"]  # the token is 't, not '
    assert [span.word for span in clip().spans("$cat+ a=b")] == ["$", "cat", "+", "a=b"]
    assert [span.word for span in bert().spans("猫犬 Cats")] == ["猫", "犬", "cats"]


def test_a_border_inside_a_token_is_none():
    assert spans_of([["(a", "b)"], [",c"]]) == [Span("(ab)", 1, 3), Span(",c", 3, 4)]
    assert spans_of([["", "α", "", "σ", "!"]]) == [Span("ασ", 1, 5), Span("!", 5, 6)]
    assert spans_of([["!", "", "α"]]) == [Span("!", 1, 2), Span("α", 2, 4)]


def test_find_reads_case_accents_and_rows_of_words():
    spans = clip().spans("Pea soup, a CAFÉ and a cafe, pea soup")
    assert find(spans, "pea soup") == (1, 2, 10, 11)
    assert find(spans, "  PEA   soup ") == (1, 2, 10, 11)
    assert find(spans, "pea soup", nth=1) == (10, 11)
    assert find(spans, "soup,") == (2, 3)
    assert find(clip().spans("so so so"), "so so") == (1, 2, 3)
    assert find(clip().spans("a \u0301 café"), "cafe", nth=0) == find(clip().spans("a \u0301 café"), "café")
    assert find(spans, "Cafe") == (8,) and find(spans, "cafe\u0301") == (5,)
    assert find(bert().spans("a café"), "Café") == (2,)
    assert find(clip().spans("a café"), "cafe") == (2,)
    assert find(bert().spans("a cat don't"), "don't") == (3, 4, 5)


def test_find_names_what_is_near_and_takes_no_part_of_a_word():
    spans = clip().spans("a rhinoceros on a mat")
    with pytest.raises(UserError, match=r"'rhinoceross' is not in the prompt 'a rhinoceros on a mat' \(nearest: rhin"):
        find(spans, "rhinoceross")
    for part in ("rhino", "ceros", "at", "a mat a", "aa"):
        with pytest.raises(UserError, match="is not in the prompt"):
            find(spans, part)
    with pytest.raises(UserError, match="give a word of the prompt"):
        find(spans, "  ")
    with pytest.raises(UserError, match="nth is 2 and 'a' is 2 times in the prompt; give 0 to 1"):
        find(spans, "a", nth=2)


def test_later_words_follow_their_own_after_a_swap_of_other_length():
    source, target = spans_of([["a"], ["cat"], ["on"], ["mat"]]), spans_of([["a"], ["tig", "ers"], ["on"], ["mat"]])
    longer, shorter = replacement_mapper(source, target, 9), replacement_mapper(target, source, 9)
    assert longer.argmax(0).tolist() == [0, 1, 2, 2, 3, 4, 5, 6, 7]
    assert longer[2].tolist() == [0, 0, 0.5, 0.5, 0, 0, 0, 0, 0]
    assert longer[:, 8].tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 1]  # what is over of the padding
    assert shorter[:, 2].tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0]
    assert shorter.argmax(1).tolist() == [0, 1, 2, 2, 3, 4, 5, 6, 7]
    assert shorter[8].tolist() == [0, 0, 0, 0, 0, 0, 0, 0.5, 0.5]
    official = replacement_mapper(source, target, 9, official_tail=True)
    assert official[:, 4].argmax() == 4 and official[3].sum() == 0  # "on" follows "mat", and none follows "on"


def test_replacement_keeps_all_attention_and_is_the_identity_for_one_prompt():
    draw = random.Random(0)
    for _ in range(50):
        n = draw.randint(0, 4)
        source = spans_of([[f"s{k}" for _ in range(draw.randint(1, 3))] for k in range(n)])
        target = spans_of([[f"t{k}" for _ in range(draw.randint(1, 3))] for k in range(n)])
        for length in {14, 2 + max((span.stop for span in (*source, *target)), default=1) - 1}:
            mapper = replacement_mapper(source, target, length)
            torch.testing.assert_close(mapper.sum(1), torch.ones(length))
            for old, new in zip(source, target, strict=True):
                share = (old.stop - old.start) / (new.stop - new.start)
                torch.testing.assert_close(
                    mapper[:, new.start : new.stop].sum(0), torch.tensor(share).expand(new.stop - new.start)
                )
            assert torch.equal(replacement_mapper(source, source, length), torch.eye(length))
            assert torch.equal(replacement_mapper(source, source, length, official_tail=True), torch.eye(length))


def test_replacement_needs_as_many_words_that_fit():
    a, b = clip().spans("a cat"), clip().spans("a black cat")
    with pytest.raises(UserError, match=r"'a cat' has 2 words .* and 'a black cat' 3; .* use refine"):
        replacement_mapper(a, b, 77)
    with pytest.raises(UserError, match="'a cat' has 4 tokens with both marks and a row 3"):
        replacement_mapper(a, a, 3)


def common(one: list[int], other: list[int]) -> int:
    """Length of the longest common row of numbers, by trying all."""
    rows = (row for n in range(len(one), -1, -1) for row in itertools.combinations(one, n))
    return next(len(row) for row in rows if all(number in rest for rest in [iter(other)] for number in row))


def test_refinement_aligns_a_longest_common_row_in_order():
    draw = random.Random(0)
    for _ in range(100):
        ids = [[100, *(draw.randint(0, 3) for _ in range(draw.randint(0, 5))), 101] for _ in range(2)]
        mapper, blend = refinement_mapper(*ids, 10)
        pairs = [(int(i), j) for j, i in enumerate(mapper.argmax(0)) if blend[j] and j < len(ids[1])]
        assert all(ids[0][i] == ids[1][j] for i, j in pairs)
        assert [i for i, _ in pairs] == sorted({i for i, _ in pairs})
        assert len(pairs) == common(*ids)
        assert pairs[0] == (0, 0) and pairs[-1] == (len(ids[0]) - 1, len(ids[1]) - 1)
        assert torch.equal(mapper.sum(0), blend)
        for official in (False, True):
            same = refinement_mapper(ids[0], ids[0], 10, official_padding=official)
            assert torch.equal(same[0], torch.eye(10)) and torch.equal(same[1], torch.ones(10))


def test_refinement_takes_the_first_of_repeated_words():
    mapper, blend = refinement_mapper([0, 5, 6, 1], [0, 5, 6, 5, 6, 1], 8)
    assert blend.tolist() == [1, 1, 1, 0, 0, 1, 1, 1]
    assert mapper[:, :6].nonzero().tolist() == [[0, 0], [1, 1], [2, 2], [3, 5]]


def test_of_two_words_that_changed_places_the_later_of_the_source_is_kept():
    mapper, blend = refinement_mapper([0, 5, 6, 1], [0, 6, 5, 1], 4)
    assert blend.tolist() == [1, 1, 0, 1]
    assert mapper.nonzero().tolist() == [[0, 0], [2, 1], [3, 3]]


def test_padding_keeps_its_own_map_where_the_source_has_words():
    ids = [0, 5, 6, 7, 1], [0, 5, 1]
    blend = refinement_mapper(*ids, 8)[1]
    mapper, official = refinement_mapper(*ids, 8, official_padding=True)
    assert blend.tolist() == [1, 1, 1, 0, 0, 1, 1, 1] and official.tolist() == [1] * 8
    assert mapper[3, 3] == mapper[4, 4] == 1  # a word and the end
    with pytest.raises(UserError, match="a prompt has 5 tokens and a row 4"):
        refinement_mapper(*ids, 4)


def test_gates_open_in_their_part_of_the_steps():
    spans = clip().spans("a pea soup on a mat")
    assert word_gates(0.8, spans, 50, 77).sum(0).tolist() == [40] * 77
    assert word_gates(0.58, spans, 50, 77).sum(0).tolist() == [29] * 77  # 0.58 * 50 is below 29
    assert word_gates(1, spans, 7, 77).min() == 1 and word_gates(0, spans, 7, 77).max() == 0
    assert word_gates((0.2, 0.6), spans, 10, 8)[:, 0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    windows = {"default_": 0.5, "pea soup": (0.25, 1), "a": 0}
    gates = word_gates(windows, spans, 4, 9)
    assert gates.shape == (4, 9)
    assert gates[:, 0].tolist() == gates[:, 4].tolist() == gates[:, 8].tolist() == [1, 1, 0, 0]
    assert gates[:, 2].tolist() == gates[:, 3].tolist() == [0, 1, 1, 1]
    assert gates[:, 1].tolist() == gates[:, 5].tolist() == [0, 0, 0, 0]
    assert windows == {"default_": 0.5, "pea soup": (0.25, 1), "a": 0}
    assert word_gates({"soup": 0}, spans, 4, 9)[:, 0].tolist() == [1, 1, 1, 1]
    assert word_gates({"soup": 0, "pea soup": 1}, spans, 4, 9).min() == 1  # the later entry counts


def test_official_gates_round_otherwise():
    spans = clip().spans("a cat")
    assert word_gates(0.99, spans, 50, 77, official=True)[:50].sum(0).max() == 50
    assert word_gates(0.99, spans, 50, 77).sum(0).max() == 49
    assert word_gates(0.5, spans, 7, 77, official=True).shape == (8, 77)


def test_windows_and_words_of_gates_are_checked():
    spans = clip().spans("a cat")
    for window in (1.5, -0.1, (0.6, 0.2), float("nan")):
        with pytest.raises(UserError, match="the window of 'cat' is .*; give a fraction, or"):
            word_gates({"cat": window}, spans, 10, 77)
    with pytest.raises(UserError, match="the window of 'default_' is 2"):
        word_gates(2, spans, 10, 77)
    with pytest.raises(UserError, match=r"'cats' is not in the prompt 'a cat' \(nearest: cat\)"):
        word_gates({"cats": 0.5}, spans, 10, 77)
    with pytest.raises(UserError, match="steps is 0"):
        word_gates(0.5, spans, 0, 77)


def test_the_equalizer_has_a_factor_for_every_token_of_a_word():
    spans = clip().spans("a rhinoceros and a lasagne")
    factors = equalizer({"rhinoceros": 5, "a": -1.5}, spans, 12)
    assert factors.tolist() == [1, -1.5, 5, 5, 5, 1, -1.5, 1, 1, 1, 1, 1]
    assert equalizer({}, spans, 12).tolist() == [1] * 12
    assert equalizer({"a": 2, "a lasagne": 3}, spans, 12).tolist() == [1, 2, 1, 1, 1, 1, 3, 3, 3, 1, 1, 1]
    with pytest.raises(UserError, match=r"'lasagna' is not in the prompt .*\(nearest: lasagne\)"):
        equalizer({"lasagna": 2}, spans, 12)
    with pytest.raises(UserError, match="the factor of 'a' is inf"):
        equalizer({"a": float("inf")}, spans, 12)
    with pytest.raises(UserError, match="the factor of 'a' is nan"):
        equalizer({"a": float("nan")}, spans, 12)

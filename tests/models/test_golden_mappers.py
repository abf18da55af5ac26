"""Words find the tokens, and prompts get the mappers and gates, that Prompt-to-Prompt's own code gives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.models import ClipText, ClipTextConfig
from steerdiff.models.alignment import (
    DEFAULT,
    Span,
    find,
    refinement_mapper,
    replacement_mapper,
    spans_of,
    word_gates,
)

from ..helpers import golden_files, load_golden

FILES = golden_files("p2p/mappers_*")
LENGTH = 77
Spans = Callable[[str], list[Span]]


def toy_spans(text: str) -> list[Span]:
    """The words of the toy tokenizer: those of more than 6 letters are cut in pieces of 4."""
    words = text.split(" ")
    cuts = ([word[i : i + 4] for i in range(0, len(word), 4)] if len(word) > 6 else [word] for word in words)
    return spans_of(list(cuts))


def clip_spans(text: str) -> list[Span]:
    with torch.device("meta"):
        return ClipText(ClipTextConfig(layers=1)).spans(text)


@pytest.fixture(params=FILES, ids=lambda path: Path(path).stem)
def golden(request) -> tuple[dict[str, Any], dict[str, Any], Spans]:
    arrays, meta = load_golden(request.param)
    return arrays, meta, toy_spans if "toy" in request.param.stem else clip_spans


def test_words_have_the_official_tokens(golden):
    _, meta, spans_in = golden
    for case in meta["word_inds"].values():
        spans = spans_in(case["text"])
        if isinstance(case["word"], int):
            span = spans[case["word"]]
            assert list(range(span.start, span.stop)) == case["inds"]
        elif case["inds"]:
            assert list(find(spans, case["word"])) == case["inds"]
        else:  # the official code goes on without the word
            with pytest.raises(UserError, match=f"'{case['word']}' is not in the prompt"):
                find(spans, case["word"])


def test_replacement_mappers_with_the_official_tail_are_the_official_ones(golden):
    arrays, meta, spans_in = golden
    for number, case in meta["replace"].items():
        source, target = map(spans_in, case["prompts"])
        mapper = replacement_mapper(source, target, LENGTH, official_tail=True)
        np.testing.assert_allclose(mapper.numpy(), arrays[f"replace_{number}_mapper"], rtol=0, atol=1e-7)


def test_without_the_official_tail_only_what_follows_the_last_changed_word_differs(golden):
    arrays, meta, spans_in = golden
    differ = 0
    for number, case in meta["replace"].items():
        source, target = map(spans_in, case["prompts"])
        mapper, official = (
            replacement_mapper(source, target, LENGTH),
            torch.from_numpy(arrays[f"replace_{number}_mapper"]),
        )
        same_lengths = source[-1].stop == target[-1].stop
        assert torch.equal(mapper, official) == same_lengths
        last = max(new.stop for old, new in zip(source, target, strict=True) if old.word != new.word)
        assert torch.equal(mapper[:, :last], official[:, :last])
        differ += not same_lengths
    assert differ >= 1


def columns(mapper: Tensor, blend: Tensor) -> Tensor:
    """The row of source tokens that the official code keeps: -1 where a token is new."""
    assert torch.equal(mapper.sum(0), blend) and set(mapper.unique().tolist()) <= {0.0, 1.0}
    return torch.where(blend == 1, mapper.argmax(0), -1)


def test_refinement_mappers_with_the_official_padding_are_the_official_ones(golden):
    arrays, meta, _ = golden
    for number, case in meta["refine"].items():
        mapper, blend = refinement_mapper(*case["ids"], LENGTH, official_padding=True)
        np.testing.assert_array_equal(columns(mapper, blend).numpy(), arrays[f"refine_{number}_mapper"])
        np.testing.assert_array_equal(blend.numpy(), arrays[f"refine_{number}_alphas"])


def test_without_the_official_padding_none_follows_a_word(golden):
    arrays, meta, _ = golden
    differ = 0
    for number, case in meta["refine"].items():
        source, target = case["ids"]
        rows = columns(*refinement_mapper(source, target, LENGTH))
        official = torch.from_numpy(arrays[f"refine_{number}_mapper"]).long()
        padding = torch.arange(LENGTH) >= len(target)
        follows_text = padding & (official < len(source))
        assert torch.equal(rows, official.masked_fill(follows_text, -1))
        differ += bool(follows_text.any())
    assert differ == 1  # in one case the source is longer


def test_official_gates_are_the_official_ones(golden):
    arrays, meta, spans_in = golden
    for number, case in meta["alpha"].items():
        windows = case["cross_replace_steps"]
        for e, prompt in enumerate(case["prompts"][1:]):
            gates = word_gates(windows, spans_in(prompt), case["num_steps"], LENGTH, official=True)
            expected = arrays[f"alpha_{number}"].reshape(case["num_steps"] + 1, -1, LENGTH)[:, e]
            np.testing.assert_array_equal(gates.numpy(), expected)
    assert any(isinstance(case["cross_replace_steps"], dict) for case in meta["alpha"].values())
    assert DEFAULT in meta["alpha"]["1"]["cross_replace_steps"]


def test_golden_mappers_are_there():
    assert len(FILES) >= 2

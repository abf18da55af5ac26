"""Two prompts become the attention edits of the official controllers, step by step."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from steerdiff import UserError
from steerdiff.guidance.word_edits import WordEdits, WordPairing, word_rows
from steerdiff.models.clip_text import ClipText
from steerdiff.models.text import TextConfig, WordEncoder
from steerdiff.models.text_config import ClipTextConfig

from ..helpers import golden_files, load_golden

FILES = golden_files("p2p/edit_*")
WORDS = WordEncoder(TextConfig(words=("a", "red", "cat", "dog", "on", "mat"), width=8, depth=1, heads=2, length=10))


@functools.cache
def clip_words(length: int) -> ClipText:
    return ClipText(ClipTextConfig(width=8, heads=1, layers=1, length=length))


def edits(prompt: str, target: str, steps: int = 10, **fields: Any) -> WordEdits:
    return WordPairing(**fields).edits(WORDS, [prompt], [target], steps=steps, length=10)


@pytest.mark.parametrize("path", FILES, ids=lambda path: Path(path).stem)
@pytest.mark.parametrize("kind", ["", "reweight_", "reweight_only_"])
def test_prompts_give_the_maps_of_the_official_controllers(path: Path, kind: str) -> None:
    arrays, meta = load_golden(path)
    length, (prompt, target) = meta["max_len"], meta["prompts"]
    windows = {key: tuple(w) if isinstance(w, list) else w for key, w in meta["cross_replace_steps"].items()}
    pairing = WordPairing(
        pairing="reweight" if kind == "reweight_only_" else meta["kind"],
        windows=windows,
        factors={target.split()[-1]: 3.0} if kind else {},
        official=True,
    )
    made = pairing.edits(clip_words(length), [prompt], [target], steps=meta["num_steps"], length=length)
    attention = torch.from_numpy(arrays["in.attn"])
    steps = [step for step in range(meta["num_steps"]) if f"out.{kind}step{step}" in arrays]
    assert len(steps) >= 4
    for step in steps:
        edit = made.at(step)
        maps = attention[1:] if edit is None else edit.edited(attention[:1], attention[1:])
        expected = torch.from_numpy(arrays[f"out.{kind}step{step}"])
        torch.testing.assert_close(maps, expected, rtol=0, atol=1e-6)


def test_the_published_windows_edit_forty_of_fifty_steps_and_copy_self_attention_in_twenty() -> None:
    made = edits("a cat", "a dog", 50, windows=0.8, self_window=0.4, self_cells=256)
    steps = [made.at(step) for step in range(50)]
    assert [edit is not None and edit.cross for edit in steps] == [True] * 40 + [False] * 10
    assert [0 if edit is None else edit.self_tokens for edit in steps] == [256] * 20 + [0] * 30


def test_a_window_may_begin_later_and_self_attention_be_copied_alone() -> None:
    made = edits("a cat", "a dog", windows=(0.5, 0.7), self_window=(0.2, 0.6), self_cells=64, cross_cells=16)
    steps = [made.at(step) for step in range(10)]
    assert [edit is not None and edit.cross for edit in steps] == [False] * 5 + [True] * 2 + [False] * 3
    assert [edit is not None and edit.self_tokens == 64 for edit in steps] == [False] * 2 + [True] * 4 + [False] * 4
    assert {edit.cross_tokens for edit in steps if edit is not None and edit.cross} == {16}


def test_as_many_words_are_replaced_and_others_aligned_unless_it_is_said() -> None:
    swapped = edits("a cat", "a dog").at(0)
    assert swapped is not None and swapped.mapper is None and swapped.blend is None  # word for word
    longer = edits("a cat", "a red cat").at(0)
    assert longer is not None and longer.blend is not None
    assert longer.blend[0].tolist()[:5] == [1, 1, 0, 1, 1]  # begin, a, red, cat, end
    aligned = edits("a cat", "a dog", pairing="refine").at(0)
    assert aligned is not None and aligned.blend is not None and aligned.blend[0].tolist()[:4] == [1, 1, 0, 1]
    with pytest.raises(UserError, match="use refine"):
        edits("a cat", "a red cat", pairing="replace")


def test_a_token_that_the_network_may_not_look_at_is_not_edited() -> None:
    seen = torch.arange(10)[None] < 4
    made = WordPairing(pairing="reweight").edits(WORDS, ["a red cat"], ["a cat"], steps=2, length=10, seen=seen)
    edit = made.at(0)
    assert edit is not None and edit.gate is not None and edit.gate[0].tolist() == [1.0] * 4 + [0.0] * 6


def test_words_are_marked_in_those_prompts_that_have_them() -> None:
    rows = word_rows(WORDS, ["a cat on a mat", "a red dog on a mat"], ["cat", "red dog", "mat"], 10)
    assert rows[0].nonzero().flatten().tolist() == [2, 5]
    assert rows[1].nonzero().flatten().tolist() == [2, 3, 6]
    with pytest.raises(UserError, match="'mut' is not in the prompt 'a dog'"):
        word_rows(WORDS, ["a cat", "a dog"], ["mut"], 10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factors": {"cot": 2.0}}, "'cot' is not in the prompt 'a dog'"),
        ({"windows": {"cat": 0.5}}, "'cat' is not in the prompt 'a dog'"),
        ({"windows": 1.5}, "give a fraction"),
        ({"self_window": (0.5, 0.2)}, r"self_replace_steps is \(0.5, 0.2\)"),
        ({"pairing": "swap"}, "pairing is 'swap'; known are auto, replace, refine, reweight"),
    ],
)
def test_words_and_windows_that_do_not_fit_are_errors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        edits("a cat", "a dog", **fields)

"""A model with a new word, and deltas that carry words and text encoders besides networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from steerdiff import UserError
from steerdiff.guidance import Model
from steerdiff.methods.finetuned import copy_of, identity, model_delta, with_delta
from steerdiff.methods.new_words import with_new_word
from steerdiff.models.clip_text import ClipText
from steerdiff.models.delta import load_delta, save_delta
from steerdiff.models.text_config import ClipTextConfig

from ..guidance.toys import formula_model, tiny_text_model

DRAW: dict[str, Any] = {"steps": 3, "seed": 5}


def shifted(model: Model, *, text: bool) -> Model:
    """A copy with other weights in the network, and in the text encoder if asked."""
    copied = copy_of(model, shares=False, text=True)
    parts = [copied.network, copied.text] if text else [copied.network]
    with torch.no_grad():
        for part in parts:
            for parameter in cast(nn.Module, part).parameters():
                parameter.add_(0.01 * torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))
    return copied


def test_a_word_is_added_in_a_copy_and_draws_what_no_other_word_does() -> None:
    model = tiny_text_model()
    named = with_new_word(model, "lynx")
    assert identity(named) == identity(model)
    assert torch.equal(named.sample("a cat", **DRAW), model.sample("a cat", **DRAW))
    drawn = named.sample("a lynx", **DRAW)
    assert not torch.equal(drawn, with_new_word(model, "ibex").sample("a ibex", **DRAW))
    assert torch.equal(drawn, with_new_word(model, "lynx").sample("a lynx", **DRAW))
    with pytest.raises(UserError, match="does not know: 'lynx'"):
        model.sample("a lynx", **DRAW)


def test_a_new_embedding_has_the_mean_and_the_spread_of_those_that_are_known() -> None:
    model = tiny_text_model()
    text = cast(Any, model.text)
    with torch.no_grad():
        text.embedding.weight[3:] = 2 + 0.1 * text.embedding.weight[3:]
    rows = torch.stack([cast(Any, with_new_word(model, f"w{k}").text).embedding.weight[-1] for k in range(100)])
    known = text.embedding.weight[3:]
    error = known.std(correction=0) / 10  # of a mean of 100
    assert float((rows.mean(0) - known.mean(0)).abs().max()) < 5 * float(error)
    torch.testing.assert_close(rows.std(0), known.std(0, correction=0), rtol=0.36, atol=0)  # 5 / sqrt(2 * 100)


def test_a_word_that_can_be_read_already_leaves_the_model_as_it_is() -> None:
    model = tiny_text_model()
    assert with_new_word(model, "cat") is model
    reads = replace(model, text=ClipText(ClipTextConfig(width=16, heads=1, layers=1)))
    assert with_new_word(reads, "sks") is reads


def test_a_delta_brings_network_text_encoder_and_word_and_fits_the_model_without_them(tmp_path: Path) -> None:
    model = tiny_text_model()
    tuned = shifted(with_new_word(model, "lynx"), text=True)
    delta = model_delta(model, tuned, method="dreambooth", settings={"identifier": "lynx"})
    read = load_delta(save_delta(tmp_path / "delta.safetensors", delta))
    assert read.base == identity(model) and read.forms["text.words.lynx"] == "added"
    again = with_delta(model, read)
    for prompt in ("a lynx", "a red cat"):
        torch.testing.assert_close(again.sample(prompt, **DRAW), tuned.sample(prompt, **DRAW), rtol=0, atol=1e-3)
        assert not torch.allclose(again.sample("a red cat", **DRAW), model.sample("a red cat", **DRAW), atol=1e-3)
    with pytest.raises(UserError, match="does not know: 'lynx'"):
        model.sample("a lynx", **DRAW)
    with pytest.raises(UserError, match="the delta was tuned from weights"):
        with_delta(again, read)


def test_a_delta_of_the_network_alone_still_brings_the_word() -> None:
    model = tiny_text_model()
    tuned = shifted(with_new_word(model, "lynx"), text=False)
    delta = model_delta(model, tuned, method="unitune")
    assert [name for name in delta.forms if name.startswith("text.")] == ["text.words.lynx"]
    drawn = with_delta(model, delta).sample("a lynx", **DRAW)
    torch.testing.assert_close(drawn, tuned.sample("a lynx", **DRAW), rtol=0, atol=1e-3)


def test_the_change_of_a_text_encoder_is_stored_by_factors_too() -> None:
    model = tiny_text_model()
    tuned = shifted(model, text=True)  # of rank 2, as a ramp over rows and columns is
    delta = model_delta(model, tuned, method="x", rank=2)
    assert delta.forms["text.layers.0.ff.0.weight"] == "low-rank"
    drawn = with_delta(model, delta).sample("a cat", **DRAW)
    torch.testing.assert_close(drawn, tuned.sample("a cat", **DRAW), rtol=0, atol=2e-2)


def test_words_that_a_model_cannot_take_are_errors() -> None:
    model = tiny_text_model()
    delta = model_delta(model, with_new_word(model, "lynx"), method="x")
    with pytest.raises(UserError, match="'lynx' is a word that the model knows already"):
        with_delta(with_new_word(model, "lynx"), delta)
    with pytest.raises(UserError, match="changes a text encoder, which tiny has not"):
        with_delta(replace(model, text=None), delta)
    with pytest.raises(UserError, match="the new word is 'two words'"):
        with_new_word(model, "two words")
    with pytest.raises(UserError, match="plain has no text encoder, so that no word can name a subject"):
        with_new_word(formula_model(lambda x, t: x, 8, name="plain"), "lynx")

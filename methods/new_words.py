"""A model that is given a word, for what it does not know yet."""

from __future__ import annotations

from dataclasses import replace

from steerdiff.errors import UserError, require
from steerdiff.guidance import Model
from steerdiff.models.new_words import with_words
from steerdiff.models.text import SPECIAL, WordEncoder
from steerdiff.train.randomness import SampleRandom

__all__ = ["with_new_word"]


def with_new_word(model: Model, word: str) -> Model:
    """Return the model with a word that can name a subject, which it may not know yet.

    A text encoder with a vocabulary of pieces reads any word, and one with a closed list of words may have it: the
    model is returned as it is. (The shipped model's list ends with eight words that it has never seen in a caption,
    such as "sks"; `steerdiff.models.new_words.rare_words` finds some of a vocabulary.) Else the list gains the word, in
    a copy: its embedding is a draw from a Gaussian with the mean and the spread of the others', which depends on the
    word alone. The network is the same, so a delta of the model fits both; `model_delta` stores the new embedding, and
    `with_delta` brings it back.

    Raises:
        UserError: The model has no text encoder, or this is no single word.
    """
    text = model.text
    if text is None:
        raise UserError(f"{model.name} has no text encoder, so that no word can name a subject; use one that reads")
    require(word.split() == [word], f"the new word is {word!r}; give one word without spaces")
    if not isinstance(text, WordEncoder) or word in text.token_number:
        text.tokenize([word])  # for its errors
        return model
    known = text.embedding.weight.detach()[SPECIAL:]
    draw = SampleRandom(0, [0]).normal(f"word {word}", known.shape[1:])[0].to(known)
    row = known.mean(0) + known.std(0, correction=0) * draw
    return replace(model, text=with_words(text, {word: row}))

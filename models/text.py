"""The text encoder of the embedded domain: a small transformer over whole words, trained together with its UNet."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from steerdiff.errors import UserError, require

from .alignment import Span

__all__ = ["TextConfig", "WordEncoder"]

PAD, BEGIN, END = 0, 1, 2
SPECIAL = 3


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Vocabulary and shape of a ``WordEncoder``."""

    words: tuple[str, ...]  #: the words it knows, lower case; their order is their token number minus 3
    width: int = 128  #: width of the text states
    depth: int = 2  #: transformer layers
    heads: int = 4  #: attention heads
    length: int = 24  #: tokens of a prompt, with its begin and end marks

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))
        require(len(set(self.words)) == len(self.words) > 0, "words is empty or names a word twice")
        require(self.width % self.heads == 0, f"width {self.width} does not divide into {self.heads} heads")
        require(self.length >= 3, f"length is {self.length}; a prompt needs at least 3 tokens")


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ff = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return [B, L, width]; ``mask`` [B, L] is True where a token may be seen."""
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b n (s m d) -> s b m n d", s=3, m=self.heads)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = x + self.proj(rearrange(out, "b m n d -> b n (m d)"))
        x = x + self.ff(self.norm2(x))
        return x


class WordEncoder(nn.Module):
    """Turn prompts into text states, one a word. The empty prompt is the unconditional one."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.token_number = {word: index + SPECIAL for index, word in enumerate(config.words)}
        self.embedding = nn.Embedding(SPECIAL + len(config.words), config.width)
        self.position = nn.Parameter(torch.zeros(config.length, config.width))
        self.layers = nn.ModuleList(Layer(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.position, std=0.1)

    def words(self, prompt: str) -> list[str]:
        """Split a prompt into the words it is made of; commas and full stops are dropped, case is ignored."""
        return prompt.lower().replace(",", " ").replace(".", " ").split()

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return token numbers [B, length] and the mask [B, length], True at the words and both marks.

        Raises:
            UserError: A prompt has unknown words (named, with the nearest known ones) or too many words.
        """
        require(not isinstance(prompts, str), "prompts is a string; give a list of strings")
        ids = torch.full((len(prompts), self.config.length), PAD)
        for row, prompt in enumerate(prompts):
            numbers = self.token_ids(prompt)
            ids[row, : len(numbers)] = torch.tensor(numbers)
        return ids, ids != PAD

    def token_ids(self, prompt: str) -> list[int]:
        """Return the token numbers of a prompt with both marks, without padding; errors as ``tokenize``."""
        words = self.words(prompt)
        self._check(prompt, words)
        return [BEGIN, *(self.token_number[word] for word in words), END]

    def spans(self, prompt: str) -> list[Span]:
        """Return the words of a prompt with the positions of their tokens, one each; errors as ``tokenize``."""
        words = self.words(prompt)
        self._check(prompt, words)
        return [Span(word, place, place + 1) for place, word in enumerate(words, 1)]

    def _check(self, prompt: str, words: list[str]) -> None:
        unknown = [word for word in words if word not in self.token_number]
        if unknown:
            hints = []
            for word in dict.fromkeys(unknown):
                near = difflib.get_close_matches(word, self.config.words, n=3, cutoff=0.5)
                hints.append(f"'{word}'" + (f" (nearest: {', '.join(near)})" if near else ""))
            raise UserError(
                f"the prompt '{prompt}' has words that this model does not know: {', '.join(hints)}; "
                "`steerdiff info` lists the words it knows"
            )
        limit = self.config.length - 2
        require(
            len(words) <= limit,
            f"the prompt '{prompt}' has {len(words)} words; this model reads at most {limit}: shorten it",
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return text states [B, length, width] for ``ids`` and ``mask`` [B, length] as ``tokenize`` gives them."""
        x = self.embedding(ids) + self.position
        for layer in self.layers:
            x = layer(x, mask)
        states: Tensor = self.norm(x)
        return states

"""Latent diffusion's own text transformer (text2img-large), trained together with its UNet on BERT's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from steerdiff.errors import UserError, require

from .alignment import Span, spans_of
from .text_config import BertTextConfig
from .tokenizers import WordPiece, token_table

__all__ = ["BertText"]


class BertText(nn.Module):
    """Turn prompts into text states [B, 77, width]. Parameters have latent-diffusion's names less ``transformer.``.

    Source: Rombach et al. 2022, appendix E.2.1: attention without a mask, so that padding is seen too.
    """

    def __init__(self, config: BertTextConfig, vocab: Sequence[str] | None = None) -> None:
        """Make the encoder.

        Args:
            config: Its shape.
            vocab: The word pieces in the order of their numbers (`read_vocab`); without them it reads numbers only.

        Raises:
            UserError: The vocabulary has not as many pieces as the embedding, or lacks a mark.
        """
        super().__init__()
        self.config = config
        require(
            vocab is None or len(vocab) == config.vocab_size,
            f"the vocabulary has {len(vocab or ())} pieces; this model has {config.vocab_size}",
        )
        self.word_pieces = None if vocab is None else WordPiece(vocab)
        self.token_emb = nn.Embedding(config.vocab_size, config.width)
        self.pos_emb = nn.Module()
        self.pos_emb.emb = nn.Embedding(config.length, config.width)
        self.attn_layers = nn.Module()
        self.attn_layers.layers = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(config.width), part])
            for _ in range(config.layers)
            for part in (_Attention(config), _FeedForward(config.width))
        )
        self.norm = nn.LayerNorm(config.width)
        for embedding in (self.token_emb, self.pos_emb.emb):
            nn.init.normal_(embedding.weight, std=0.02)

    def tokenize(self, texts: Sequence[str], *, truncates: bool = False) -> tuple[Tensor, None]:
        """Return token numbers [B, length]. There is no mask: the network was trained to see the padding too.

        Args:
            texts: The prompts; "" is the empty one.
            truncates: Cut a prompt that is too long, as the official tools do without a word, instead of an error.

        Raises:
            UserError: A prompt is too long or no string, or there is no vocabulary.
        """
        pieces = self._vocabulary()
        return token_table(texts, pieces.words, pieces.frame(self.config.length), truncates=truncates), None

    def token_ids(self, prompt: str) -> list[int]:
        """Return the token numbers of a prompt with begin and end, without padding; errors as ``tokenize``."""
        self.tokenize([prompt])
        pieces = self._vocabulary()
        frame = pieces.frame(self.config.length)
        return [frame.begin, *(number for _, numbers in pieces.words(prompt) for number in numbers), frame.end]

    def spans(self, prompt: str) -> list[Span]:
        """Return the words of a prompt with the positions of their tokens; errors as ``tokenize``."""
        self.tokenize([prompt])
        return spans_of(self._vocabulary().chunks(prompt))

    def pieces(self, text: str) -> list[str]:
        """Return what each token of a prompt stands for, without begin, end and padding.

        Together they are the cleaned prompt without spaces, so that words find their tokens.
        """
        return [piece for pieces in self._vocabulary().chunks(text) for piece in pieces]

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return text states [B, L, width] for ``ids`` [B, L] as ``tokenize`` gives them.

        Raises:
            UserError: There is a mask, or more tokens than positions.
        """
        require(mask is None, "this text encoder reads the padding too; call it without a mask")
        length = ids.shape[1]
        require(length <= self.config.length, f"ids has {length} tokens; this model has {self.config.length} positions")
        x = self.token_emb(ids) + self.pos_emb.emb(torch.arange(length, device=ids.device))  # type: ignore[operator]
        for norm, part in self.attn_layers.layers:  # type: ignore[union-attr]
            x = x + part(norm(x))
        states: Tensor = self.norm(x)
        return states

    def _vocabulary(self) -> WordPiece:
        if self.word_pieces is None:
            raise UserError(
                "this text encoder has no vocabulary; put the vocab.txt of bert-base-uncased beside the weights, or "
                "name the file"
            )
        return self.word_pieces


class _Attention(nn.Module):
    """Every token attends to every token."""

    def __init__(self, config: BertTextConfig) -> None:
        super().__init__()
        self.heads = config.heads
        inner = config.heads * config.head_channels
        self.to_q = nn.Linear(config.width, inner, bias=False)
        self.to_k = nn.Linear(config.width, inner, bias=False)
        self.to_v = nn.Linear(config.width, inner, bias=False)
        self.to_out = nn.Linear(inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            rearrange(project(x), "b n (m d) -> b m n d", m=self.heads) for project in (self.to_q, self.to_k, self.to_v)
        )
        out = functional.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.to_out(rearrange(out, "b m n d -> b n (m d)"))
        return mixed


class _FeedForward(nn.Module):
    """Two linear maps with a GELU between, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU())
        self.net = nn.Sequential(first, nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

"""CLIP's text tower as Stable Diffusion reads it: the states of all tokens, not one vector."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from steerdiff.errors import require

from .alignment import Span, spans_of
from .text_config import ClipTextConfig
from .tokenizers import CLIP_VOCABULARY, Frame, clip_chunks, clip_words, token_table

__all__ = ["ClipText"]

BEGIN, END = CLIP_VOCABULARY - 2, CLIP_VOCABULARY - 1


class ClipText(nn.Module):
    """Turn prompts into text states [B, 77, width]. Parameters have open_clip's names.

    Source: Radford et al. 2021, section 2.4; Rombach et al. 2022 for Stable Diffusion 1.x (the last block's states);
    Stable Diffusion 2.x reads those before the last block, then the final norm. The block that is not read stays in
    the module, so that its weights survive a round trip.
    """

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.zeros(config.length, config.width))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.ln_final = nn.LayerNorm(config.width)
        if config.projection is not None:
            self.text_projection = nn.Parameter(torch.zeros(config.width, config.projection))
            nn.init.normal_(self.text_projection, std=config.width**-0.5)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)

    def tokenize(self, texts: Sequence[str], *, truncates: bool = False) -> tuple[Tensor, None]:
        """Return token numbers [B, length]. There is no mask: the network was trained to see the padding too.

        Args:
            texts: The prompts; "" is the empty one.
            truncates: Cut a prompt that is too long, as the official tools do without a word, instead of an error.

        Raises:
            UserError: A prompt is too long or no string, or the vocabulary is not CLIP's.
        """
        self._check_vocabulary()
        undoes_html = self.config.undoes_html
        frame = Frame(begin=BEGIN, end=END, pad=self.config.pad, length=self.config.length)
        return token_table(texts, lambda text: clip_words(text, undoes_html), frame, truncates=truncates), None

    def token_ids(self, prompt: str) -> list[int]:
        """Return the token numbers of a prompt with begin and end, without padding; errors as ``tokenize``."""
        self.tokenize([prompt])
        words = clip_words(prompt, self.config.undoes_html)
        return [BEGIN, *(number for _, numbers in words for number in numbers), END]

    def spans(self, prompt: str) -> list[Span]:
        """Return the words of a prompt with the positions of their tokens; errors as ``tokenize``."""
        self.tokenize([prompt])
        return spans_of(clip_chunks(prompt, self.config.undoes_html))

    def pieces(self, text: str) -> list[str]:
        """Return what each token of a prompt stands for, without begin, end and padding.

        Together they are the cleaned prompt without spaces, so that words find their tokens.
        """
        self._check_vocabulary()
        return [piece for pieces in clip_chunks(text, self.config.undoes_html) for piece in pieces]

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return text states [B, L, width] for ``ids`` [B, L] as ``tokenize`` gives them.

        Raises:
            UserError: There is a mask, or more tokens than positions.
        """
        require(mask is None, "CLIP's text tower reads the padding too; call it without a mask")
        blocks = self.config.layers - (1 if self.config.reads == "penultimate" else 0)
        return self._states(ids, blocks)

    def pooled(self, ids: Tensor) -> Tensor:
        """Return the state of the first end token after all blocks, projected where there is a projection.

        Args:
            ids: Token numbers [B, L]; the end token has the largest.

        Returns:
            [B, projection], or [B, width] without a projection.
        """
        states = self._states(ids, self.config.layers)
        vector = states[torch.arange(len(ids), device=ids.device), ids.argmax(dim=-1)]
        return vector if self.config.projection is None else vector @ self.text_projection

    def _states(self, ids: Tensor, blocks: int) -> Tensor:
        length = ids.shape[1]
        require(length <= self.config.length, f"ids has {length} tokens; this model has {self.config.length} positions")
        x = self.token_embedding(ids) + self.positional_embedding[:length]
        for block in list(self.transformer.resblocks)[:blocks]:  # type: ignore[arg-type]
            x = block(x)
        states: Tensor = self.ln_final(x)
        return states

    def _check_vocabulary(self) -> None:
        size = self.config.vocab_size
        require(
            size == CLIP_VOCABULARY,
            f"this model has {size} tokens and CLIP's vocabulary {CLIP_VOCABULARY}; give it token numbers instead of "
            "text",
        )


class _QuickGelu(nn.Module):
    """OpenAI's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class _Attention(nn.Module):
    """Each token attends to itself and those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        qkv = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(qkv, "b n (s m d) -> s b m n d", s=3, m=self.heads)
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed: Tensor = self.out_proj(rearrange(out, "b m n d -> b n (m d)"))
        return mixed


class _Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        width = config.width
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _Attention(width, config.heads)
        gelu = _QuickGelu() if config.activation == "quick_gelu" else nn.GELU()
        parts = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", gelu), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x

"""The configurations of the published text encoders; ``models/text.py`` holds that of the embedded model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from steerdiff.errors import require

__all__ = ["BertTextConfig", "ClassContextConfig", "ClipTextConfig"]

Activation = Literal["quick_gelu", "gelu"]
Reads = Literal["last", "penultimate"]


@dataclass(frozen=True, kw_only=True)
class ClipTextConfig:
    """Shape of a CLIP text tower and of its tokens. The defaults are Stable Diffusion 1.x's (OpenAI ViT-L/14).

    Source: Radford et al. 2021, section 2.4; for the layer that Stable Diffusion 2.x reads, its own configuration.
    """

    vocab_size: int = 49408  #: rows of the token embedding
    length: int = 77  #: tokens of a prompt with its two ends
    width: int = 768  #: channels of a token's state; the feed-forward is four times as wide
    heads: int = 12  #: attention heads
    layers: int = 12  #: transformer blocks in the file
    activation: Activation = "quick_gelu"  #: OpenAI's weights have the quick form
    reads: Reads = "last"  #: which block's output goes through the final norm to the UNet
    pad: int = 49407  #: id after the end of a prompt; Stable Diffusion 2.x pads with 0
    undoes_html: bool = False  #: read "&amp;" as "&", as open_clip's tokenizer does and transformers' does not
    projection: int | None = None  #: width of the projected text vector, where the file has one

    def __post_init__(self) -> None:
        """Reject impossible shapes and unknown names."""
        for name, kind in (("activation", Activation), ("reads", Reads)):
            value, known = getattr(self, name), get_args(kind)
            require(value in known, f"{name} is {value!r}; known are {', '.join(known)}")
        require(self.width % self.heads == 0, f"width {self.width} does not divide into {self.heads} heads")
        require(self.layers >= (1 if self.reads == "last" else 2), f"layers is {self.layers}; too few to read from")
        require(self.length >= 3, f"length is {self.length}; a prompt needs at least 3 tokens")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class BertTextConfig:
    """Shape of latent diffusion's own text transformer (text2img-large), which reads WordPiece tokens.

    Source: Rombach et al. 2022, appendix E.2.1, and the published configuration.
    """

    vocab_size: int = 30522  #: rows of the token embedding; bert-base-uncased's vocabulary
    length: int = 77  #: tokens of a prompt with its two ends
    width: int = 1280  #: channels of a token's state
    heads: int = 8  #: attention heads
    head_channels: int = 64  #: channels of one head
    layers: int = 32  #: transformer blocks

    def __post_init__(self) -> None:
        """Reject a length without room for a token."""
        require(self.length >= 3, f"length is {self.length}; a prompt needs at least 3 tokens")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class ClassContextConfig:
    """A class label as the one text state of a UNet with cross-attention (latent diffusion's cin256)."""

    classes: int = 1001  #: rows of the table; the last is the empty label of classifier-free guidance
    width: int = 512  #: channels of the state

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dataclasses.asdict(self)

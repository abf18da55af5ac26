"""The configuration of every UNet in the library: ADM's variants, latent diffusion's and Stable Diffusion's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from steerdiff.errors import UserError, require

__all__ = ["AutoencoderConfig", "EncoderUNetConfig", "Pool", "UNetConfig", "config_from_dict"]

#: How a classifier turns its features into logits (guided-diffusion's names).
Pool = Literal["attention", "adaptive", "spatial", "spatial_v2"]


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of a UNet. The defaults are guided-diffusion's; ``context_dim`` makes its attention SD's transformers.

    Source: Dhariwal & Nichol 2021, section 3 (ADM); Rombach et al. 2022, section 3.3 (cross-attention).
    """

    in_channels: int = 3  #: channels of x (9 for SD inpainting, 6 for ADM's upsamplers)
    out_channels: int = 3  #: channels of the output; twice the image's when the variance is learned
    model_channels: int = 128  #: base width, multiplied by channel_mult at each level
    channel_mult: tuple[float, ...] = (1, 2, 4, 8)  #: width of each level over model_channels; ADM-512 starts with 0.5
    num_res_blocks: int = 2  #: residual blocks of a level on the way down; one more on the way up
    attention_at: tuple[int, ...] = (4, 8)  #: downsampling factors that carry attention (the official class's meaning)
    num_heads: int = 1  #: attention heads where head_channels is None
    head_channels: int | None = None  #: channels of one head; overrides num_heads
    num_heads_upsample: int | None = None  #: heads of plain attention on the way up; None takes num_heads
    attention_order: Literal["legacy", "new"] = "legacy"  #: heads split before q, k, v or after; plain attention only
    scale_shift_norm: bool = False  #: time enters each block as scale and shift after its second norm (FiLM)
    resblock_updown: bool = False  #: residual blocks change the resolution, not single convolutions
    conv_resample: bool = True  #: a learned convolution when changing resolution; only without resblock_updown
    dropout: float = 0.0  #: dropout in residual blocks, in [0, 1)
    norm_eps: float = 1e-5  #: of the group norms outside transformers; DDPM has 1e-6
    time_features: Literal["cos_sin", "sin_cos"] = "cos_sin"  #: "sin_cos" is DDPM's order, with its frequencies
    pads_after: bool = False  #: strided convolutions pad below and to the right only, as DDPM's do
    num_classes: int | None = None  #: class labels y in [0, num_classes); None for no labels
    context_dim: int | None = None  #: width of the text states; None for a UNet without text
    transformer_depth: int = 1  #: transformer blocks at each attention place
    linear_projections: bool = False  #: transformers enter and leave by linear maps (SD 2.x) and not 1x1 convolutions
    self_attention_at: tuple[int, ...] | None = None  #: factors whose transformers keep self-attention; None for all
    positioned_queries: bool = False  #: queries of cross-attention also see where their cell lies (the embedded model)
    feed_forward_mult: int = 4  #: inner width of a transformer's gated feed-forward over its outer width
    unshuffle: int = (
        1  #: pixels of a grid cell per axis: x becomes 1/unshuffle of its size with square as many channels
    )

    def __post_init__(self) -> None:
        """Turn lists (from JSON) into tuples and reject impossible shapes."""
        for name in ("channel_mult", "attention_at", "self_attention_at"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        for name in ("in_channels", "out_channels", "model_channels", "num_res_blocks", "unshuffle", "num_heads"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(len(self.channel_mult) >= 1, "channel_mult is empty; give one multiplier for each level")
        require(0 <= self.dropout < 1, f"dropout is {self.dropout}; it must be in [0, 1)")
        for mult in self.channel_mult:
            width = int(mult * self.model_channels)
            require(width % 32 == 0, f"a level has {width} channels; group normalisation needs a multiple of 32")

    @property
    def divisor(self) -> int:
        """The number that height and width of x must be divisible by."""
        return int(self.unshuffle * 2 ** (len(self.channel_mult) - 1))

    @property
    def time_channels(self) -> int:
        """Width of the time embedding."""
        return 4 * self.model_channels

    def heads(self, channels: int, *, up: bool = False) -> int:
        """Return the number of attention heads of a place with ``channels`` channels."""
        if self.head_channels is not None:
            require(
                channels % self.head_channels == 0,
                f"attention over {channels} channels does not divide into heads of {self.head_channels}",
            )
            return channels // self.head_channels
        heads = self.num_heads_upsample if up and self.num_heads_upsample is not None else self.num_heads
        require(channels % heads == 0, f"attention over {channels} channels does not divide into {heads} heads")
        return heads

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class EncoderUNetConfig:
    """Shape of ADM's noisy classifier: the way down of a UNet, its middle, and a pool that gives logits.

    Source: Dhariwal & Nichol 2021, section 4.
    """

    trunk: UNetConfig  #: the way down; ``out_channels`` is the number of classes
    image_size: int  #: height and width in pixels; the attention pool has a position for each of its cells
    pool: Pool = "attention"  #: all published classifiers use the attention pool

    def __post_init__(self) -> None:
        """Check that the parts go together."""
        require(self.pool in get_args(Pool), f"pool is {self.pool!r}; known are {', '.join(get_args(Pool))}")
        require(
            self.image_size % self.trunk.divisor == 0,
            f"image_size is {self.image_size}; it must be divisible by {self.trunk.divisor}",
        )
        require(
            self.trunk.num_classes is None and self.trunk.context_dim is None,
            "a classifier sees neither labels nor text; leave num_classes and context_dim of its trunk unset",
        )
        require(
            self.pool != "attention" or self.trunk.head_channels is not None,
            "the attention pool needs head_channels (published: num_head_channels); all published classifiers have 64",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Shape of a first stage, which maps images to latents and back. The defaults are Stable Diffusion's.

    Source: Rombach et al. 2022, section 3.1; Esser et al. 2021 (VQ).
    """

    kind: Literal["kl", "vq"] = "kl"  #: a normal posterior, or a codebook
    in_channels: int = 3  #: channels of images
    channels: int = 128  #: base width, multiplied by channel_mult at each level
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)  #: width of each level; each level but the first halves the size
    num_res_blocks: int = 2  #: residual blocks of a level of the encoder; one more in the decoder
    attention_at: tuple[int, ...] = ()  #: downsampling factors that carry attention, beside the middle
    z_channels: int = 4  #: channels between the convolutions of encoder and decoder
    embed_dim: int = 4  #: channels of a latent
    codebook_size: int | None = None  #: vectors of a VQ codebook
    scale_factor: float = 0.18215  #: latents are multiplied by it on the way to the diffusion model

    def __post_init__(self) -> None:
        """Turn lists (from JSON) into tuples and reject impossible shapes."""
        for name in ("channel_mult", "attention_at"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        require(self.kind in ("kl", "vq"), f"kind is {self.kind!r}; known are 'kl' and 'vq'")
        require(self.scale_factor > 0, f"scale_factor is {self.scale_factor}; it must be positive")
        require(
            (self.codebook_size is not None) == (self.kind == "vq"),
            "codebook_size belongs to kind 'vq', and must be given there",
        )
        for mult in self.channel_mult:
            width = mult * self.channels
            require(width % 32 == 0, f"a level has {width} channels; group normalisation needs a multiple of 32")

    @property
    def factor(self) -> int:
        """Pixels of a latent cell per axis."""
        return int(2 ** (len(self.channel_mult) - 1))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dataclasses.asdict(self)


def config_from_dict(cls: type[Any], values: Mapping[str, Any], what: str) -> Any:
    """Build the frozen dataclass ``cls`` from a mapping; an unknown name is a ``UserError`` listing the known ones."""
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(f"{what} has unknown settings {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return cls(**values)

"""A whole CLIP, for guidance and scores: open_clip's classes built from local configuration, and their features."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import require

from .checkpoint import hash_of
from .clip_towers import ClipFeatures, tower_features
from .clip_words import word_table
from .published.spec import ClipConfig
from .tokenizers import CLIP_VOCABULARY, Frame, clip_words, token_table

__all__ = [
    "Clip",
    "build_clip",
    "clip_config",
    "clip_size",
    "image_features",
    "normalised",
    "prepare",
    "text_features",
    "tokenize_for",
]

#: Mean and standard deviation of the red, green and blue of images in [0, 1] that CLIP was trained with.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

ASK_GELU = "give quick_gelu=True for OpenAI's weights, False for those of LAION and most others"
PLAIN = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
FOREIGN = {"timm_model_name", "hf_model_name"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A CLIP with the vocabulary it reads: images and texts as vectors that point the same way where they fit.

    ``steerdiff.load`` gives one of every file of a CLIP.
    """

    network: Any  #: open_clip's ``CLIP``, in eval mode
    config: ClipConfig  #: what the network was built from
    words: tuple[str, ...] | None = None  #: its own vocabulary; None: CLIP's byte pairs
    name: str = "custom"  #: where the weights come from, for the record
    files: tuple[Path, ...] = ()  #: files of the weights, for the record

    @functools.cached_property
    def weights_hash(self) -> str | None:
        """SHA-256 of the weights' file, for the record."""
        return hash_of(self.files)

    @property
    def size(self) -> int:
        """Height and width in pixels of the images it sees."""
        return clip_size(self.network)

    def tokenize(self, texts: Sequence[str], *, truncates: bool = False) -> Tensor:
        """Return the token numbers of texts [B, L] on the device of the network.

        Args:
            texts: The texts.
            truncates: Cut a text that is too long instead of an error.

        Raises:
            UserError: A text is too long or no string, or has words that this CLIP's own vocabulary lacks.
        """
        if self.words is None:
            return tokenize_for(self.network, texts, truncates=truncates)
        ids = word_table(texts, self.words, self.network.context_length, truncates=truncates)
        return ids.to(self.network.token_embedding.weight.device)

    def image_features(self, image: Tensor) -> Tensor:
        """Return vectors of length 1, [B, D] float32, of images [B, 3, H, W] in [-1, 1] of any size; gradients flow.

        The shorter side becomes `size` and the middle of the longer one is kept.
        """
        return image_features(self.network, image)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return vectors of length 1, [B, D] float32, of texts. Raises UserError as `tokenize` does."""
        return text_features(self.network, self.tokenize(texts))

    def feature_maps(self, image: Tensor) -> ClipFeatures:
        """Return the maps of each stage and the vector, float32, of images [B, 3, H, W] in [-1, 1]; gradients flow.

        Raises:
            UserError: The image tower is neither one of CLIP's ResNets nor a plain vision transformer.
        """
        seen = prepare(image, self.size).to(self.network.token_embedding.weight.dtype)
        maps, vector = tower_features(self.network.visual, seen)
        return ClipFeatures(tuple(one.float() for one in maps), vector.float())


def clip_config(architecture: str, *, quick_gelu: bool | None = None) -> ClipConfig:
    """Return the configuration that open_clip bundles under a name; nothing is fetched.

    Args:
        architecture: Such as "ViT-B-32", "RN50x16" or "ViT-B-32-quickgelu".
        quick_gelu: The activation, where the name does not say it: True for OpenAI's weights, mostly False for others.

    Raises:
        UserError: The name is unknown, needs another package, or does not say the activation.
    """
    import open_clip

    near = difflib.get_close_matches(architecture, open_clip.list_models(), n=5, cutoff=0.3)
    require(
        architecture in near,
        f"'{architecture}' is not one of open_clip's architectures; the nearest are {', '.join(near)}",
    )
    values = dict(open_clip.get_model_config(architecture))
    foreign = (set(values) - PLAIN) | FOREIGN & {*values["vision_cfg"], *values["text_cfg"]}
    require(
        not foreign,
        f"'{architecture}' is no plain CLIP (it has {', '.join(sorted(foreign))}); use one such as ViT-B-32 or RN50",
    )
    named = values.pop("quick_gelu", None)
    require(
        None in (named, quick_gelu) or named == quick_gelu,
        f"quick_gelu is {quick_gelu}, but '{architecture}' has {named}; leave it out or take another architecture",
    )
    quick = named if quick_gelu is None else quick_gelu
    require(quick is not None, f"'{architecture}' does not say its activation; {ASK_GELU}")
    return ClipConfig(**values, quick_gelu=bool(quick))


def build_clip(config: ClipConfig) -> Any:
    """Return open_clip's ``CLIP`` for a configuration, in eval mode and without gradients of its weights.

    Under ``torch.device("meta")`` no memory is taken, except for the causal mask, which no file of weights holds.
    """
    import open_clip

    model = open_clip.CLIP(
        embed_dim=config.embed_dim,
        vision_cfg=dict(config.vision_cfg),
        text_cfg=dict(config.text_cfg),
        quick_gelu=config.quick_gelu,
    )
    mask = getattr(model, "attn_mask", None)
    if mask is not None and mask.is_meta:
        model.attn_mask = torch.full(mask.shape, float("-inf"), device="cpu").triu(1)
    return model.eval().requires_grad_(False)


def clip_size(clip: Any) -> int:
    """Return the height and width in pixels of the images that a CLIP sees."""
    size = clip.visual.image_size
    return int(size[0] if isinstance(size, Sequence) else size)


def prepare(image: Tensor, size: int) -> Tensor:
    """Turn images into what CLIP sees; gradients flow.

    The shorter side becomes ``size`` (bicubic, antialiased) and the middle of the longer one is kept, as in CLIP's own
    preprocessing, which rounds to 8 bits between and this does not.

    Args:
        image: [B, 3, H, W] in [-1, 1].
        size: Height and width in pixels, `clip_size`.

    Returns:
        [B, 3, size, size] of mean about 0 and variance about 1.

    Raises:
        UserError: The image has another shape.
    """
    fits = image.dim() == 4 and image.shape[1] == 3
    require(
        fits, f"image is {list(image.shape)}; expected [B, 3, H, W] in [-1, 1]. Load it with steerdiff.io.load_image"
    )
    height, width = image.shape[2:]
    if min(height, width) != size:
        shape = [max(size, round(side * size / min(height, width))) for side in (height, width)]
        image = functional.interpolate(image, shape, mode="bicubic", antialias=True)
    top, left = ((side - size) // 2 for side in image.shape[2:])
    image = image[:, :, top : top + size, left : left + size]
    return normalised(image)


def normalised(image: Tensor) -> Tensor:
    """Return images [B, 3, H, W] in [-1, 1] with the mean and the variance that CLIP was trained with."""
    mean, std = (image.new_tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    return ((image + 1) / 2 - mean) / std


def tokenize_for(clip: Any, texts: Sequence[str], *, truncates: bool = False) -> Tensor:
    """Return the token numbers of texts [B, L] on the device of ``clip``, as open_clip's tokenizer gives them.

    Args:
        clip: The model that will read them.
        texts: The texts.
        truncates: Cut a text that is too long, as open_clip does without a word, instead of an error.

    Raises:
        UserError: A text is too long or no string, or the model has another vocabulary than CLIP's.
    """
    size, device = clip.vocab_size, clip.token_embedding.weight.device
    require(size == CLIP_VOCABULARY, f"this CLIP has {size} tokens; its texts cannot be read with CLIP's vocabulary")
    frame = Frame(begin=CLIP_VOCABULARY - 2, end=CLIP_VOCABULARY - 1, pad=0, length=clip.context_length)
    return token_table(texts, lambda text: clip_words(text, undoes_html=True), frame, truncates=truncates).to(device)


def image_features(clip: Any, image: Tensor) -> Tensor:
    """Return vectors of length 1, [B, embed_dim] float32, of images [B, 3, H, W] in [-1, 1]; gradients flow."""
    seen = prepare(image, clip_size(clip)).to(clip.token_embedding.weight.dtype)
    return functional.normalize(clip.encode_image(seen).float(), dim=-1)


def text_features(clip: Any, ids: Tensor) -> Tensor:
    """Return vectors of length 1, [B, embed_dim] float32, of token numbers [B, L] as `tokenize_for` gives them."""
    return functional.normalize(clip.encode_text(ids).float(), dim=-1)

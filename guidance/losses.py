"""How alike an image is to a text or to another image in the features of a CLIP, for each image of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import require

if TYPE_CHECKING:
    from steerdiff.models.clip_towers import ClipFeatures

__all__ = [
    "STYLE_SCALE",
    "ImageLoss",
    "content_similarity",
    "gram",
    "image_similarity",
    "structure_similarity",
    "style_similarity",
    "text_similarity",
]

#: What of an image its features are asked for.
ImageLoss = Literal["content", "structure", "style"]
#: Factor of the mean square between Gram matrices, whose entries are tiny, in the official code.
STYLE_SCALE = 1e10


def text_similarity(features: ClipFeatures, text: Tensor) -> Tensor:
    """Cosine between images and texts, [B] in [-1, 1].

    Args:
        features: Of B images.
        text: Features of one text or of one for each image, [1, D] or [B, D], of any length.

    Source: Liu et al. 2023 (SDG), section 3.2; GLIDE (Nichol et al. 2022) multiplies it by 100, CLIP's temperature.

    Raises:
        UserError: The text's features have another width, or another number of rows.
    """
    vector = features.vector
    fits = text.ndim == 2 and text.shape[1] == vector.shape[1] and text.shape[0] in (1, vector.shape[0])
    require(
        fits,
        f"the text's features are {list(text.shape)} and the images' {list(vector.shape)}; give [1, D] or [B, D] "
        "of the CLIP whose space the encoder shares",
    )
    return _cosine(vector, text.to(vector))


def content_similarity(features: ClipFeatures, reference: ClipFeatures) -> Tensor:
    """Cosine between images and references, [B] in [-1, 1].

    Source: Liu et al. 2023 (SDG), section 3.3.
    """
    return _cosine(features.vector, reference.vector.to(features.vector))


def structure_similarity(features: ClipFeatures, reference: ClipFeatures, layers: Sequence[int] = ()) -> Tensor:
    """Minus the squared distance between feature maps, place by place, so that the layout is kept, [B].

    ``-sum_j |f_j(x) - f_j(y)|^2 / (C_j H_j W_j)``. The official code has no such term, and which layers the paper takes
    is not known.

    Args:
        features: Of B images.
        reference: Of one image or of one for each.
        layers: Which maps, counted from 0; negative ones from the last. None given takes all.

    Source: Liu et al. 2023 (SDG), section 3.3.

    Raises:
        UserError: A map does not exist.
    """
    pairs = _chosen(features, reference, layers)
    return -_total([(ours - theirs).square().mean((1, 2, 3)) for ours, theirs in pairs])


def style_similarity(
    features: ClipFeatures, reference: ClipFeatures, layers: Sequence[int] = (), *, mixes_batch: bool = False
) -> Tensor:
    """Minus 1e10 times the mean square between Gram matrices, averaged over the layers, [B].

    A Gram matrix does not know where in the image a feature was found. Entries are of the size 1e-5 for CLIP's RN50x16
    at 256 pixels, which the factor makes up for; for another encoder the weight has to be found anew.

    Args:
        features: Of B images.
        reference: Of one image or of one for each.
        layers: Which maps, counted from 0; negative ones from the last. None given takes all.
        mixes_batch: One matrix for the whole batch, as in the official code: its strength depends on B, and each image
            is also asked to relate to the others as the references do. Each image is given its share, 1 / B of the
            batch's value. The same as False for one image.

    Source: Liu et al. 2023 (SDG), section 3.3; factor and normalisation are the official code's.

    Raises:
        UserError: A map does not exist.
    """
    pairs = _chosen(features, reference, layers)
    if mixes_batch:
        count = features.vector.shape[0]
        pairs = [(_joined(ours), _joined(theirs.expand_as(ours))) for ours, theirs in pairs]
    distances = [(gram(ours) - gram(theirs)).square().mean((1, 2)) for ours, theirs in pairs]
    similarity = -STYLE_SCALE / len(distances) * _total(distances)
    return similarity.expand(count) / count if mixes_batch else similarity


def image_similarity(
    kind: ImageLoss,
    features: ClipFeatures,
    reference: ClipFeatures,
    layers: Sequence[int] = (),
    *,
    mixes_batch: bool = False,
) -> Tensor:
    """One of the similarities between images by its name, [B]; ``layers`` means nothing to "content".

    Raises:
        UserError: There is no such name, or a map does not exist.
    """
    require(kind in get_args(ImageLoss), f"the image loss is {kind!r}; known are {', '.join(get_args(ImageLoss))}")
    if kind == "content":
        return content_similarity(features, reference)
    if kind == "structure":
        return structure_similarity(features, reference, layers)
    return style_similarity(features, reference, layers, mixes_batch=mixes_batch)


def gram(maps: Tensor) -> Tensor:
    """Gram matrices ``F F^T / (C H W)`` [B, C, C] of feature maps [B, C, H, W], in float32 or wider."""
    flat = maps.to(torch.promote_types(maps.dtype, torch.float32)).flatten(2)
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (functional.normalize(a, dim=1) * functional.normalize(b, dim=1)).sum(1)


def _chosen(features: ClipFeatures, reference: ClipFeatures, layers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Pairs of the maps that are named, the reference's as constants."""
    count = len(features.maps)
    bad = [layer for layer in layers if not -count <= layer < count]
    require(not bad, f"layers are {list(layers)}; this encoder has {count} maps, from 0 to {count - 1}")
    require(count > 0, "this encoder gives no feature maps; use the image loss 'content'")
    numbers = layers if len(layers) > 0 else range(count)
    return [(features.maps[layer], reference.maps[layer].to(features.maps[layer])) for layer in numbers]


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0)


def _joined(maps: Tensor) -> Tensor:
    """All channels of a batch as those of one image, [1, B C, H, W]."""
    return maps.flatten(0, 1)[None]

"""The image towers of CLIP layer by layer: their features, and layers that a time may change.

open_clip's modules are used as they are. What a time does is passed along as an argument, so that nothing is kept
between calls: copies, activation checkpoints and several processes see what they were given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steerdiff.errors import require

__all__ = ["ClipFeatures", "Pair", "conditioned_widths", "is_resnet", "tower_features"]

#: Scale and shift of one normalisation, each [B, C]: ``y * (1 + scale) + shift``.
Pair = tuple[Tensor, Tensor]


class ClipFeatures(NamedTuple):
    """What CLIP's image tower makes of images."""

    #: [B, C_j, h_j, w_j] in order: of a ResNet its stem and its four stages, of a vision transformer each block's
    #: patches, without the class token
    maps: tuple[Tensor, ...]
    vector: Tensor  #: [B, D], not normalised


def is_resnet(visual: nn.Module) -> bool:
    """Whether a tower is open_clip's ``ModifiedResNet``.

    Raises:
        UserError: It is neither that nor a plain vision transformer.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    if isinstance(visual, ModifiedResNet):
        return True
    tower: Any = visual
    plain = isinstance(visual, VisionTransformer) and tower.attn_pool is None
    plain = plain and all(type(block) is ResidualAttentionBlock for block in tower.transformer.resblocks)
    require(plain, f"the image tower is {type(visual).__name__}; only CLIP's ResNets and plain vision transformers do")
    return False


def conditioned_widths(visual: nn.Module) -> list[int]:
    """Return the channels of each normalisation that a time may change, in the order of the computation.

    Of a ResNet those are the BatchNorms of the main path (three of the stem, three of each bottleneck), not those of
    its shortcuts; of a vision transformer ``ln_pre``, both norms of each block, and ``ln_post``.
    """
    tower: Any = visual
    if is_resnet(visual):
        blocks = [tower, *_bottlenecks(tower)]
        return [norm.num_features for block in blocks for norm in (block.bn1, block.bn2, block.bn3)]
    norms = [norm for block in tower.transformer.resblocks for norm in (block.ln_1, block.ln_2)]
    before = [] if isinstance(tower.ln_pre, nn.Identity) else [tower.ln_pre]
    return [norm.normalized_shape[0] for norm in (*before, *norms, tower.ln_post)]


def tower_features(
    visual: nn.Module, seen: Tensor, pairs: Sequence[Pair] | None = None, token: Tensor | None = None
) -> ClipFeatures:
    """Return the features of prepared images; gradients flow.

    Args:
        visual: CLIP's image tower.
        seen: [B, 3, size, size] as `steerdiff.models.clip.prepare` gives it.
        pairs: One for each of `conditioned_widths`; None: a plain tower.
        token: [B, width] in place of the class token of a vision transformer; None: its own.

    Raises:
        UserError: The tower is of another kind, or a ResNet is given a token.
    """
    tower: Any = visual
    steps: Iterator[Pair | None] = repeat(None) if pairs is None else iter(pairs)
    if is_resnet(visual):
        require(token is None, "a ResNet has no class token; condition it by 'affine'")
        return _resnet(tower, seen, steps)
    return _transformer(tower, seen, steps, token)


def _resnet(tower: Any, x: Tensor, steps: Iterator[Pair | None]) -> ClipFeatures:
    for k in (1, 2, 3):
        conv, norm, act = (getattr(tower, f"{name}{k}") for name in ("conv", "bn", "act"))
        x = act(_changed(norm(conv(x)), next(steps)))
    maps = [tower.avgpool(x)]
    for stage in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
        x = maps[-1]
        for block in stage:
            x = _bottleneck(block, x, steps)
        maps.append(x)
    return ClipFeatures(tuple(maps), tower.attnpool(maps[-1]))


def _bottleneck(block: Any, x: Tensor, steps: Iterator[Pair | None]) -> Tensor:
    h = block.act1(_changed(block.bn1(block.conv1(x)), next(steps)))
    h = block.act2(_changed(block.bn2(block.conv2(h)), next(steps)))
    h = _changed(block.bn3(block.conv3(block.avgpool(h))), next(steps))
    shortcut = x if block.downsample is None else block.downsample(x)
    out: Tensor = block.act3(h + shortcut)
    return out


def _bottlenecks(tower: Any) -> Iterable[Any]:
    return (block for stage in (tower.layer1, tower.layer2, tower.layer3, tower.layer4) for block in stage)


def _transformer(tower: Any, seen: Tensor, steps: Iterator[Pair | None], token: Tensor | None) -> ClipFeatures:
    patches = tower.conv1(seen)
    grid = patches.shape[-2:]
    first = tower.class_embedding.expand(len(seen), -1) if token is None else token
    x = torch.cat([first[:, None].to(patches.dtype), patches.flatten(2).transpose(1, 2)], dim=1)
    x = tower.patch_dropout(x + tower.positional_embedding.to(x.dtype))
    if not isinstance(tower.ln_pre, nn.Identity):
        x = _changed(tower.ln_pre(x), next(steps))
    maps = []
    for block in tower.transformer.resblocks:
        x = _block(block, x, steps, tower.transformer.batch_first)
        maps.append(x[:, 1:].transpose(1, 2).reshape(len(x), -1, *grid))
    if not tower.final_ln_after_pool:
        x = _changed(tower.ln_post(x), next(steps))
    vector = x[:, 1:].mean(1) if tower.pool_type == "avg" else x[:, 0]
    if tower.final_ln_after_pool:
        vector = _changed(tower.ln_post(vector), next(steps))
    return ClipFeatures(tuple(maps), vector if tower.proj is None else vector @ tower.proj)


def _block(block: Any, x: Tensor, steps: Iterator[Pair | None], batch_first: bool) -> Tensor:
    h = _changed(block.ln_1(x), next(steps))
    h = block.attention(h) if batch_first else block.attention(h.transpose(0, 1)).transpose(0, 1)
    x = x + block.ls_1(h)
    h = _changed(block.ln_2(x), next(steps))
    out: Tensor = x + block.ls_2(block.mlp(h))
    return out


def _changed(y: Tensor, pair: Pair | None) -> Tensor:
    """Return ``y * (1 + scale) + shift``: [B, C], [B, L, C] or [B, C, H, W], by pairs of [B, C]."""
    if pair is None:
        return y
    lined_up = {2: (...,), 3: (slice(None), None), 4: (..., None, None)}[y.ndim]
    scale, shift = (part.to(y.dtype)[lined_up] for part in pair)
    return y * (1 + scale) + shift

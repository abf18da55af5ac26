"""What the shapes of a file's tensors say about the networks they belong to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from steerdiff.models.config import AutoencoderConfig
from steerdiff.models.text_config import BertTextConfig, ClassContextConfig
from steerdiff.models.weights import Entry

from .spec import ClipConfig

__all__ = [
    "autoencoder_facts",
    "bert_facts",
    "class_facts",
    "clip_facts",
    "ddpm_facts",
    "text_facts",
    "unet_facts",
]

Entries = Mapping[str, Entry]

_HEAD_CHANNELS = 64  # of every published CLIP tower and of latent diffusion's text transformer


def unet_facts(entries: Entries) -> dict[str, Any]:
    """Return the fields of `UNetConfig` that the tensors of a UNet tell, in our names.

    Heads, their order and dropout leave no trace in a file. Missing tensors give fewer fields, not an error.
    """
    if "time_embed.0.weight" not in entries or "out.2.weight" not in entries:
        return {}
    base = _shape(entries, "time_embed.0.weight")[1]
    ups = [number for number in range(_count(entries, "output_blocks.")) if _has_up(entries, number)]
    per_level = ups[0] + 1 if ups else _count(entries, "output_blocks.")
    levels = len(ups) + 1
    firsts = [f"output_blocks.{per_level * (levels - 1 - level)}." for level in range(levels)]
    transformers = [name for name in entries if name.endswith(".attn2.to_k.weight")]
    outs = [_shape(entries, f"{first}0.out_layers.3.weight")[0] for first in firsts]
    facts = {
        "in_channels": _shape(entries, "input_blocks.0.0.weight")[1],
        "out_channels": _shape(entries, "out.2.weight")[0],
        "model_channels": base,
        "channel_mult": tuple(_number(out / base) for out in outs),
        "num_res_blocks": per_level - 1,
        "attention_at": tuple(
            2**level for level, first in enumerate(firsts) if _any(entries, rf"{first}1\.(qkv|norm)\.")
        ),
        "scale_shift_norm": _shape(entries, f"{firsts[0]}0.emb_layers.1.weight")[0] == 2 * outs[0],
        "resblock_updown": _any(entries, r"output_blocks\.\d+\.[12]\.in_layers\."),
        "num_classes": _shape(entries, "label_emb.weight")[0] if "label_emb.weight" in entries else None,
        "context_dim": _shape(entries, transformers[0])[1] if transformers else None,
    }
    if transformers:
        place = transformers[0].partition("transformer_blocks.")[0]
        facts["transformer_depth"] = _count(entries, f"{place}transformer_blocks.")
        facts["linear_projections"] = len(_shape(entries, f"{place}proj_in.weight")) == 2
    return facts


def ddpm_facts(entries: Entries) -> dict[str, Any]:
    """Return the fields of `UNetConfig` that the tensors of a DDPM network of ermongroup tell, in its names."""
    base = _shape(entries, "conv_in.weight")[0]
    levels = _count(entries, "down.")
    widths = [_shape(entries, f"down.{level}.block.0.conv1.weight")[0] for level in range(levels)]
    return {
        "in_channels": _shape(entries, "conv_in.weight")[1],
        "out_channels": _shape(entries, "conv_out.weight")[0],
        "model_channels": base,
        "channel_mult": tuple(_number(width / base) for width in widths),
        "num_res_blocks": _count(entries, "down.0.block."),
        "attention_at": tuple(2**level for level in range(levels) if _any(entries, rf"down\.{level}\.attn\.")),
        "norm_eps": 1e-6,
        "time_features": "sin_cos",
        "pads_after": True,
    }


def autoencoder_facts(entries: Entries) -> AutoencoderConfig:
    """Return the autoencoder whose tensors these are, in our names; its scale factor is not among them."""
    base = _shape(entries, "encoder.conv_in.weight")[0]
    levels = _count(entries, "encoder.down.")
    widths = [_shape(entries, f"encoder.down.{level}.block.0.conv1.weight")[0] for level in range(levels)]
    codebook = "quantize.embedding.weight"
    is_vq = codebook in entries
    return AutoencoderConfig(
        kind="vq" if is_vq else "kl",
        in_channels=_shape(entries, "encoder.conv_in.weight")[1],
        channels=base,
        channel_mult=tuple(width // base for width in widths),
        num_res_blocks=_count(entries, "encoder.down.0.block."),
        attention_at=tuple(2**level for level in range(levels) if _any(entries, rf"encoder\.down\.{level}\.attn\.")),
        z_channels=_shape(entries, "post_quant_conv.weight")[0],
        embed_dim=_shape(entries, "post_quant_conv.weight")[1],
        codebook_size=_shape(entries, codebook)[0] if is_vq else None,
        scale_factor=1.0 if is_vq else 0.18215,
    )


def text_facts(entries: Entries, names: str) -> dict[str, Any]:
    """Return the fields of `ClipTextConfig` that the tensors of a text tower tell.

    Args:
        entries: The tower's tensors.
        names: "ours" for open_clip's names, "hf" or "hf-bare" for those of transformers.
    """
    inner = "text_model." if names == "hf" else ""
    table = "token_embedding.weight" if names == "ours" else f"{inner}embeddings.token_embedding.weight"
    places = "positional_embedding" if names == "ours" else f"{inner}embeddings.position_embedding.weight"
    layers = "transformer.resblocks." if names == "ours" else f"{inner}encoder.layers."
    vocab_size, width = _shape(entries, table)
    projection = None
    if "text_projection" in entries:
        projection = _shape(entries, "text_projection")[1]
    elif "text_projection.weight" in entries:
        projection = _shape(entries, "text_projection.weight")[0]
    return {
        "vocab_size": vocab_size,
        "length": _shape(entries, places)[0],
        "width": width,
        "layers": _count(entries, layers),
        "heads": max(1, width // _HEAD_CHANNELS),
        "projection": projection,
    }


def bert_facts(entries: Entries) -> BertTextConfig:
    """Return latent diffusion's text transformer whose tensors these are, less ``transformer.``."""
    vocab_size, width = _shape(entries, "token_emb.weight")
    return BertTextConfig(
        vocab_size=vocab_size,
        length=_shape(entries, "pos_emb.emb.weight")[0],
        width=width,
        heads=max(1, _shape(entries, "attn_layers.layers.0.1.to_q.weight")[0] // _HEAD_CHANNELS),
        layers=_count(entries, "attn_layers.layers.") // 2,
    )


def class_facts(entries: Entries) -> ClassContextConfig:
    """Return the class embedder whose table this is."""
    classes, width = _shape(entries, "embedding.weight")
    return ClassContextConfig(classes=classes, width=width)


def clip_facts(entries: Entries, names: str) -> ClipConfig:
    """Return the CLIP whose tensors these are, in open_clip's names or with ``names`` "hf" in those of transformers.

    Heads of 64 channels are taken for granted in the text tower, and in the vision tower but for ViT-H's of 80. The
    activation is not in a file: False here.
    """
    text = text_facts(entries, names)
    numbers = {name: text[name] for name in ("vocab_size", "width", "layers", "heads")}
    vision = _resnet(entries) if "visual.layer1.0.conv1.weight" in entries else _vit(entries, names)
    return ClipConfig(
        embed_dim=text["projection"],
        vision_cfg=vision,
        text_cfg={"context_length": text["length"], **numbers},
    )


def _resnet(entries: Entries) -> dict[str, Any]:
    cells = _shape(entries, "visual.attnpool.positional_embedding")[0] - 1
    return {
        "image_size": 32 * round(cells**0.5),
        "layers": [_count(entries, f"visual.layer{number}.") for number in (1, 2, 3, 4)],
        "width": _shape(entries, "visual.layer1.0.conv1.weight")[0],
        "patch_size": None,
    }


def _vit(entries: Entries, names: str) -> dict[str, Any]:
    hf = names == "hf"
    patches = "vision_model.embeddings.patch_embedding.weight" if hf else "visual.conv1.weight"
    places = "vision_model.embeddings.position_embedding.weight" if hf else "visual.positional_embedding"
    width, _, patch_size, _ = _shape(entries, patches)
    cells = _shape(entries, places)[0] - 1
    vision: dict[str, Any] = {
        "image_size": patch_size * round(cells**0.5),
        "layers": _count(entries, "vision_model.encoder.layers." if hf else "visual.transformer.resblocks."),
        "width": width,
        "patch_size": patch_size,
    }
    return vision | ({"head_width": 80} if width == 1280 else {})


def _has_up(entries: Entries, number: int) -> bool:
    """Whether an output block ends in a change of resolution: a convolution, or a second residual block."""
    return any(f"output_blocks.{number}.{place}.{layer}" in entries for place in (1, 2) for layer in _UP_LAYERS)


_UP_LAYERS = ("conv.weight", "in_layers.2.weight")


def _shape(entries: Entries, name: str) -> tuple[int, ...]:
    return entries[name].shape


def _count(entries: Entries, prefix: str) -> int:
    """Return how many different numbers follow ``prefix``."""
    numbers = {name[len(prefix) :].partition(".")[0] for name in entries if name.startswith(prefix)}
    return len({number for number in numbers if number.isdigit()})


def _any(entries: Entries, pattern: str) -> bool:
    return any(re.match(pattern, name) for name in entries)


def _number(value: float) -> float:
    return int(value) if value == int(value) else value

"""How other layouts name the parts of a UNet: the DDPM networks of ermongroup, and the diffusers folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import torch

from steerdiff.models.config import UNetConfig
from steerdiff.models.unet import UNet
from steerdiff.models.weights import Origin

__all__ = ["Place", "ddpm_keymap", "diffusers_unet_keymap", "places"]


class Place(NamedTuple):
    """What a numbered block of our UNet is, and where it stands."""

    kind: Literal["stem", "res", "attention", "down", "up"]
    part: Literal["down", "mid", "up"]
    level: int  #: 0 is the full resolution
    number: int  #: among those of its kind in its part and level


def places(config: UNetConfig) -> Iterator[tuple[str, Place]]:
    """Yield the module name of every block of a UNet with its place, in the order of the network."""
    levels = len(config.channel_mult)
    yield "input_blocks.0.0", Place("stem", "down", 0, 0)
    number = 1
    for level in range(levels):
        for index in range(config.num_res_blocks):
            yield f"input_blocks.{number}.0", Place("res", "down", level, index)
            if 2**level in config.attention_at:
                yield f"input_blocks.{number}.1", Place("attention", "down", level, index)
            number += 1
        if level + 1 < levels:
            yield f"input_blocks.{number}.0", Place("down", "down", level, 0)
            number += 1
    yield "middle_block.0", Place("res", "mid", 0, 0)
    yield "middle_block.1", Place("attention", "mid", 0, 0)
    yield "middle_block.2", Place("res", "mid", 0, 1)
    number = 0
    for level in reversed(range(levels)):
        attends = 2**level in config.attention_at
        for index in range(config.num_res_blocks + 1):
            yield f"output_blocks.{number}.0", Place("res", "up", level, index)
            if attends:
                yield f"output_blocks.{number}.1", Place("attention", "up", level, index)
            number += 1
        if level > 0:
            yield f"output_blocks.{number - 1}.{1 + attends}", Place("up", "up", level, 0)


def ddpm_keymap(config: UNetConfig) -> dict[str, Origin]:
    """Return where our tensors come from in the layout of ermongroup's DDPM networks.

    Its queries, keys and values are three 1x1 convolutions; ours are one, in the order that a single head has.

    Source: the state dicts of ermongroup/SDEdit and ermongroup/ddim.
    """
    ends = {"time_embed.0": "temb.dense.0", "time_embed.2": "temb.dense.1", "out.0": "norm_out", "out.2": "conv_out"}
    block = {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "temb_proj",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "skip_connection": "nin_shortcut",
    }

    def name(place: Place) -> str:
        if place.part == "mid":
            return "mid.attn_1" if place.kind == "attention" else f"mid.block_{place.number + 1}"
        last = {
            "res": f"block.{place.number}",
            "attention": f"attn.{place.number}",
            "down": "downsample",
            "up": "upsample",
        }
        return "conv_in" if place.kind == "stem" else f"{place.part}.{place.level}.{last[place.kind]}"

    return _keymap(config, ends, block, name, _ddpm_attention)


def diffusers_unet_keymap(config: UNetConfig) -> dict[str, Origin]:
    """Return where our tensors come from in the ``unet`` folder of diffusers.

    Source: the published folders of Stable Diffusion. Levels of the way up are counted from the coarsest there.
    """
    ends = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb": "class_embedding",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    block = {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
    }
    coarsest = len(config.channel_mult) - 1

    def name(place: Place) -> str:
        folder = {
            "down": f"down_blocks.{place.level}",
            "mid": "mid_block",
            "up": f"up_blocks.{coarsest - place.level}",
        }
        last = {"res": "resnets", "attention": "attentions", "down": "downsamplers", "up": "upsamplers"}
        return "conv_in" if place.kind == "stem" else f"{folder[place.part]}.{last[place.kind]}.{place.number}"

    return _keymap(config, ends, block, name, _diffusers_attention)


def _keymap(
    config: UNetConfig,
    ends: Mapping[str, str],
    block: Mapping[str, str],
    name: Callable[[Place], str],
    attention: Callable[[str, str], Origin],
) -> dict[str, Origin]:
    """Translate every key of our UNet: ``ends`` outside the blocks, ``block`` in residual ones, ``name`` for blocks."""
    with torch.device("meta"):
        keys = list(UNet(config).state_dict())
    named = dict(places(config))
    result = {}
    for key in keys:
        pieces = key.split(".")
        depth = 2 if pieces[0] == "middle_block" else 3
        prefix, rest = ".".join(pieces[:depth]), ".".join(pieces[depth:])
        place = named.get(prefix)
        if place is None:
            layer, _, leaf = key.rpartition(".")
            result[key] = Origin((f"{ends[layer]}.{leaf}",))
        elif place.kind == "attention":
            result[key] = attention(name(place), rest)
        else:
            layer, _, leaf = rest.rpartition(".")
            layer = {"stem": "", "res": block.get(layer, layer), "down": "conv", "up": "conv"}[place.kind]
            result[key] = Origin((".".join(part for part in (name(place), layer, leaf) if part),))
    return result


def _ddpm_attention(name: str, rest: str) -> Origin:
    layer, _, leaf = rest.rpartition(".")
    op: Literal["concat", "from_conv"] = "from_conv" if leaf == "weight" else "concat"
    if layer == "norm":
        return Origin((f"{name}.norm.{leaf}",))
    if layer == "qkv":
        return Origin(tuple(f"{name}.{part}.{leaf}" for part in "qkv"), op)
    return Origin((f"{name}.{layer}.{leaf}",), op)


def _diffusers_attention(name: str, rest: str) -> Origin:
    return Origin((f"{name}.{rest}",))

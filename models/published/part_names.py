"""How other layouts name the parts beside the UNet: autoencoder, text encoders and whole CLIPs."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from steerdiff.models.autoencoder import Autoencoder
from steerdiff.models.clip_text import ClipText
from steerdiff.models.config import AutoencoderConfig
from steerdiff.models.text_config import ClipTextConfig
from steerdiff.models.weights import Origin

from .spec import ClipConfig

__all__ = ["diffusers_vae_keymap", "hf_clip_keymap", "hf_text_keymap"]

#: A layer of a CLIP tower: open_clip's names and those of transformers. Queries, keys and values are apart there.
_TOWER_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OLD_ATTENTION = {"norm": "group_norm", "q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"}


def diffusers_vae_keymap(config: AutoencoderConfig, *, old_names: bool = False) -> dict[str, Origin]:
    """Return where an autoencoder's tensors come from in the ``vae`` folder of diffusers.

    Its attention has linear maps where ours has 1x1 convolutions, and its decoder counts levels from the coarsest.

    Args:
        config: The autoencoder.
        old_names: Attention named as in the first published folders: query, key, value, proj_attn.
    """
    with torch.device("meta"):
        keys = list(Autoencoder(config).state_dict())
    coarsest = len(config.channel_mult) - 1
    return {key: _vae_origin(key, coarsest, _OLD_ATTENTION if old_names else _ATTENTION) for key in keys}


def hf_text_keymap(config: ClipTextConfig, *, prefix: str = "text_model.") -> dict[str, Origin]:
    """Return where a CLIP text encoder's tensors come from in the layout of transformers.

    Args:
        config: The text encoder.
        prefix: What stands before its names; newer files have none. The projection never has one.
    """
    with torch.device("meta"):
        keys = list(ClipText(config).state_dict())
    return {key: _text_origin(key, prefix) for key in keys}


def hf_clip_keymap(config: ClipConfig) -> dict[str, Origin]:
    """Return where the tensors of open_clip's ``CLIP`` come from in the layout of transformers' ``CLIPModel``."""
    from steerdiff.models.clip import build_clip  # it imports this folder, for the configuration

    with torch.device("meta"):
        keys = list(build_clip(config).state_dict())
    return dict(_clip_origins(keys))


def _vae_origin(key: str, coarsest: int, attention: dict[str, str]) -> Origin:
    name = re.sub(r"\.up\.(\d+)\.", lambda match: f".up_blocks.{coarsest - int(match[1])}.", key)
    name = re.sub(r"\.down\.(\d+)\.", r".down_blocks.\1.", name)
    name = re.sub(r"_blocks\.(\d+)\.block\.", r"_blocks.\1.resnets.", name)
    name = re.sub(r"_blocks\.(\d+)\.attn\.", r"_blocks.\1.attentions.", name)
    name = name.replace(".downsample.conv", ".downsamplers.0.conv").replace(".upsample.conv", ".upsamplers.0.conv")
    name = name.replace(".mid.block_1", ".mid_block.resnets.0").replace(".mid.block_2", ".mid_block.resnets.1")
    name = name.replace(".mid.attn_1", ".mid_block.attentions.0")
    name = name.replace(".nin_shortcut.", ".conv_shortcut.").replace(".norm_out.", ".conv_norm_out.")
    match = re.fullmatch(r"(.*\.attentions\.\d+)\.(\w+)\.(weight|bias)", name)
    if match is None:
        return Origin((name,))
    head, layer, leaf = match.groups()
    linear = leaf == "weight" and layer != "norm"
    return Origin((f"{head}.{attention[layer]}.{leaf}",), "from_linear" if linear else "same")


def _text_origin(key: str, prefix: str) -> Origin:
    """Translate one of open_clip's text keys."""
    ends = {
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_final.weight": "final_layer_norm.weight",
        "ln_final.bias": "final_layer_norm.bias",
    }
    if key == "text_projection":
        return Origin(("text_projection.weight",), "transpose")
    return Origin((prefix + ends[key],)) if key in ends else _tower_origin(key, prefix)


def _tower_origin(key: str, prefix: str) -> Origin:
    """Translate a key of a tower, ``[...]transformer.resblocks.K.LAYER.LEAF``."""
    number, _, rest = key.partition("transformer.resblocks.")[2].partition(".")
    layer = f"{prefix}encoder.layers.{number}"
    if rest.startswith("attn.in_proj_"):
        leaf = rest.removeprefix("attn.in_proj_")
        return Origin(tuple(f"{layer}.self_attn.{part}_proj.{leaf}" for part in "qkv"), "concat")
    name, _, leaf = rest.rpartition(".")
    return Origin((f"{layer}.{_TOWER_LAYER[name]}.{leaf}",))


def _clip_origins(keys: Iterable[str]) -> Iterable[tuple[str, Origin]]:
    vision = {
        "visual.class_embedding": "embeddings.class_embedding",
        "visual.positional_embedding": "embeddings.position_embedding.weight",
        "visual.conv1.weight": "embeddings.patch_embedding.weight",
        "visual.ln_pre.weight": "pre_layrnorm.weight",  # spelt so in the published files
        "visual.ln_pre.bias": "pre_layrnorm.bias",
        "visual.ln_post.weight": "post_layernorm.weight",
        "visual.ln_post.bias": "post_layernorm.bias",
    }
    for key in keys:
        if key == "logit_scale":
            yield key, Origin((key,))
        elif key == "visual.proj":
            yield key, Origin(("visual_projection.weight",), "transpose")
        elif key in vision:
            yield key, Origin((f"vision_model.{vision[key]}",))
        elif key.startswith("visual."):
            yield key, _tower_origin(key, "vision_model.")
        else:
            yield key, _text_origin(key, "text_model.")

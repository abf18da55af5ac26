"""The text files of a diffusers folder: configurations of each part, the scheduler, the tokenizer and the index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from steerdiff.errors import UserError, require
from steerdiff.models.config import AutoencoderConfig, UNetConfig
from steerdiff.models.text_config import ClipTextConfig

from .spec import PublishedModel

__all__ = ["check_folder", "write_text_files"]

_CLIP_VOCABULARY = 49408
_END = "<|endoftext|>"
_PIPELINES = {
    "plain": "StableDiffusionPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
    "depth": "StableDiffusionDepth2ImgPipeline",
}
_MEANINGS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def check_folder(model: PublishedModel) -> None:
    """Raise ``UserError`` unless the folder layout can hold ``model``: Stable Diffusion and what is built like it."""
    unet, stage, text = model.unet, model.autoencoder, model.text
    fits = (
        model.family == "latent"
        and (unet is None or _fits_unet(unet))
        and (stage is None or (stage.kind == "kl" and stage.z_channels == stage.embed_dim and not stage.attention_at))
        and (text is None or isinstance(text, ClipTextConfig))
    )
    require(fits, "the folder layout holds Stable Diffusion's networks only; convert to a single file or steerdiff")


def write_text_files(folder: Path, model: PublishedModel) -> None:
    """Write every text file of a diffusers folder for ``model``; the subfolders of its parts exist."""
    index: dict[str, Any] = {"_class_name": _PIPELINES[model.inputs], "requires_safety_checker": False}
    index.update(safety_checker=[None, None], feature_extractor=[None, None])
    if model.unet is not None:
        _write(folder / "unet" / "config.json", _unet(model, model.unet))
        index["unet"] = ["diffusers", "UNet2DConditionModel"]
    if model.autoencoder is not None:
        _write(folder / "vae" / "config.json", _vae(model.autoencoder, model.image_size))
        index["vae"] = ["diffusers", "AutoencoderKL"]
    if isinstance(model.text, ClipTextConfig):
        _write(folder / "text_encoder" / "config.json", _text(model.text))
        index["text_encoder"] = ["transformers", "CLIPTextModel"]
        if model.text.vocab_size == _CLIP_VOCABULARY:
            _write_tokenizer(folder / "tokenizer", model.text)
            index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    (folder / "scheduler").mkdir()
    _write(folder / "scheduler" / "scheduler_config.json", _scheduler(model))
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    _write(folder / "model_index.json", index)


def _fits_unet(unet: UNetConfig) -> bool:
    plain = UNetConfig()
    same: tuple[str, ...] = ("scale_shift_norm", "resblock_updown", "time_features", "pads_after")
    same += (
        "self_attention_at",
        "positioned_queries",
        "feed_forward_mult",
        "unshuffle",
        "num_classes",
        "conv_resample",
    )
    whole = all(mult == int(mult) and mult >= 1 for mult in unet.channel_mult) and unet.channel_mult[0] == 1
    return unet.context_dim is not None and whole and all(getattr(unet, n) == getattr(plain, n) for n in same)


def _unet(model: PublishedModel, unet: UNetConfig) -> dict[str, Any]:
    widths = [int(mult * unet.model_channels) for mult in unet.channel_mult]
    attends = [2**level in unet.attention_at for level in range(len(widths))]
    heads = unet.num_heads if unet.head_channels is None else [width // unet.head_channels for width in widths]
    factor = model.autoencoder.factor if model.autoencoder is not None else 8
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": heads,  # the number of heads, whatever its name says
        "block_out_channels": widths,
        "center_input_sample": False,
        "cross_attention_dim": unet.context_dim,
        "down_block_types": ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attends],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": unet.in_channels,
        "layers_per_block": unet.num_res_blocks,
        "mid_block_scale_factor": 1,
        "norm_eps": unet.norm_eps,
        "norm_num_groups": 32,
        "out_channels": unet.out_channels,
        "sample_size": model.image_size // factor,
        "transformer_layers_per_block": unet.transformer_depth,
        "up_block_types": ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attends)],
        "use_linear_projection": unet.linear_projections,
    }


def _vae(stage: AutoencoderConfig, image_size: int) -> dict[str, Any]:
    widths = [mult * stage.channels for mult in stage.channel_mult]
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "in_channels": stage.in_channels,
        "latent_channels": stage.z_channels,
        "layers_per_block": stage.num_res_blocks,
        "norm_num_groups": 32,
        "out_channels": stage.in_channels,
        "sample_size": image_size,
        "scaling_factor": stage.scale_factor,
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
    }


def _text(text: ClipTextConfig) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel"],
        "hidden_act": text.activation,
        "hidden_size": text.width,
        "intermediate_size": 4 * text.width,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": text.length,
        "model_type": "clip_text_model",
        "num_attention_heads": text.heads,
        "num_hidden_layers": text.layers,
        "vocab_size": text.vocab_size,
    }


def _scheduler(model: PublishedModel) -> dict[str, Any]:
    recipe = dict(model.schedule)
    name = recipe.get("name")
    if name not in ("linear", "scaled_linear") or None in (recipe.get("start"), recipe.get("end")):
        raise UserError(f"the schedule {name!r} has no place in a folder; convert to a single file or steerdiff")
    return {
        "_class_name": "DDIMScheduler",
        "beta_end": recipe["end"],
        "beta_schedule": name,
        "beta_start": recipe["start"],
        "clip_sample": False,
        "num_train_timesteps": recipe["T"],
        "prediction_type": _MEANINGS[model.parameterization],
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }


def _write_tokenizer(folder: Path, text: ClipTextConfig) -> None:
    """Write CLIP's vocabulary, which open_clip carries, as transformers stores it."""
    from open_clip.tokenizer import SimpleTokenizer

    folder.mkdir()
    tokenizer = SimpleTokenizer()
    numbers = dict(tokenizer.encoder)
    for old, new in (("<start_of_text>", "<|startoftext|>"), ("<end_of_text>", _END)):
        if old in numbers:
            numbers[new] = numbers.pop(old)
    pairs = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    pad = "!" if text.pad == 0 else _END
    marks = {"bos_token": "<|startoftext|>", "eos_token": _END, "unk_token": _END, "pad_token": pad}
    (folder / "vocab.json").write_text(json.dumps(numbers, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write(folder / "special_tokens_map.json", marks)
    more = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "model_max_length": text.length}
    _write(folder / "tokenizer_config.json", {**marks, **more, "add_prefix_space": False, "errors": "replace"})


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

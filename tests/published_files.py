"""Tiny models in the layouts of the published ones, with random weights and the clutter of real files around them."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from steerdiff.models.config import AutoencoderConfig, UNetConfig
from steerdiff.models.official import ddpm_config
from steerdiff.models.published import PublishedModel, from_flags
from steerdiff.models.published.assembly import blank, keymap_of
from steerdiff.models.published.layouts import Names, Part
from steerdiff.models.text_config import BertTextConfig, ClassContextConfig, ClipTextConfig
from steerdiff.models.weights import published_tensors

__all__ = [
    "random_weights",
    "tiny_adm",
    "tiny_classifier",
    "tiny_ddpm",
    "tiny_ldm",
    "tiny_sd",
    "tiny_upsampler",
    "write_adm",
    "write_ddpm",
    "write_folder",
    "write_single_file",
]

SD_SCHEDULE = {"name": "scaled_linear", "T": 1000, "start": 0.00085, "end": 0.012}
LDM_SCHEDULE = {"name": "scaled_linear", "T": 1000, "start": 0.0015, "end": 0.0195}
TINY_KL = AutoencoderConfig(channels=32, channel_mult=(1, 2), num_res_blocks=1)
TINY_VQ = AutoencoderConfig(
    kind="vq",
    channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    z_channels=3,
    embed_dim=3,
    codebook_size=16,
    scale_factor=1.0,
)
TINY_UNET: dict[str, Any] = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_at": (1, 2)}


def tiny_sd(version: Literal[1, 2] = 1, *, inputs: Any = "plain", predicts_v: bool = False) -> PublishedModel:
    """Stable Diffusion with images of 32 x 32 pixels, latents of 16 x 16 and CLIP's vocabulary."""
    channels = {"plain": 4, "inpainting": 9, "depth": 5}[inputs]
    own: dict[str, Any] = {"num_heads": 8}
    if version == 2:  # its heads have 64 channels, whatever the width
        own = {"model_channels": 64, "head_channels": 64, "linear_projections": True}
    unet = UNetConfig(**{**TINY_UNET, **own}, in_channels=channels, out_channels=4, context_dim=32)
    text = ClipTextConfig(width=32, heads=1, layers=2)
    if version == 2:
        text = ClipTextConfig(
            width=32, heads=1, layers=3, activation="gelu", reads="penultimate", pad=0, undoes_html=True, projection=32
        )
    return PublishedModel(
        family="latent",
        unet=unet,
        autoencoder=TINY_KL,
        text=text,
        schedule=SD_SCHEDULE,
        parameterization="v" if predicts_v else "eps",
        image_size=32,
        inputs=inputs,
        clip_x0=False,
    )


def tiny_ldm(kind: Literal["kl", "vq"] = "vq", condition: Literal["class", "bert"] | None = None) -> PublishedModel:
    """Latent diffusion with a KL or VQ first stage; unconditional, by class (of 10 and the empty one) or by text."""
    channels = 3 if kind == "vq" else 4
    texts: dict[Any, Any] = {
        "class": ClassContextConfig(classes=11, width=32),
        "bert": BertTextConfig(vocab_size=100, length=16, width=32, heads=1, layers=2),
        None: None,
    }
    unet = UNetConfig(
        **TINY_UNET,
        in_channels=channels,
        out_channels=channels,
        num_heads=2,
        context_dim=32 if condition is not None else None,
    )
    return PublishedModel(
        family="latent",
        unet=unet,
        autoencoder=TINY_KL if kind == "kl" else TINY_VQ,
        text=texts[condition],
        schedule=LDM_SCHEDULE,
        image_size=32,
        null_class=10 if condition == "class" else None,
        clip_x0=False,
    )


def tiny_adm(**flags: Any) -> PublishedModel:
    """An ADM network of 32 x 32 pixels with learned variance; ``flags`` are guided-diffusion's."""
    usual = {"image_size": 32, "num_channels": 32, "channel_mult": "1,2", "num_res_blocks": 1, "num_head_channels": 16}
    return from_flags({**usual, "attention_resolutions": "16", "learn_sigma": True, "resblock_updown": True, **flags})


def tiny_upsampler() -> PublishedModel:
    """ADM's upsampler from 16 to 32 pixels, by class."""
    flags = {"large_size": 32, "small_size": 16, "num_channels": 32, "channel_mult": "1,2", "num_res_blocks": 1}
    return from_flags({**flags, "attention_resolutions": "16", "learn_sigma": True, "class_cond": True})


def tiny_classifier() -> PublishedModel:
    """ADM's noisy classifier of 32 x 32 pixels, 1000 classes."""
    flags = {"image_size": 32, "classifier_width": 64, "classifier_depth": 1, "classifier_attention_resolutions": "16"}
    return from_flags(flags)


def tiny_ddpm() -> PublishedModel:
    """A DDPM network of 32 x 32 pixels."""
    section = {
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": (1, 2),
        "num_res_blocks": 1,
        "attn_resolutions": (16,),
    }
    return PublishedModel(family="ddpm", unet=ddpm_config(section, 32), image_size=32, clip_x0=False)


def random_weights(model: PublishedModel, name: str, seed: int = 0) -> dict[str, Tensor]:
    """Float32 weights of a part in our names, which depend on the seed, the part and the name alone."""
    made = _made(json.dumps(model.to_dict(), sort_keys=True), name, seed)
    return {key: value.clone() for key, value in made.items()}


@functools.lru_cache(maxsize=12)
def _made(described: str, name: str, seed: int) -> dict[str, Tensor]:
    model = PublishedModel.from_dict(json.loads(described))
    return {key: _weight(f"{name}.{key}", entry, seed) for key, entry in blank(model, name).state_dict().items()}


def write_single_file(
    path: Path, model: PublishedModel, seed: int = 0, *, pickle: bool = False, ema: bool = False, **options: Any
) -> dict[str, Tensor]:
    """Write a CompVis file: safetensors, or with ``pickle`` torch.save's; return what it holds, by published name.

    With ``ema`` it also has averaged weights, which are those of seed + 1. ``dtype`` sets the floating-point type.
    """
    tensors = dict(_clutter())
    for name, part in _single_file_parts(model).items():
        tensors.update(_named(model, name, part, seed))
    if isinstance(model.text, ClipTextConfig) and "cond_stage_model.transformer.text_model" in " ".join(tensors):
        ids = torch.arange(model.text.length)[None]
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = ids
    if isinstance(model.text, ClipTextConfig) and model.text.projection is not None:
        tensors["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
    if model.autoencoder is not None:
        tensors["first_stage_model.loss.logvar"] = torch.zeros(())
    if ema:
        averaged = random_weights(model, "unet", seed + 1)
        names = {key: "model_ema.diffusion_model" + key.replace(".", "") for key in averaged}
        tensors.update({names[key]: value for key, value in averaged.items()})
        tensors |= {
            "model_ema.decay": torch.tensor(0.9999),
            "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
        }
    tensors = _cast(tensors, options.get("dtype", torch.float32))
    if pickle:
        torch.save({"state_dict": tensors, "global_step": 3, "epoch": 1, "lr_schedulers": []}, path)
    else:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata={"format": "pt"})
    return tensors


def write_folder(path: Path, model: PublishedModel, seed: int = 0, *, old_names: bool = False) -> dict[str, Tensor]:
    """Write a folder of diffusers for a model as `tiny_sd` gives it; return what it holds, by ``part.name``.

    For version 2 the text encoder lacks the last block and the projection, as the published ones do.
    """
    stored = folder_model(model)
    parts: dict[str, tuple[str, str, Part]] = {
        "unet": ("unet", "diffusion_pytorch_model", Part("", "diffusers")),
        "autoencoder": ("vae", "diffusion_pytorch_model", Part("", "diffusers-old" if old_names else "diffusers")),
        "text": ("text_encoder", "model", Part("", "hf")),
    }
    result = {}
    for name, (folder, stem, part) in parts.items():
        (path / folder).mkdir(parents=True)
        tensors = _named(stored, name, part, seed)
        save_file({key: value.contiguous() for key, value in tensors.items()}, path / folder / f"{stem}.safetensors")
        (path / folder / "config.json").write_text(json.dumps(_FOLDER_CONFIGS[folder](stored)))
        result.update({f"{folder}.{key}": value for key, value in tensors.items()})
    (path / "scheduler").mkdir()
    meaning = {"eps": "epsilon", "v": "v_prediction"}[model.parameterization]
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps({**betas, "prediction_type": meaning}))
    (path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return result


def folder_model(model: PublishedModel) -> PublishedModel:
    """What a folder of diffusers keeps of a model: of Stable Diffusion 2.x not the last text block."""
    text = model.text
    assert isinstance(text, ClipTextConfig)
    layers = text.layers - (1 if text.reads == "penultimate" else 0)
    values = {**text.to_dict(), "layers": layers, "reads": "last", "projection": None, "undoes_html": False}
    return PublishedModel.from_dict({**model.to_dict(), "text": values})


def write_adm(path: Path, model: PublishedModel, seed: int = 0) -> dict[str, Tensor]:
    """Write an ADM network or a classifier as guided-diffusion saves it: a bare state dict."""
    name = "unet" if model.unet is not None else "classifier"
    tensors = random_weights(model, name, seed)
    torch.save(tensors, path)
    return tensors


def write_ddpm(path: Path, model: PublishedModel, seed: int = 0, *, listed: bool = False) -> dict[str, Tensor]:
    """Write a DDPM network: a bare state dict, or ``listed`` a training checkpoint whose averages have this seed."""
    tensors = _named(model, "unet", Part("", "ddpm"), seed)
    if not listed:
        torch.save(tensors, path)
        return tensors
    current = {f"module.{key}": value for key, value in _named(model, "unet", Part("", "ddpm"), seed + 1).items()}
    optimizer = {"state": {0: {"step": torch.tensor(3), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
    torch.save([current, optimizer, 12, 3456, tensors], path)
    return tensors


def _weight(name: str, like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    z = torch.randn(like.shape, generator=generator)
    if like.ndim >= 2:
        return z / max(1, like[0].numel()) ** 0.5
    return 1 + 0.1 * z if name.endswith("weight") else 0.1 * z


def _named(model: PublishedModel, name: str, part: Part, seed: int) -> dict[str, Tensor]:
    """Random weights of a part under its published names."""
    keymap = keymap_of(model, name, part, blank(model, name))
    tensors = published_tensors(random_weights(model, name, seed), keymap)
    return {part.prefix + key: value.clone() for key, value in tensors}


def _single_file_parts(model: PublishedModel) -> Mapping[str, Part]:
    text: dict[type[Any], tuple[str, Names]] = {
        ClipTextConfig: ("transformer.", "hf"),
        BertTextConfig: ("transformer.", "bert"),
        ClassContextConfig: ("", "ours"),
        type(None): ("", "ours"),
    }
    inner, names = text[type(model.text)]
    if isinstance(model.text, ClipTextConfig) and model.text.activation == "gelu":
        inner, names = "model.", "ours"
    parts = {
        "unet": Part("model.diffusion_model."),
        "autoencoder": Part("first_stage_model."),
        "text": Part(f"cond_stage_model.{inner}", names),
    }
    return {name: part for name, part in parts.items() if getattr(model, name) is not None}


def _clutter() -> Iterator[tuple[str, Tensor]]:
    """The tables at the root of a CompVis file."""
    plain = ("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
    more = ("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod")
    posterior = ("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2")
    for name in (*plain, *more, *posterior, "logvar"):
        yield name, torch.linspace(0, 1, 1000)


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}


def _unet_json(model: PublishedModel) -> dict[str, Any]:
    unet = model.unet
    assert unet is not None
    widths = [int(mult * unet.model_channels) for mult in unet.channel_mult]
    attends = [2**level in unet.attention_at for level in range(len(widths))]
    heads = unet.num_heads if unet.head_channels is None else [width // unet.head_channels for width in widths]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 16,
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "block_out_channels": widths,
        "layers_per_block": unet.num_res_blocks,
        "attention_head_dim": heads,
        "cross_attention_dim": unet.context_dim,
        "use_linear_projection": unet.linear_projections,
        "down_block_types": ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attends)],
    }


def _vae_json(model: PublishedModel) -> dict[str, Any]:
    stage = model.autoencoder
    assert stage is not None
    widths = [mult * stage.channels for mult in stage.channel_mult]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": stage.z_channels,
        "block_out_channels": widths,
        "layers_per_block": stage.num_res_blocks,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "scaling_factor": stage.scale_factor,
    }


def _text_json(model: PublishedModel) -> dict[str, Any]:
    text = model.text
    assert isinstance(text, ClipTextConfig)
    return {
        "architectures": ["CLIPTextModel"],
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "intermediate_size": 4 * text.width,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "max_position_embeddings": text.length,
        "hidden_act": text.activation,
    }


_FOLDER_CONFIGS = {"unet": _unet_json, "vae": _vae_json, "text_encoder": _text_json}

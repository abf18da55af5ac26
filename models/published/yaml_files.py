"""Published YAML configurations: CompVis' (target and params) and ermongroup's (data, model and diffusion)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerdiff.errors import UserError, require
from steerdiff.models.config import AutoencoderConfig
from steerdiff.models.official import autoencoder_config, ddpm_config, unet_config
from steerdiff.models.text_config import BertTextConfig, ClassContextConfig, ClipTextConfig

from .latent_presets import OPENCLIP_TEXT
from .spec import Inputs, PublishedModel, TextConfigs

__all__ = ["from_compvis", "from_ddpm_sections", "from_yaml"]

_LARGEST = 2**20  # bytes; the published ones have a few thousand


def from_yaml(path: Path) -> PublishedModel:
    """Return the model that a YAML file of CompVis or of ermongroup describes.

    Raises:
        UserError: The file is no YAML, or describes something that does not exist here.
    """
    import yaml

    require(path.stat().st_size <= _LARGEST, f"{path} is too large for a configuration; give the published YAML")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not YAML ({' '.join(str(error).split())}); give the published file") from error
    require(isinstance(tree, Mapping), f"{path} holds no configuration; give the published YAML")
    try:
        if "diffusion" in tree and "data" in tree:
            return from_ddpm_sections(tree)
        require("params" in tree.get("model", {}), f"{path} has neither model.params nor data, model and diffusion")
        return from_compvis(tree["model"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise UserError(f"{path}: {error}") from error
        raise UserError(f"{path} is not built as a published configuration is (at {error})") from error


def from_ddpm_sections(tree: Mapping[str, Any]) -> PublishedModel:
    """Return the model of ermongroup's sections ``data``, ``model`` and ``diffusion``."""
    section, diffusion, size = tree["model"], tree["diffusion"], tree["data"]["image_size"]
    kind = diffusion.get("beta_schedule", "linear")
    require(kind == "linear", f"beta_schedule is {kind!r}; only 'linear' is known of such models")
    schedule = {
        "name": "linear",
        "T": diffusion.get("num_diffusion_timesteps", 1000),
        "start": diffusion.get("beta_start", 0.0001),
        "end": diffusion.get("beta_end", 0.02),
    }
    unet = ddpm_config(section, size)
    return PublishedModel(
        family="ddpm",
        unet=unet,
        schedule=schedule,
        learns_variance=unet.out_channels == 2 * unet.in_channels,
        image_size=size,
        clip_x0=False,
    )


def from_compvis(model: Mapping[str, Any]) -> PublishedModel:
    """Return the model of CompVis' tree ``{target, params: {unet_config, first_stage_config, ...}}``."""
    params = model["params"]
    require(
        "first_stage_config" in params, "the configuration has no first_stage_config; only latent models are built so"
    )
    autoencoder = _first_stage(params["first_stage_config"], params.get("scale_factor", 1.0))
    unet = unet_config(params["unet_config"]["params"])
    channels = params.get("channels", autoencoder.embed_dim)
    if "depth_stage_config" in params:
        unet = dataclasses.replace(unet, in_channels=channels + 1)  # the file itself counts only the latent's
    text = _text(params.get("cond_stage_config", "__is_unconditional__"), unet.context_dim)
    meaning = params.get("parameterization", "eps")
    require(meaning in ("eps", "x0", "v"), f"parameterization is {meaning!r}; known are eps, x0 and v")
    return PublishedModel(
        family="latent",
        unet=unet,
        autoencoder=autoencoder,
        text=text,
        schedule=_schedule(params),
        parameterization=meaning,
        image_size=params.get("image_size", 256) * autoencoder.factor,
        inputs=_inputs(unet.in_channels - channels),
        null_class=text.classes - 1 if isinstance(text, ClassContextConfig) else None,
        clip_x0=False,
    )


def _schedule(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the betas. CompVis' "linear" is linear in the square roots, and its "sqrt_linear" is plainly linear."""
    kind = params.get("beta_schedule", "linear")
    names = {"linear": "scaled_linear", "sqrt_linear": "linear"}
    require(kind in names, f"beta_schedule is {kind!r}; known are {', '.join(names)}")
    start, end = params.get("linear_start", 1e-4), params.get("linear_end", 2e-2)
    return {"name": names[kind], "T": params.get("timesteps", 1000), "start": start, "end": end}


def _first_stage(stage: Mapping[str, Any], scale_factor: float) -> AutoencoderConfig:
    kind, params = _class(stage), stage["params"]
    require(
        kind in ("AutoencoderKL", "VQModelInterface", "VQModel"),
        f"the first stage is {kind}; known are AutoencoderKL and VQModelInterface",
    )
    codebook = params["n_embed"] if kind.startswith("VQ") else None
    return autoencoder_config(params["ddconfig"], params["embed_dim"], codebook, scale_factor)


def _text(stage: Any, width: int | None) -> TextConfigs | None:
    if not isinstance(stage, Mapping):
        require(width is None, f"the UNet takes text, but cond_stage_config is {stage!r}; give the published YAML")
        return None
    kind, params = _class(stage), stage.get("params") or {}
    if kind == "FrozenCLIPEmbedder":
        return ClipTextConfig()
    if kind == "FrozenOpenCLIPEmbedder":
        reads = params.get("layer", "last")
        return dataclasses.replace(OPENCLIP_TEXT, reads=reads)
    if kind == "BERTEmbedder":
        size, length = params.get("vocab_size", 30522), params.get("max_seq_len", 77)
        return BertTextConfig(vocab_size=size, length=length, width=params["n_embed"], layers=params["n_layer"])
    require(kind == "ClassEmbedder", f"the text stage is {kind}; known are CLIP's, OpenCLIP's, BERT's and class labels")
    return ClassContextConfig(classes=params.get("n_classes", 1000), width=params["embed_dim"])


def _inputs(extra: int) -> Inputs:
    kinds: dict[int, Inputs] = {0: "plain", 1: "depth", 5: "inpainting"}
    require(extra in kinds, f"the UNet takes {extra} channels beside those of latents; known are 0, 1 and 5")
    return kinds[extra]


def _class(stage: Mapping[str, Any]) -> str:
    return str(stage["target"]).rpartition(".")[2]

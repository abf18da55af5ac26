"""The config.json files of diffusers' folders, and of the CLIPs of transformers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerdiff.errors import UserError, require
from steerdiff.models.config import UNetConfig
from steerdiff.models.official import diffusers_unet_config, diffusers_vae_config
from steerdiff.models.text_config import ClipTextConfig

from .spec import Inputs, PublishedModel

__all__ = ["beside", "from_folder", "from_json"]

_LARGEST = 2**20  # bytes; the published ones have a few thousand
_V_WIDTH = 1024  # of the text states of Stable Diffusion 2.x, whose models predict noise or v
_SCHEDULES = {"scaled_linear": "scaled_linear", "linear": "linear"}
_MEANINGS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
#: Times and betas where the scheduler does not give them: those of diffusers' classes.
_SCHEDULER_DEFAULTS = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
_SD_SCHEDULE = {"name": "scaled_linear", "T": 1000, "start": 0.00085, "end": 0.012}


def from_folder(folder: Path) -> PublishedModel:
    """Return the model that the config.json files of a folder of diffusers describe.

    Raises:
        UserError: The folder has none, one is damaged, or they leave open whether noise or v is predicted.
    """
    unet = diffusers_unet_config(_read(folder / "unet/config.json")) if _has(folder, "unet/config.json") else None
    stage = _read(folder / "vae/config.json") if _has(folder, "vae/config.json") else None
    text = _read(folder / "text_encoder/config.json") if _has(folder, "text_encoder/config.json") else None
    require(
        unet is not None or stage is not None or text is not None,
        f"the folder {folder} has no config.json; give config: a preset, or the path of a configuration",
    )
    autoencoder = None if stage is None else diffusers_vae_config(stage)
    cells = _read(folder / "unet/config.json").get("sample_size") if unet is not None else None
    pixels = (cells or 64) * (autoencoder.factor if autoencoder is not None else 8)
    return PublishedModel(
        family="latent",
        unet=unet,
        autoencoder=autoencoder,
        text=None if text is None else _text(text, folder),
        image_size=pixels,
        inputs=_inputs(unet) if unet is not None else "plain",
        clip_x0=False,
        **_scheduler(folder, unet),
    )


def from_json(path: Path) -> PublishedModel:
    """Return the model of a folder's ``config.json`` or ``model_index.json``, or of a CLIP of transformers.

    Raises:
        UserError: The file is damaged, or describes something that does not exist here.
    """
    values = _read(path)
    if path.name == "model_index.json":
        return from_folder(path.parent)
    if "vision_config" in values and "text_config" in values:
        from steerdiff.models.official_clip import hf_clip_config  # it imports this folder, for the configuration

        clip = hf_clip_config(values["text_config"], values["vision_config"], values.get("projection_dim", 512))
        return PublishedModel(family="clip", clip=clip, image_size=clip.vision_cfg["image_size"])
    if "family" in values:
        return PublishedModel.from_dict(values)
    if path.name == "config.json" and path.parent.name in ("unet", "vae", "text_encoder"):
        return from_folder(path.parent.parent)
    kind = values.get("_class_name")
    if kind == "UNet2DConditionModel":
        unet = diffusers_unet_config(values)
        return PublishedModel(
            family="latent", unet=unet, image_size=512, inputs=_inputs(unet), clip_x0=False, **_guessed(path, unet)
        )
    if kind == "AutoencoderKL":
        return PublishedModel(family="latent", autoencoder=diffusers_vae_config(values), image_size=512, clip_x0=False)
    raise UserError(f"{path} is no config.json of a UNet, an autoencoder or a CLIP; give one of those, or a preset")


def beside(path: Path) -> Path | None:
    """Return what describes the weights at ``path``: its folder of diffusers, or the config.json in its folder."""
    folder = path if path.is_dir() else path.parent
    if any(_has(folder, f"{part}/config.json") for part in ("unet", "vae", "text_encoder")):
        return folder if path.is_dir() else None
    named = folder / "config.json"
    return named if named.is_file() else None


def _text(values: Mapping[str, Any], folder: Path) -> ClipTextConfig:
    from steerdiff.models.official_clip import hf_text_config  # it imports this folder, for the configuration

    projects = any("WithProjection" in str(name) for name in values.get("architectures") or ())
    config = hf_text_config(values, projects=projects)
    return dataclasses.replace(config, pad=_pad(folder, config))


def _pad(folder: Path, config: ClipTextConfig) -> int:
    """Return the id that the tokenizer pads with: "!" is 0 (Stable Diffusion 2.x), the end token the last."""
    token: Any = None
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / "tokenizer" / name
        token = token or (_read(path).get("pad_token") if path.is_file() else None)
    if isinstance(token, Mapping):
        token = token.get("content")
    is_zero = token == "!" if token is not None else config.activation == "gelu"
    return 0 if is_zero else config.vocab_size - 1


def _inputs(unet: UNetConfig) -> Inputs:
    kinds: dict[int, Inputs] = {0: "plain", 1: "depth", 5: "inpainting"}
    extra = unet.in_channels - unet.out_channels
    require(extra in kinds, f"the UNet takes {extra} channels beside those of latents; known are 0, 1 and 5")
    return kinds[extra]


def _scheduler(folder: Path, unet: UNetConfig | None) -> dict[str, Any]:
    """Return schedule and parameterisation by ``scheduler/scheduler_config.json``."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return _guessed(folder, unet) if unet is not None else {"schedule": _SD_SCHEDULE}
    values = {**_SCHEDULER_DEFAULTS, **_read(path)}
    kind, meaning = values["beta_schedule"], values.get("prediction_type", "epsilon")
    require(kind in _SCHEDULES, f"{path} has beta_schedule {kind!r}; known are {', '.join(_SCHEDULES)}")
    require(meaning in _MEANINGS, f"{path} has prediction_type {meaning!r}; known are {', '.join(_MEANINGS)}")
    require(values.get("trained_betas") is None, f"{path} has trained_betas, which are not supported")
    names = {"name": _SCHEDULES[kind], "T": values["num_train_timesteps"]}
    schedule = {**names, "start": values["beta_start"], "end": values["beta_end"]}
    return {"schedule": schedule, "parameterization": _MEANINGS[meaning]}


def _guessed(path: Path, unet: UNetConfig) -> dict[str, Any]:
    """Return what holds of every published model of the UNet's shape, where there is no scheduler's configuration."""
    open_question = unet.context_dim == _V_WIDTH and unet.in_channels == unet.out_channels
    require(
        not open_question,
        f"{path} has no scheduler_config.json, so it does not say whether the UNet predicts noise or v; "
        'give config="sd-2.1-base" (noise) or config="sd-2.1-v" (v)',
    )
    return {"schedule": _SD_SCHEDULE}


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _read(path: Path) -> dict[str, Any]:
    require(path.is_file(), f"{path} is not a file; check the path")
    require(path.stat().st_size <= _LARGEST, f"{path} is too large for a configuration; give the published file")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); fetch it again") from error
    require(isinstance(values, dict), f"{path} holds no configuration; fetch it again")
    return dict(values)

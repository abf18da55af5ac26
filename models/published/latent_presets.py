"""Presets of latent models: Stable Diffusion 1.x and 2.x, and latent diffusion's own.

Widths, betas and scales are those of the configurations that CompVis and Stability publish beside the weights.
"""

from __future__ import annotations

from typing import Any

from steerdiff.models.config import AutoencoderConfig, UNetConfig
from steerdiff.models.text_config import BertTextConfig, ClassContextConfig, ClipTextConfig

from .spec import Inputs, Preset, PublishedModel

__all__ = ["LATENT_PRESETS", "OPENCLIP_TEXT"]

_CREATIVE_ML = "CreativeML Open RAIL-M"
_CREATIVE_ML_2 = "CreativeML Open RAIL++-M"

_SD_SCHEDULE = {"name": "scaled_linear", "T": 1000, "start": 0.00085, "end": 0.012}
_SD_SHAPE: dict[str, Any] = {
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": (1, 2, 4, 4),
    "attention_at": (1, 2, 4),
}

#: The text tower of OpenCLIP's ViT-H/14 as Stable Diffusion 2.x reads it, with the block that it does not read.
OPENCLIP_TEXT = ClipTextConfig(
    width=1024,
    heads=16,
    layers=24,
    activation="gelu",
    reads="penultimate",
    pad=0,
    undoes_html=True,
    projection=1024,
)


def _sd1(inputs: Inputs = "plain") -> PublishedModel:
    channels = 9 if inputs == "inpainting" else 4
    return PublishedModel(
        family="latent",
        unet=UNetConfig(**_SD_SHAPE, in_channels=channels, num_heads=8, context_dim=768),
        autoencoder=AutoencoderConfig(),
        text=ClipTextConfig(),
        schedule=_SD_SCHEDULE,
        image_size=512,
        inputs=inputs,
        clip_x0=False,
    )


def _sd2(size: int, inputs: Inputs = "plain", *, predicts_v: bool = False) -> PublishedModel:
    channels = {"plain": 4, "inpainting": 9, "depth": 5}[inputs]
    return PublishedModel(
        family="latent",
        unet=UNetConfig(**_SD_SHAPE, in_channels=channels, head_channels=64, context_dim=1024, linear_projections=True),
        autoencoder=AutoencoderConfig(),
        text=OPENCLIP_TEXT,
        schedule=_SD_SCHEDULE,
        parameterization="v" if predicts_v else "eps",
        image_size=size,
        inputs=inputs,
        clip_x0=False,
    )


_PLMS = {"solver": "plms", "steps": 50, "guidance": 7.5}
_DDIM = {"solver": "ddim", "steps": 50, "guidance": 9.0}


def _preset(model: PublishedModel, files: tuple[str, ...], description: str, source: str, **more: Any) -> Preset:
    return Preset(model=model, files=files, description=description, source=source, **more)


def _sd1_preset(number: int) -> Preset:
    names: tuple[str, ...] = (f"sd-v1-{number}.ckpt", f"sd-v1-{number}-full-ema.ckpt")
    if number == 5:
        names = ("v1-5-pruned-emaonly.safetensors", "v1-5-pruned.safetensors")
        names += ("v1-5-pruned-emaonly.ckpt", "v1-5-pruned.ckpt")
    return _preset(
        _sd1(),
        names,
        f"Stable Diffusion 1.{number}, 512 pixels, predicts noise",
        "stable-diffusion-v1-5 on huggingface.co" if number == 5 else f"CompVis/stable-diffusion-v-1-{number}-original",
        licence=_CREATIVE_ML,
        sampling=_PLMS,
    )


def _sd2_preset(model: PublishedModel, stem: str, description: str, repository: str) -> Preset:
    return _preset(
        model,
        (f"{stem}.safetensors", f"{stem}.ckpt"),
        description,
        f"stabilityai/{repository}",
        licence=_CREATIVE_ML_2,
        sampling=_DDIM,
    )


_STABLE: dict[str, Preset] = {
    **{f"sd-1.{number}": _sd1_preset(number) for number in (1, 2, 3, 4, 5)},
    "sd-1-inpainting": _preset(
        _sd1("inpainting"),
        ("sd-v1-5-inpainting.ckpt", "sd-v1-5-inpainting.safetensors"),
        "Stable Diffusion 1.5 for inpainting, 512 pixels, predicts noise",
        "runwayml/stable-diffusion-inpainting",
        licence=_CREATIVE_ML,
        sampling=_DDIM | {"guidance": 7.5},
    ),
    "sd-2-base": _sd2_preset(
        _sd2(512), "512-base-ema", "Stable Diffusion 2.0, 512 pixels, predicts noise", "stable-diffusion-2-base"
    ),
    "sd-2-v": _sd2_preset(
        _sd2(768, predicts_v=True), "768-v-ema", "Stable Diffusion 2.0, 768 pixels, predicts v", "stable-diffusion-2"
    ),
    "sd-2.1-base": _sd2_preset(
        _sd2(512),
        "v2-1_512-ema-pruned",
        "Stable Diffusion 2.1, 512 pixels, predicts noise",
        "stable-diffusion-2-1-base",
    ),
    "sd-2.1-v": _sd2_preset(
        _sd2(768, predicts_v=True),
        "v2-1_768-ema-pruned",
        "Stable Diffusion 2.1, 768 pixels, predicts v",
        "stable-diffusion-2-1",
    ),
    "sd-2-inpainting": _sd2_preset(
        _sd2(512, "inpainting"),
        "512-inpainting-ema",
        "Stable Diffusion 2.0 for inpainting, 512 pixels, predicts noise",
        "stable-diffusion-2-inpainting",
    ),
    "sd-2-depth": _sd2_preset(
        _sd2(512, "depth"),
        "512-depth-ema",
        "Stable Diffusion 2.0 with depth, 512 pixels, predicts noise",
        "stable-diffusion-2-depth",
    ),
}

_LDM_SCHEDULE = {"name": "scaled_linear", "T": 1000, "start": 0.0015, "end": 0.0195}
_VQ_F4 = AutoencoderConfig(
    kind="vq", channel_mult=(1, 2, 4), z_channels=3, embed_dim=3, codebook_size=8192, scale_factor=1.0
)


def _ldm_uncond(what: str, archive: str, eta: float) -> Preset:
    unet = UNetConfig(model_channels=224, channel_mult=(1, 2, 3, 4), attention_at=(2, 4, 8), head_channels=32)
    model = PublishedModel(
        family="latent", unet=unet, autoencoder=_VQ_F4, schedule=_LDM_SCHEDULE, image_size=256, clip_x0=False
    )
    return _preset(
        model,
        (f"{archive}.zip: model.ckpt",),
        f"{what}, 256 pixels, latent diffusion with VQ-f4",
        f"https://ommer-lab.com/files/latent-diffusion/{archive}.zip; CompVis/latent-diffusion",
        licence="MIT (the repository)",
        sampling={"solver": "ddim", "eta": eta, "steps": 200, "ema": True},
    )


#: Scale 1.0 stands for what the file holds: this model was trained with latents of unit variance (scale_by_std).
_CHURCHES = PublishedModel(
    family="latent",
    unet=UNetConfig(
        in_channels=4,
        out_channels=4,
        model_channels=192,
        channel_mult=(1, 2, 2, 4, 4),
        attention_at=(1, 2, 4, 8),
        num_heads=8,
        scale_shift_norm=True,
        resblock_updown=True,
    ),
    autoencoder=AutoencoderConfig(scale_factor=1.0),
    schedule=_LDM_SCHEDULE | {"end": 0.0155},
    image_size=256,
    clip_x0=False,
)
_CIN = PublishedModel(
    family="latent",
    unet=UNetConfig(
        model_channels=192, channel_mult=(1, 2, 3, 5), attention_at=(2, 4, 8), num_heads=1, context_dim=512
    ),
    autoencoder=_VQ_F4,
    text=ClassContextConfig(),
    schedule=_LDM_SCHEDULE,
    image_size=256,
    null_class=1000,
    clip_x0=False,
)
_TEXT2IMG = PublishedModel(
    family="latent",
    unet=UNetConfig(**_SD_SHAPE, in_channels=4, num_heads=8, context_dim=1280),
    autoencoder=AutoencoderConfig(),
    text=BertTextConfig(),
    schedule=_SD_SCHEDULE,
    image_size=256,
    clip_x0=False,
)

_LDM: dict[str, Preset] = {
    "ldm-text2img-large": _preset(
        _TEXT2IMG,
        ("model.ckpt of text2img-large",),
        "text to image, 256 pixels, latent diffusion with KL-f8 and its own text transformer",
        "https://ommer-lab.com/files/latent-diffusion/nitro/txt2img-f8-large/model.ckpt; CompVis/latent-diffusion",
        sampling={"solver": "ddim", "steps": 50, "guidance": 5.0},
    ),
    "ldm-cin256-v2": _preset(
        _CIN,
        ("model.ckpt of cin256-v2",),
        "ImageNet by class, 256 pixels, latent diffusion with VQ-f4",
        "https://ommer-lab.com/files/latent-diffusion/nitro/cin/model.ckpt; CompVis/latent-diffusion",
        sampling={"solver": "ddim", "steps": 20, "guidance": 3.0},
    ),
    "ldm-celebahq-vq4": _ldm_uncond("faces (CelebA-HQ)", "celeba", 0.0),
    "ldm-ffhq-vq4": _ldm_uncond("faces (FFHQ)", "ffhq", 1.0),
    "ldm-lsun-bedrooms-vq4": _ldm_uncond("LSUN bedrooms", "lsun_bedrooms", 1.0),
    "ldm-lsun-churches-kl8": _preset(
        _CHURCHES,
        ("lsun_churches.zip: model.ckpt",),
        "LSUN churches, 256 pixels, latent diffusion with KL-f8",
        "https://ommer-lab.com/files/latent-diffusion/lsun_churches.zip; CompVis/latent-diffusion",
        licence="MIT (the repository)",
        sampling={"solver": "ddim", "eta": 0.0, "steps": 400, "ema": True},
    ),
}

#: By name.
LATENT_PRESETS: dict[str, Preset] = {**_STABLE, **_LDM}

"""Presets of models in pixel space: guided-diffusion, improved-diffusion, their descendants, and DDPM networks."""

from __future__ import annotations

from typing import Any

from steerdiff.models.official import ddpm_config

from .flags import from_flags, parse_command_line
from .spec import Preset, PublishedModel

__all__ = ["PIXEL_PRESETS"]

_ADM_SOURCE = (
    "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/{}; flags of github.com/openai/guided-diffusion"
)
_IDDPM_SOURCE = (
    "https://openaipublic.blob.core.windows.net/diffusion/march-2021/{}; flags of github.com/openai/improved-diffusion"
)
_OPENAI = "MIT (the repository)"

#: Sampling of the official scripts: 250 steps of DDPM, respaced.
_RESPACED = {"solver": "ddpm", "steps": "250", "spacing": "respaced"}

_ADM = "--learn_sigma True --resblock_updown True --use_scale_shift_norm True --diffusion_steps 1000"
_ADM_256 = (
    f"{_ADM} --attention_resolutions 32,16,8 --noise_schedule linear --num_channels 256 --num_head_channels 64 "
    "--num_res_blocks 2"
)
_LSUN = f"{_ADM_256} --image_size 256 --class_cond False"
_UPSAMPLER = f"{_ADM} --class_cond True --noise_schedule linear --num_channels 192 --num_res_blocks 2"
_P2 = (
    f"{_ADM} --attention_resolutions 16 --class_cond False --dropout 0.0 --image_size 256 --noise_schedule linear "
    "--num_channels 128 --num_head_channels 64 --num_res_blocks 1"
)
_COSINE_4000 = "--learn_sigma True --diffusion_steps 4000 --noise_schedule cosine --num_res_blocks 3"
_IDDPM_LSUN = (
    "--image_size 256 --num_channels 128 --num_res_blocks 2 --num_heads 1 --learn_sigma True "
    "--use_scale_shift_norm False --attention_resolutions 16 --diffusion_steps 1000 --noise_schedule linear"
)


def _adm(flags: str, file: str, description: str, **sampling: Any) -> Preset:
    return Preset(
        model=from_flags(parse_command_line(flags)),
        files=(file,),
        description=description,
        source=_ADM_SOURCE.format(file),
        licence=_OPENAI,
        sampling={**_RESPACED, **sampling},
    )


def _classifier(size: int, depth: int = 2) -> Preset:
    file = f"{size}x{size}_classifier.pt"
    return Preset(
        model=from_flags({"image_size": size, "classifier_depth": depth}),
        files=(file,),
        description=f"noisy ImageNet classifier of {size} x {size} pixels, 1000 classes",
        source=_ADM_SOURCE.format(file),
        licence=_OPENAI,
    )


def _guide(name: str, scale: float) -> dict[str, Any]:
    return {"classifier": name, "classifier_scale": scale}


#: Classifier scales: the sampling commands of guided-diffusion's README.
_GUIDED: dict[str, Preset] = {
    "adm-64": _adm(
        f"{_ADM} --attention_resolutions 32,16,8 --class_cond True --dropout 0.1 --image_size 64 "
        "--noise_schedule cosine --num_channels 192 --num_head_channels 64 --num_res_blocks 3 "
        "--use_new_attention_order True",
        "64x64_diffusion.pt",
        "ImageNet by class, 64 x 64 pixels",
        **_guide("adm-64-classifier", 1.0),
    ),
    "adm-128": _adm(
        f"{_ADM} --attention_resolutions 32,16,8 --class_cond True --image_size 128 --noise_schedule linear "
        "--num_channels 256 --num_heads 4 --num_res_blocks 2",
        "128x128_diffusion.pt",
        "ImageNet by class, 128 x 128 pixels",
        **_guide("adm-128-classifier", 0.5),
    ),
    "adm-256": _adm(
        f"{_ADM_256} --image_size 256 --class_cond True",
        "256x256_diffusion.pt",
        "ImageNet by class, 256 x 256 pixels",
        **_guide("adm-256-classifier", 1.0),
    ),
    "adm-256-uncond": _adm(
        f"{_ADM_256} --image_size 256 --class_cond False",
        "256x256_diffusion_uncond.pt",
        "ImageNet without labels, 256 x 256 pixels",
        **_guide("adm-256-classifier", 10.0),
    ),
    "adm-512": _adm(
        f"{_ADM_256} --image_size 512 --class_cond True",
        "512x512_diffusion.pt",
        "ImageNet by class, 512 x 512 pixels",
        **_guide("adm-512-classifier", 4.0),
    ),
    "adm-512-uncond": Preset(
        model=from_flags(parse_command_line(f"{_ADM_256} --image_size 512 --class_cond False")),
        files=("512x512_diffusion_uncond_finetune_008100.pt",),
        description="ImageNet without labels, 512 x 512 pixels, tuned from adm-512 by Katherine Crowson",
        source="community checkpoint; OpenAI published no unconditional model of this size",
        sampling=_RESPACED,
    ),
    "adm-lsun-bedroom": _adm(f"{_LSUN} --dropout 0.1", "lsun_bedroom.pt", "LSUN bedrooms, 256 pixels", steps="1000"),
    "adm-lsun-cat": _adm(f"{_LSUN} --dropout 0.1", "lsun_cat.pt", "LSUN cats, 256 pixels", steps="1000"),
    "adm-lsun-horse": _adm(f"{_LSUN} --dropout 0.1", "lsun_horse.pt", "LSUN horses, 256 pixels", steps="1000"),
    "adm-lsun-horse-nodropout": _adm(
        f"{_LSUN} --dropout 0.0",
        "lsun_horse_nodropout.pt",
        "LSUN horses trained without dropout, 256 pixels",
        steps="1000",
    ),
    "adm-64-256-upsampler": _adm(
        f"{_UPSAMPLER} --attention_resolutions 32,16,8 --large_size 256 --small_size 64 --num_heads 4",
        "64_256_upsampler.pt",
        "ImageNet by class, from 64 to 256 pixels",
    ),
    "adm-128-512-upsampler": _adm(
        f"{_UPSAMPLER} --attention_resolutions 32,16 --large_size 512 --small_size 128 --num_head_channels 64",
        "128_512_upsampler.pt",
        "ImageNet by class, from 128 to 512 pixels",
    ),
    "adm-64-classifier": _classifier(64, depth=4),
    "adm-128-classifier": _classifier(128),
    "adm-256-classifier": _classifier(256),
    "adm-512-classifier": _classifier(512),
}


def _iddpm(flags: str, *files: str, description: str) -> Preset:
    return Preset(
        model=from_flags(parse_command_line(flags)),
        files=files,
        description=description,
        source=_IDDPM_SOURCE.format(files[0]),
        licence=_OPENAI,
        sampling=_RESPACED,
    )


#: Its own defaults differ from guided-diffusion's: times are rescaled where the flags do not say otherwise.
_IMPROVED: dict[str, Preset] = {
    "iddpm-imagenet64-uncond": _iddpm(
        f"{_COSINE_4000} --image_size 64 --num_channels 128 --rescale_timesteps True",
        "imagenet64_uncond_100M_1500K.pt",
        "imagenet64_uncond_vlb_100M_1500K.pt",
        description="ImageNet without labels, 64 x 64 pixels, T = 4000",
    ),
    "iddpm-cifar10-uncond": _iddpm(
        f"{_COSINE_4000} --image_size 32 --num_channels 128 --dropout 0.3 --rescale_timesteps True",
        "cifar10_uncond_50M_500K.pt",
        "cifar10_uncond_vlb_50M_500K.pt",
        description="CIFAR-10 without labels, 32 x 32 pixels, T = 4000",
    ),
    "iddpm-imagenet64-cond": _iddpm(
        f"{_COSINE_4000} --image_size 64 --num_channels 192 --class_cond True --rescale_timesteps False",
        "imagenet64_cond_270M_250K.pt",
        description="ImageNet by class, 64 x 64 pixels, T = 4000",
    ),
    "iddpm-64-256-upsampler": _iddpm(
        "--num_channels 192 --num_res_blocks 2 --learn_sigma True --class_cond True --large_size 256 --small_size 64 "
        "--diffusion_steps 4000 --noise_schedule linear --rescale_timesteps False",
        "upsample_cond_500K.pt",
        description="ImageNet by class, from 64 to 256 pixels, T = 4000",
    ),
    "iddpm-lsun-bedroom": _iddpm(
        _IDDPM_LSUN,
        "lsun_uncond_100M_1200K_bs128.pt",
        "lsun_uncond_100M_2400K_bs64.pt",
        description="LSUN bedrooms, 256 x 256 pixels",
    ),
}


def _p2(what: str, *files: str, source: str = "github.com/jychoi118/P2-weighting") -> Preset:
    return Preset(
        model=from_flags(parse_command_line(_P2)),
        files=files,
        description=f"{what}, 256 x 256 pixels",
        source=source,
        sampling=_RESPACED,
    )


_ILVR = "github.com/jychoi118/ilvr_adm"
_DESCENDANTS: dict[str, Preset] = {
    "ilvr-ffhq": _p2("faces (FFHQ) of ILVR", "ffhq_10m.pt", source=_ILVR),
    "ilvr-afhq-dog": _p2("dogs (AFHQ) of ILVR", "afhq_dog_4m.pt", source=_ILVR),
    "p2-ffhq": _p2("faces (FFHQ) of P2 weighting", "ffhq_p2.pt", "ffhq_baseline.pt"),
    "p2-celebahq": _p2("faces (CelebA-HQ) of P2 weighting", "celebahq_p2.pt"),
    "p2-cub": _p2("birds (CUB) of P2 weighting", "cub_p2.pt", "cub_baseline.pt"),
    "p2-afhq-dog": _p2("dogs (AFHQ) of P2 weighting", "afhq_p2.pt", "afhqdog_p2.pt", "afhq_baseline.pt"),
    "p2-flowers": _p2("flowers (Oxford) of P2 weighting", "flower_p2.pt", "flower_baseline.pt"),
    "p2-metfaces": _p2("painted faces (MetFaces) of P2 weighting", "metface_p2.pt", "metface_baseline.pt"),
    **{
        name: Preset(
            model=from_flags(parse_command_line(f"{_ADM_256} --image_size 256 --class_cond False")),
            files=(file,),
            description=f"{what} of RePaint, 256 x 256 pixels",
            source="github.com/andreas128/RePaint",
            licence="see the repository, whose own licence is non-commercial",
            sampling=_RESPACED,
        )
        for name, file, what in (
            ("repaint-celeba256", "celeba256_250000.pt", "faces (CelebA-HQ)"),
            ("repaint-places256", "places256_300000.pt", "places (Places2)"),
        )
    },
}


def _ddpm(size: int, mult: tuple[int, ...], files: tuple[str, ...], what: str, dropout: float = 0.0) -> Preset:
    section: dict[str, Any] = {
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": mult,
        "num_res_blocks": 2,
        "attn_resolutions": (16,),
    }
    section["dropout"] = dropout
    return Preset(
        model=PublishedModel(family="ddpm", unet=ddpm_config(section, size), image_size=size, clip_x0=False),
        files=files,
        description=f"{what}, {size} x {size} pixels, in the layout of ermongroup",
        source="configurations of github.com/ermongroup/SDEdit and github.com/ermongroup/ddim",
        sampling={"solver": "ddpm", "steps": "1000", "spacing": "respaced"},
    )


_LARGE = (1, 1, 2, 2, 4, 4)
_NETWORKS: dict[str, Preset] = {
    "ddpm-celebahq": _ddpm(256, _LARGE, ("celeba_hq.ckpt",), "faces (CelebA-HQ)"),
    "ddpm-bedroom": _ddpm(256, _LARGE, ("bedroom.ckpt", "diffusion_lsun_bedroom_model"), "LSUN bedrooms"),
    "ddpm-church": _ddpm(256, _LARGE, ("church_outdoor.ckpt", "diffusion_lsun_church_model"), "LSUN churches"),
    "ddpm-cifar10": _ddpm(32, (1, 2, 2, 2), ("diffusion_cifar10_model",), "CIFAR-10", dropout=0.1),
    "ddpm-celeba64": _ddpm(64, (1, 2, 2, 2, 4), ("ckpt.pth",), "faces (CelebA)", dropout=0.1),
}

#: By name.
PIXEL_PRESETS: dict[str, Preset] = {**_GUIDED, **_IMPROVED, **_DESCENDANTS, **_NETWORKS}

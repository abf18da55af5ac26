"""Every published checkpoint that is known by name."""

from __future__ import annotations

from typing import Any

from steerdiff.errors import UserError

from .flags import nearest
from .latent_presets import LATENT_PRESETS
from .pixel_presets import PIXEL_PRESETS
from .spec import ClipConfig, Preset, PublishedModel

__all__ = ["PRESETS", "preset"]


def _clip(  # the numbers of one row of the papers' tables
    name: str, embed_dim: int, vision: dict[str, Any], text: tuple[int, int, int], file: str, *, openai: bool
) -> Preset:
    width, heads, layers = text
    image_size = vision["image_size"]
    config = ClipConfig(
        embed_dim=embed_dim,
        vision_cfg=vision,
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": width, "heads": heads, "layers": layers},
        quick_gelu=openai,
    )
    return Preset(
        model=PublishedModel(family="clip", clip=config, image_size=image_size),
        files=(file,),
        description=f"CLIP {name} of {'OpenAI' if openai else 'LAION'}, {image_size} pixels",
        source="github.com/openai/CLIP" if openai else "github.com/mlfoundations/open_clip",
        licence="MIT (the repository)",
    )


def _vit(layers: int, width: int, patch_size: int, **more: Any) -> dict[str, Any]:
    return {"image_size": 224, "layers": layers, "width": width, **more, "patch_size": patch_size}


def _resnet(image_size: int, layers: list[int], width: int) -> dict[str, Any]:
    return {"image_size": image_size, "layers": layers, "width": width, "patch_size": None}


_B_32 = ("ViT-B/32", 512, _vit(12, 768, 32), (512, 8, 12))
_B_16 = ("ViT-B/16", 512, _vit(12, 768, 16), (512, 8, 12))
_L_14 = ("ViT-L/14", 768, _vit(24, 1024, 14), (768, 12, 12))
_H_14 = ("ViT-H/14", 1024, _vit(32, 1280, 14, head_width=80), (1024, 16, 24))
_LAION = "open_clip_pytorch_model.bin of laion/{}"

CLIP_PRESETS: dict[str, Preset] = {
    "clip-rn50": _clip("RN50", 1024, _resnet(224, [3, 4, 6, 3], 64), (512, 8, 12), "RN50.pt", openai=True),
    "clip-rn50x4": _clip("RN50x4", 640, _resnet(288, [4, 6, 10, 6], 80), (640, 10, 12), "RN50x4.pt", openai=True),
    "clip-rn50x16": _clip("RN50x16", 768, _resnet(384, [6, 8, 18, 8], 96), (768, 12, 12), "RN50x16.pt", openai=True),
    "clip-vit-b-32": _clip(*_B_32, "ViT-B-32.pt", openai=True),
    "clip-vit-b-16": _clip(*_B_16, "ViT-B-16.pt", openai=True),
    "clip-vit-l-14": _clip(*_L_14, "ViT-L-14.pt", openai=True),
    "clip-vit-b-32-laion": _clip(*_B_32, _LAION.format("CLIP-ViT-B-32-laion2B-s34B-b79K"), openai=False),
    "clip-vit-b-16-laion": _clip(*_B_16, _LAION.format("CLIP-ViT-B-16-laion2B-s34B-b88K"), openai=False),
    "clip-vit-l-14-laion": _clip(*_L_14, _LAION.format("CLIP-ViT-L-14-laion2B-s32B-b82K"), openai=False),
    "clip-vit-h-14": _clip(*_H_14, _LAION.format("CLIP-ViT-H-14-laion2B-s32B-b79K"), openai=False),
}

#: By name, as ``steerdiff.load(..., config=NAME)`` takes them.
PRESETS: dict[str, Preset] = {**PIXEL_PRESETS, **LATENT_PRESETS, **CLIP_PRESETS}


def preset(name: str) -> Preset:
    """Return the preset of a name; UserError that names the nearest for an unknown one."""
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}; {nearest(name, PRESETS)}")
    return PRESETS[name]

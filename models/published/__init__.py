"""Published models: what they are made of, how their files name the parts, and the presets."""

from .assembly import open_published, parts
from .configs import published_model
from .flags import from_flags
from .layouts import Layout, Part, recognise
from .part_names import diffusers_vae_keymap, hf_clip_keymap, hf_text_keymap
from .presets import PRESETS, preset
from .spec import ClipConfig, Preset, PublishedModel
from .unet_names import ddpm_keymap, diffusers_unet_keymap

__all__ = [
    "PRESETS",
    "ClipConfig",
    "Layout",
    "Part",
    "Preset",
    "PublishedModel",
    "ddpm_keymap",
    "diffusers_unet_keymap",
    "diffusers_vae_keymap",
    "from_flags",
    "hf_clip_keymap",
    "hf_text_keymap",
    "open_published",
    "parts",
    "preset",
    "published_model",
    "recognise",
]

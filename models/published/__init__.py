"""Published models: what they are made of, how their files name the parts, and the presets."""

from .flags import from_flags
from .presets import PRESETS, preset
from .spec import ClipConfig, Preset, PublishedModel
from .unet_names import ddpm_keymap, diffusers_unet_keymap

__all__ = [
    "PRESETS",
    "ClipConfig",
    "Preset",
    "PublishedModel",
    "ddpm_keymap",
    "diffusers_unet_keymap",
    "from_flags",
    "preset",
]

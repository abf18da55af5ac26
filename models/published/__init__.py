"""Published models: what they are made of, how their files name the parts, and the presets."""

from .spec import ClipConfig, PublishedModel
from .unet_names import ddpm_keymap, diffusers_unet_keymap

__all__ = ["ClipConfig", "PublishedModel", "ddpm_keymap", "diffusers_unet_keymap"]

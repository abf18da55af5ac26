"""Networks and their weights."""

from .build import build, load_state
from .checkpoint import file_hash, load_into, read_header, read_safetensors, save_safetensors
from .config import UNetConfig, config_from_dict
from .control import AttentionEdit, Control, Site, Taps
from .text import TextConfig, WordEncoder
from .text_to_image import TextToImage
from .unet import UNet

__all__ = [
    "AttentionEdit",
    "Control",
    "Site",
    "Taps",
    "TextConfig",
    "TextToImage",
    "UNet",
    "UNetConfig",
    "WordEncoder",
    "build",
    "config_from_dict",
    "file_hash",
    "load_into",
    "load_state",
    "read_header",
    "read_safetensors",
    "save_safetensors",
]

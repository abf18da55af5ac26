"""Networks and their weights."""

from .autoencoder import Autoencoder, Posterior
from .build import build, load_state
from .checkpoint import file_hash, load_into, read_header, read_safetensors, save_safetensors
from .config import AutoencoderConfig, EncoderUNetConfig, UNetConfig, config_from_dict
from .control import AttentionEdit, Control, Site, Taps
from .encoder_unet import EncoderUNet
from .layers import upsampled
from .text import TextConfig, WordEncoder
from .text_to_image import TextToImage
from .unet import UNet

__all__ = [
    "AttentionEdit",
    "Autoencoder",
    "AutoencoderConfig",
    "Control",
    "EncoderUNet",
    "EncoderUNetConfig",
    "Posterior",
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
    "upsampled",
]

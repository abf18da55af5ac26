"""Networks and their weights."""

from .alignment import Span, WordTokens
from .autoencoder import Autoencoder, Posterior
from .bert_text import BertText
from .build import build, load_state
from .checkpoint import file_hash, load_into, read_header, read_safetensors, save_safetensors
from .class_context import ClassContext
from .clip import Clip, build_clip, clip_config, clip_size, image_features, prepare, text_features, tokenize_for
from .clip_file import load_clip
from .clip_text import ClipText
from .clip_towers import ClipFeatures
from .config import AutoencoderConfig, EncoderUNetConfig, UNetConfig, config_from_dict
from .control import AttentionEdit, Control, HShift, Site, Taps
from .encoder_unet import EncoderUNet
from .layers import upsampled
from .noisy_clip import NoisyCLIP, NoisyClipConfig
from .text import TextConfig, WordEncoder
from .text_config import BertTextConfig, ClassContextConfig, ClipTextConfig
from .text_to_image import TextToImage
from .tokenizers import read_vocab
from .unet import UNet

__all__ = [
    "AttentionEdit",
    "Autoencoder",
    "AutoencoderConfig",
    "BertText",
    "BertTextConfig",
    "ClassContext",
    "ClassContextConfig",
    "Clip",
    "ClipFeatures",
    "ClipText",
    "ClipTextConfig",
    "Control",
    "EncoderUNet",
    "EncoderUNetConfig",
    "HShift",
    "NoisyCLIP",
    "NoisyClipConfig",
    "Posterior",
    "Site",
    "Span",
    "Taps",
    "TextConfig",
    "TextToImage",
    "UNet",
    "UNetConfig",
    "WordEncoder",
    "WordTokens",
    "build",
    "build_clip",
    "clip_config",
    "clip_size",
    "config_from_dict",
    "file_hash",
    "image_features",
    "load_clip",
    "load_into",
    "load_state",
    "prepare",
    "read_header",
    "read_safetensors",
    "read_vocab",
    "save_safetensors",
    "text_features",
    "tokenize_for",
    "upsampled",
]

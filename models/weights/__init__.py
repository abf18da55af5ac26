"""Files of weights: read without running code, one tensor at a time, and matched to our networks by name."""

from .keymap import KeyMap, Origin, check_fit, fill, identity, published_tensors, read_ours
from .open import joined, open_weights
from .reader import Entry, WeightFile
from .writer import Group, write_safetensors

__all__ = [
    "Entry",
    "Group",
    "KeyMap",
    "Origin",
    "WeightFile",
    "check_fit",
    "fill",
    "identity",
    "joined",
    "open_weights",
    "published_tensors",
    "read_ours",
    "write_safetensors",
]

"""Files of weights: read without running code, one tensor at a time, and matched to our networks by name."""

from .keymap import KeyMap, Origin, fill, identity, published_tensors, read_ours
from .open import joined, open_weights
from .reader import Entry, WeightFile

__all__ = [
    "Entry",
    "KeyMap",
    "Origin",
    "WeightFile",
    "fill",
    "identity",
    "joined",
    "open_weights",
    "published_tensors",
    "read_ours",
]

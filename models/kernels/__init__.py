"""Fused CUDA kernels for edited attention and for normalisation, as PyTorch operators, with one setting (`use`)."""

from .choice import Kernels, at_hand, fused, setting, status, use
from .ops import edited_attention, led_attention, norm_silu

__all__ = [
    "Kernels",
    "at_hand",
    "edited_attention",
    "fused",
    "led_attention",
    "norm_silu",
    "setting",
    "status",
    "use",
]

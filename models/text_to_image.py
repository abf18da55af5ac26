"""A UNet and the text encoder that was trained with it, as one module."""

from __future__ import annotations

from torch import Tensor, nn

from .config import UNetConfig
from .control import Control
from .text import TextConfig, WordEncoder
from .unet import UNet

__all__ = ["TextToImage"]


class TextToImage(nn.Module):
    """What text-to-image training trains; its state dict has the prefixes ``unet.`` and ``text.``."""

    def __init__(self, unet: UNetConfig, text: TextConfig) -> None:
        super().__init__()
        self.unet = UNet(unet)
        self.text = WordEncoder(text)

    def forward(self, x: Tensor, t: Tensor, ids: Tensor, mask: Tensor, control: Control | None = None) -> Tensor:
        """Return the network's output [B, C, H, W] for noisy images ``x``, times ``t`` [B] and tokens [B, L]."""
        out: Tensor = self.unet(x, t, self.text(ids, mask), control=control, context_mask=mask)
        return out

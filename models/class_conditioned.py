"""A UNet with cross-attention whose only text state is a class label (latent diffusion's ImageNet model)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .class_context import ClassContext
from .config import UNetConfig
from .unet import UNet

__all__ = ["ClassConditioned"]


class ClassConditioned(nn.Module):
    """Called as a class-conditional network; the label becomes the one state that cross-attention reads.

    Source: Rombach et al. 2022, section 4.3.2 and the published ``cin256-v2``.
    """

    def __init__(self, unet: UNet, context: ClassContext) -> None:
        super().__init__()
        self.unet, self.context = unet, context

    @property
    def config(self) -> UNetConfig:
        """The configuration of the UNet."""
        return self.unet.config

    def forward(self, x: Tensor, t: Tensor, y: Tensor, **arguments: Any) -> Tensor:
        """Return the UNet's output for noisy latents ``x`` [B, C, h, w] at times ``t`` [B] with labels ``y`` [B]."""
        states = self.context.embedding(y)[:, None]  # the labels were checked before the loop, where nothing may wait
        out: Tensor = self.unet(x, t, states, **arguments)
        return out

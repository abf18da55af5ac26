"""What some networks see beside the noisy state: a mask and the masked image, a small image, or depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import require
from steerdiff.models.layers import upsampled

from .checks import check_image, check_mask

if TYPE_CHECKING:
    from .model import Model

__all__ = ["ExtraInput", "cells_of"]

Kind = Literal["plain", "low_res", "inpainting", "depth"]

_MAKERS = {
    "low_res": "low_res_input(images)",
    "inpainting": "inpainting_input(image, mask)",
    "depth": "depth_input(depth)",
}


@dataclass(frozen=True, kw_only=True)
class ExtraInput:
    """Which input a network has beside its state, and how it is made."""

    kind: Kind = "plain"  #: "plain" for none
    low_res_size: int | None = None  #: height and width of an upsampler's small images, in pixels

    def check(self, model: Model, given: Tensor | None) -> None:
        """Raise ``UserError`` where an input is missing or superfluous."""
        if self.kind == "plain":
            require(given is None, f"{model.name} sees nothing beside the noisy state; leave extra out")
        else:
            made = f"model.{_MAKERS[self.kind]}"
            require(given is not None, f"{model.name} sees more than the noisy state; pass extra={made}")

    def inpainting(self, model: Model, image: Tensor, mask: Tensor) -> Tensor:
        """Return [B, 1 + C, h, w]: the mask at the latent's size (nearest), then the latent of the image in grey there.

        Source: Rombach et al. 2022, section 4.5, in the order of the published Stable Diffusion inpainting models.
        """
        self._require(model, "inpainting")
        fitted = check_mask(mask, model.size).to(model.device)
        require(
            fitted.shape[0] in (1, image.shape[0]),
            f"{fitted.shape[0]} masks were given for {image.shape[0]} images; give one, or one for each image",
        )
        fitted = fitted.expand(image.shape[0], -1, -1, -1)
        latent = model.encode(image.to(model.device) * (1 - fitted))
        small = functional.interpolate(fitted, size=latent.shape[-2:], mode="nearest")
        return torch.cat([small.to(latent), latent], dim=1)

    def low_res(self, model: Model, images: Tensor) -> Tensor:
        """Return small images [B, 3, s, s] in [-1, 1] at the model's size, bilinearly (Nichol & Dhariwal 2021)."""
        self._require(model, "low_res")
        side = self.low_res_size or 0
        return upsampled(check_image(images, 3, (side, side), "low_res").to(model.device), model.size)

    def depth(self, model: Model, depth: Tensor) -> Tensor:
        """Return depths [B, 1, H, W] at the latent's size, each scaled to [-1, 1] as Stable Diffusion 2 was."""
        self._require(model, "depth")
        fits = depth.dim() == 4 and depth.shape[1] == 1 and bool(depth.isfinite().all())
        require(fits, f"depth is {list(depth.shape)}; expected finite values [B, 1, H, W], larger where nearer")
        cells = [side // model.factor for side in model.size]
        small = functional.interpolate(depth.to(model.device).float(), size=cells, mode="bicubic", align_corners=False)
        low, high = small.amin((1, 2, 3), keepdim=True), small.amax((1, 2, 3), keepdim=True)
        return 2 * (small - low) / (high - low).clamp(min=1e-12) - 1

    def _require(self, model: Model, kind: Kind) -> None:
        require(self.kind == kind, f"{model.name} takes no {kind} input; it has the kind {self.kind!r}")


def cells_of(mask: Tensor, factor: int) -> Tensor:
    """Return a pixel mask [B, 1, H, W] on the grid of a latent: 1 where any pixel of the cell is 1."""
    return functional.max_pool2d(mask, factor) if factor > 1 else mask

"""A class label as the one text state of a UNet with cross-attention."""

from __future__ import annotations

from torch import Tensor, nn

from steerdiff.errors import require

from .text_config import ClassContextConfig

__all__ = ["ClassContext"]


class ClassContext(nn.Module):
    """A table of states, one for each label. Source: latent-diffusion's class-conditional ImageNet model."""

    def __init__(self, config: ClassContextConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.classes, config.width)

    def forward(self, y: Tensor) -> Tensor:
        """Return states [B, 1, width] for labels ``y`` [B], integers.

        Raises:
            UserError: ``y`` is not a row of integers, or a label is outside the table.
        """
        kind = f"{list(y.shape)} of {y.dtype}"
        require(y.dim() == 1 and not y.is_floating_point(), f"y is {kind}; expected one integer label an image, [B]")
        last = self.config.classes - 1
        if y.numel():
            low, high = int(y.min()), int(y.max())
            require(low >= 0 and high <= last, f"y has labels from {low} to {high}; this model has 0 to {last}")
        states: Tensor = self.embedding(y)[:, None]
        return states

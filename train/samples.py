"""Grids of samples that show how a run gets on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.guidance import Model
from steerdiff.io import grid, save_image, to_uint8
from steerdiff.models import TextToImage, UNet
from steerdiff.samplers import NoiseSchedule

from .config import TrainConfig

__all__ = ["SampleGrid"]


class SampleGrid:
    """Draw the same prompts from the same noise again and again, into ``folder``/samples/step-00001000.png.

    Args:
        config: The run's settings; ``sample_prompts`` are captions, or class numbers for a class-conditional model.
            A model without conditions draws one image for each of them, whatever they say.
        model: The trained model.
        schedule: Its noise levels.

    Raises:
        UserError: There is no prompt, or the model does not know one of them.
    """

    def __init__(self, config: TrainConfig, model: TextToImage | UNet, schedule: NoiseSchedule) -> None:
        self.config, self.prompts, self.every = config, config.sample_prompts, config.sample_every
        unet, text = (model.unet, model.text) if isinstance(model, TextToImage) else (model, None)
        self.model = Model(
            network=unet,
            text=text,
            schedule=schedule,
            parameterization=config.parameterization,
            learns_variance=config.learns_variance,
            image_size=config.image_size,
            channels=unet.config.in_channels,
            num_classes=unet.config.num_classes if config.null_class is None else config.null_class,
            null_class=config.null_class,
            name=config.folder,
        )
        require(bool(self.prompts), "sample_every is set, but sample_prompts is empty; give captions to draw")
        if text is not None:
            text.tokenize(list(self.prompts))
        elif self.model.num_classes is not None:
            self.model.condition(y=self._classes())

    def _classes(self) -> list[int]:
        numbers = [prompt for prompt in self.prompts if not prompt.isdecimal()]
        require(not numbers, f"sample_prompts has {numbers[:3]}; this model is conditioned on class numbers")
        return [int(prompt) for prompt in self.prompts]

    def draw(self) -> Tensor:
        """Return one image [C, H, W] for each prompt, [N, C, H, W]."""
        steps, guidance = self.config.sample_steps, self.config.sample_guidance
        if self.model.text is not None:
            return self.model.sample(self.prompts, steps=steps, guidance=guidance)
        if self.model.num_classes is None:
            return self.model.sample(n=len(self.prompts), steps=steps)
        classes = enumerate(self._classes())
        return torch.cat([self.model.sample(y=y, steps=steps, guidance=guidance, seed=seed) for seed, y in classes])

    def __call__(self, step: int) -> Tensor:
        """Save the grid of optimiser step ``step``; return it, uint8 [3, H, W]."""
        picture = grid(self.draw().clamp(-1, 1).cpu())
        path = Path(self.config.folder) / "samples" / f"step-{step:08d}.png"
        save_image(picture, path, {"step": step, "prompts": list(self.prompts)})
        return to_uint8(picture)

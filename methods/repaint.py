"""RePaint: fill the masked part of an image with an unconditional model, going back in time to harmonise it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.guidance import Model
from steerdiff.guidance.prompts import Prompt
from steerdiff.samplers import DDPM, ClipPolicy, Noise, Path, Seeds, Solver, integrate

from .inputs import known_part

__all__ = ["PRESETS", "RePaint"]


@dataclass(frozen=True, kw_only=True)
class RePaint:
    """Fill the masked part of an image by DDPM sampling with time travel.

    After each step the known region is replaced by the image noised to the same level; every ``jump_length`` levels the
    state is noised back up and denoised again, ``jump_n_sample`` times in all. Defaults are the published schedule:
    4570 moves, 2410 of them network calls.

    Source: Lugmayr et al. 2022, Algorithm 1. Where the official code differs (``merge="official"``): it replaces the
    known region before the network is called and not after the step, so the known pixels of the result are what the
    network predicts, and the first call is unconditioned.
    """

    steps: int | str = 250  #: respaced times
    jump_length: int = 10  #: j, levels climbed in one jump; below the number of steps
    jump_n_sample: int = 10  #: r, visits of each segment; 1 is plain conditioning, without jumps
    start_resampling: int | None = None  #: no jump reaches above this respaced time; None is no limit
    merge: Literal["paper", "official"] = "paper"  #: when the known region is put in, see above
    solver: Solver = DDPM()  #: uses the learned variance if the network has one
    clip: ClipPolicy | None = None  #: of x0, after guidance; None is the model's own way: images are clipped
    guidance: float | None = (
        None  #: classifier-free guidance with a prompt, of which the paper has none; None is the model's
    )

    def __post_init__(self) -> None:
        """Check the numbers that need no path."""
        require(self.jump_length >= 1, f"jump_length is {self.jump_length}; it must be at least 1")
        require(self.jump_n_sample >= 1, f"jump_n_sample is {self.jump_n_sample}; it must be at least 1")
        require(self.merge in ("paper", "official"), f"merge is {self.merge!r}; known are 'paper' and 'official'")

    @torch.no_grad()
    def __call__(
        self,
        model: Model,
        image: Tensor,
        mask: Tensor,
        *,
        prompt: Prompt = None,
        negative: Prompt = "",
        seed: Seeds = 0,
        progress: str | None = None,
    ) -> Tensor:
        """Fill each image.

        Args:
            model: Any model.
            image: [B, C, H, W] in [-1, 1]; what is under the mask is not looked at.
            mask: [B, 1, H, W] or [1, 1, H, W], 1 where the image is to be filled. The official files mean the opposite.
            prompt: What the result should show, for a model with text.
            negative: What it should not show.
            seed: One integer (image i uses ``seed + i``) or one for each image.
            progress: Label of a progress bar; None shows none.

        Returns:
            Images [B, C, H, W] in [-1, 1], equal to ``image`` where ``mask`` is 0 (with ``merge="paper"``; of a latent
            model the latents are equal, the pixels as far as its first stage is exact).

        Raises:
            UserError: An image, a mask or a prompt that the model cannot take, or a path too short for one jump.
        """
        known = known_part(model, model.encode(image), mask, before_network=self.merge == "official")  # eq. 8a, 8c
        path = self.path(model)
        denoise = model.denoiser(prompt, negative=negative, scale=self.guidance, clip=self.clip)
        noise = Noise(seed, like=known.x0)
        x = integrate(denoise, self.solver, path, noise(), constraints=[known], noise=noise, progress=progress)
        return model.decode(x)

    def path(self, model: Model) -> Path:
        """Return the path with its jumps; UserError if it is too short for one."""
        down = Path.respaced(model.schedule, self.steps)
        jumps = self.jump_n_sample == 1 or self.jump_length < len(down)
        require(jumps, f"jump_length is {self.jump_length} on a path of {len(down)} steps; it must be smaller to jump")
        return down.with_jumps(self.jump_length, self.jump_n_sample, self.start_resampling)


#: "published" is the setting of all their tables; the others trade quality for time (network calls).
PRESETS: dict[str, RePaint] = {
    "published": RePaint(),  # 2410
    "half": RePaint(jump_n_sample=5),  # 1210
    "short": RePaint(steps=100),  # 910
    "quick": RePaint(steps=50, jump_length=5, jump_n_sample=4),
}

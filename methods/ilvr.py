"""ILVR: samples that share the low frequencies of a reference image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.guidance import Model
from steerdiff.guidance.prompts import Prompt
from steerdiff.samplers import DDPM, ClipPolicy, Noise, Path, Seeds, Solver, integrate
from steerdiff.samplers.constraints import FilteredReference

from .resizing import Kernel, LowPass

__all__ = ["ILVR", "PRESETS"]


@dataclass(frozen=True, kw_only=True)
class ILVR:
    """DDPM sampling whose low frequencies are, after every step, those of the noised reference.

    ``x <- x' - phi(x') + phi(q(y, level))`` with ``phi = up(down(.))``. A larger ``downsample`` or ``range_t`` ties the
    sample less. Defaults are those of the official example.

    Source: Choi et al. 2021, Algorithm 1. Where its code differs: it noises the reference one level too high
    (``reference_level="official"``), as its author says; the paper has the level of the sample.
    """

    downsample: int = 32  #: N, factor of the low-pass; must divide the size of the state and leave 2 cells of it
    range_t: int = 20  #: the last so many steps, and the very last, are free; counted on the respaced path
    steps: int | str = "100"  #: respaced times, or guided-diffusion's string for them
    kernel: Kernel = "cubic"  #: of the low-pass; the official code resizes as Matlab's bicubic does
    reference_level: Literal["paper", "official"] = "paper"  #: level of the reference: the sample's, or one above
    final_projection: bool = False  #: also give the final image the low frequencies of the clean reference
    solver: Solver = DDPM()  #: the official code uses the variance that the network learned
    clip: ClipPolicy | None = None  #: of x0, after guidance; None is the model's own way: images are clipped
    guidance: float | None = (
        None  #: classifier-free guidance with a prompt, of which the paper has none; None is the model's
    )

    def __post_init__(self) -> None:
        """Check the numbers that need no image."""
        require(self.range_t >= 0, f"range_t is {self.range_t}; it must be at least 0, which frees the last step only")
        levels = ("paper", "official")
        require(self.reference_level in levels, f"reference_level is {self.reference_level!r}; known are {levels}")

    @torch.no_grad()
    def __call__(
        self,
        model: Model,
        image: Tensor,
        *,
        prompt: Prompt = None,
        negative: Prompt = "",
        seed: Seeds = 0,
        progress: str | None = None,
    ) -> Tensor:
        """Draw one sample for each reference.

        Args:
            model: Any model.
            image: References [B, C, H, W] in [-1, 1].
            prompt: What the sample should show, for a model with text.
            negative: What it should not show.
            seed: One integer (image i uses ``seed + i``) or one for each image.
            progress: Label of a progress bar; None shows none.

        Returns:
            Images [B, C, H, W] in [-1, 1]; the final projection may overshoot a little.

        Raises:
            UserError: An image or a prompt that the model cannot take, or a ``downsample`` that does not fit.
        """
        y = model.encode(image)
        path = Path.respaced(model.schedule, self.steps)
        low_frequencies = FilteredReference(
            y,
            low_pass=LowPass.of(self.downsample, y, self.kernel),
            moves=max(0, len(path) - 1 - self.range_t),
            at="there" if self.reference_level == "paper" else "here",
            final=self.final_projection,
        )
        denoise = model.denoiser(prompt, negative=negative, scale=self.guidance, clip=self.clip)
        noise = Noise(seed, like=y)
        x = integrate(
            denoise, self.solver, path, noise(), constraints=[low_frequencies], noise=noise, progress=progress
        )
        return model.decode(x)


#: "example" is the official repository's command; the others are the paper's experiments, on 1000 steps.
PRESETS: dict[str, ILVR] = {
    "example": ILVR(),
    "portrait": ILVR(downsample=32, range_t=0, steps="1000"),
    "paint-to-image": ILVR(downsample=64, range_t=0, steps="1000"),
    "scribble": ILVR(downsample=8, range_t=200, steps="1000"),
    "strong": ILVR(downsample=8, range_t=0),
}

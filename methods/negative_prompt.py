"""Negative-prompt inversion: the image's own prompt in the place of the empty one makes guidance undo an inversion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.guidance import Model
from steerdiff.guidance.prompts import Prompt
from steerdiff.guidance.settings import Spacing
from steerdiff.samplers import ClipPolicy, Seeds, resolve_seeds

from .null_text import Inverted, climbed, descent

__all__ = ["PRESETS", "NegativePromptInversion"]


@dataclass(frozen=True, kw_only=True)
class NegativePromptInversion:
    """Invert an image with its prompt, and sample back with that prompt as the unconditional branch: nothing is tuned.

    Null-text inversion tunes the unconditional branch until guidance does no harm; the image's own prompt in its place
    is about what that ends at. Without an edit both branches are then the same, so that the reconstruction is that of
    DDIM inversion without guidance; an edit is guided from what the image shows to what it should show.

    Source: Miyake et al. 2023, section 3. Where the code of null-text inversion differs (``fixed_point=1``): going up
    it reads eps of the old state at the new level.
    """

    steps: int | str = 50  #: moves of the whole path from noise to image
    spacing: Spacing = "compvis"  #: how the steps are spread over the trained times
    guidance: float = 7.5  #: classifier-free guidance from ``prompt`` to ``target``; none of a reconstruction
    fixed_point: int = 0  #: network calls of an implicit step up; more come back closer, 0 is the explicit step
    clip: ClipPolicy = "none"  #: of x0 both ways; published inversions do not clip

    def __post_init__(self) -> None:
        """Check the count."""
        require(self.fixed_point >= 0, f"fixed_point is {self.fixed_point}; give a number of iterations, 0 for none")

    @torch.no_grad()
    def __call__(
        self,
        model: Model,
        image: Tensor,
        *,
        prompt: Prompt = None,
        target: Prompt = None,
        seed: Seeds = 0,
        progress: str | None = None,
    ) -> Tensor:
        """Invert ``image`` and sample back.

        Args:
            model: Any model.
            image: [B, C, H, W] in [-1, 1].
            prompt: What the image shows.
            target: What the result should show; None is ``prompt``, the reconstruction.
            seed: Not used, both ways are deterministic; taken so that all methods are called alike.
            progress: Label of the progress bars; None shows none.

        Returns:
            Images [B, C, H, W], about in [-1, 1].

        Raises:
            UserError: An image or a prompt that the model cannot take.
        """
        resolve_seeds(seed, image.shape[0])
        cond = model.condition(prompt)
        found = self.invert(model, image, prompt=cond, progress=progress)
        return found.sampled(model, cond if target is None else target, progress=progress)

    @torch.no_grad()
    def invert(self, model: Model, image: Tensor, *, prompt: Prompt = None, progress: str | None = None) -> Inverted:
        """Return the latent of ``image`` [B, C, H, W], with its prompt for an unconditional branch; errors as above."""
        path, x = descent(model, self.steps, self.spacing), model.encode(image)
        cond = model.condition(prompt)
        cond.expand(len(x))
        plain = model.denoiser(cond, negative=cond, clip=self.clip)
        latent = climbed(plain, path, x, fixed_point=self.fixed_point, progress=progress)[0]
        return Inverted(latent=latent, path=path, uncond=cond, guidance=self.guidance, clip=self.clip)


PRESETS: dict[str, NegativePromptInversion] = {
    "paper": NegativePromptInversion(),
    "official": NegativePromptInversion(fixed_point=1),
    "emoji64": NegativePromptInversion(steps=16, guidance=3.0, fixed_point=2),
}

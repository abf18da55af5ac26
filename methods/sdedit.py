"""SDEdit: noise an image half way, so that its details are forgotten but not its layout, and denoise it again."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.guidance import Model
from steerdiff.guidance.prompts import Prompt
from steerdiff.samplers import DDPM, ClipPolicy, Noise, Path, Seeds, Solver, integrate

from .inputs import known_part

__all__ = ["PRESETS", "SDEdit"]


@dataclass(frozen=True, kw_only=True)
class SDEdit:
    """Stochastic differential editing: ``x ~ q(x_t0 | image)``, then the reverse process from t0 down, K times.

    Outside the mask the image is put back after every step at the level of the sample, so it ends exactly as it was.
    Defaults are those of the official examples (LSUN, stroke to image).

    Source: Meng et al. 2022, Algorithms 3 and 5. Where the official code differs (``official=True``): the kept region
    lags one level behind, so it ends with noise of standard deviation 0.01, and one noise serves a whole repeat.
    """

    t0: float = 0.5  #: how far the image is noised, in [0, 1]; 0 returns it as it is, 0.3 to 0.6 is useful
    repeats: int = 3  #: K, how often noise and denoise are repeated
    steps: int | str = 1000  #: respaced times of a whole path, of which the share t0 is walked
    official: bool = False  #: the kept region as in the official code, see above
    solver: Solver = DDPM(variance="fixed_small")  #: the official step
    clip: ClipPolicy = "none"  #: of the x0 prediction; the official step does not clip
    guidance: float | None = (
        None  #: classifier-free guidance with a prompt, of which the paper has none; None is the model's
    )

    def __post_init__(self) -> None:
        """Check the numbers."""
        require(0 <= self.t0 <= 1, f"t0 is {self.t0}; it must lie in [0, 1]")
        require(self.repeats >= 1, f"repeats is {self.repeats}; it must be at least 1")

    @torch.no_grad()
    def __call__(
        self,
        model: Model,
        image: Tensor,
        mask: Tensor | None = None,
        *,
        prompt: Prompt = None,
        negative: Prompt = "",
        seed: Seeds = 0,
        progress: str | None = None,
    ) -> Tensor:
        """Edit each image.

        Args:
            model: Any model.
            image: Strokes, a collage or a picture, [B, C, H, W] in [-1, 1].
            mask: [B, 1, H, W] or [1, 1, H, W], 1 where the image may change; None is everywhere. The official files
                mean the opposite.
            prompt: What the result should show, for a model with text.
            negative: What it should not show.
            seed: One integer (image i uses ``seed + i``) or one for each image.
            progress: Label of the progress bars, one a repeat; None shows none.

        Returns:
            Images [B, C, H, W], equal to ``image`` where ``mask`` is 0 (of a latent model the latents are); about in
            [-1, 1] unless ``clip`` says exactly.

        Raises:
            UserError: An image, a mask or a prompt that the model cannot take.
        """
        x = model.encode(image)
        known = None if mask is None else known_part(model, x, mask, at="here" if self.official else "there")
        denoise = model.denoiser(prompt, negative=negative, scale=self.guidance, clip=self.clip)
        if self.t0 == 0:
            return model.decode(x)
        path = Path.respaced(model.schedule, self.steps).from_t0(self.t0)
        noise = Noise(seed, like=x)
        for repeat in range(self.repeats):
            if known is not None and repeat:  # the next repeat starts from the free part and the exact kept part
                x = known.keep * known.x0 + (1 - known.keep) * x
            eps = noise()
            start = model.schedule.q_sample(x, path.start, eps)
            held = [] if known is None else [replace(known, eps=eps) if self.official else known]
            x = integrate(denoise, self.solver, path, start, constraints=held, noise=noise, progress=progress)
        return model.decode(x)


#: Settings of the official commands (section numbers of the README aside) and of the paper's tables.
PRESETS: dict[str, SDEdit] = {
    "stroke": SDEdit(),
    "script": SDEdit(t0=0.4),
    "paper": SDEdit(repeats=1),
    "quick": SDEdit(steps=100, repeats=1, clip="clip"),
}

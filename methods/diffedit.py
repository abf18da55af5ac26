"""DiffEdit: find where two texts disagree about an image, and redraw only there, from its own deterministic noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import require, warn
from steerdiff.guidance import Model
from steerdiff.guidance.prompts import Prompt
from steerdiff.guidance.settings import Spacing
from steerdiff.samplers import (
    DDIM,
    ClipPolicy,
    Denoiser,
    Noise,
    Recorder,
    Seeds,
    Solver,
    StoredTrajectory,
    integrate,
)

from .inputs import fitted_mask
from .invert import to_image_level
from .text_difference import TextPair, cells_above, check_found, noise_difference

__all__ = ["PRESETS", "DiffEdit"]

Encoding = Literal["empty", "prompt"]


@dataclass(frozen=True, kw_only=True)
class DiffEdit:
    """Mask what differs between two texts, invert the image, and decode the target inside the mask.

    1. *Mask.* The image is noised to ``strength`` several times; where the noise predicted for the target differs from
       that for the reference text, on average, by more than a share of the (clamped) largest difference, it may change.
    2. *Encode.* DDIM upwards to ``t0`` without a text.
    3. *Decode.* DDIM downwards with the target; outside the mask each state is the stored one of its level, so that
       what is kept ends exactly as it was. The image counts as the path's lowest noisy level both ways.

    Source: Couairon et al. 2023, section 3.2. There is no official code. The clamp is that of the known ports; where
    they differ (the preset "diffusers"): ``encoding="prompt"``, ``encoding_guidance`` above 1, and ``lag=1``.
    """

    steps: int | str = 50  #: moves of a whole path from noise to image, of which the share t0 is walked each way
    t0: float = 0.9  #: r, how far the image is encoded, in [0, 1]; 0 returns it as it is, 0.5 to 0.9 is useful
    spacing: Spacing | None = None  #: how the steps are spread; None is the model's own way
    guidance: float | None = 7.5  #: classifier-free guidance of the decoding; None is the model's
    noises: int = 10  #: n, draws that the difference is averaged over
    strength: float = 0.5  #: share of the trained times that the image is noised to for the mask, in (0, 1]
    clamp: float | None = 3.0  #: k, a difference of k times the mean or more counts as 1; None: the largest is 1
    threshold: float = 0.5  #: share of that 1 above which a cell may change, in [0, 1)
    encoding: Encoding = "empty"  #: the text of the encoding, none or ``prompt``
    encoding_guidance: float = 1.0  #: guidance of the encoding with ``prompt``; above 1 the way back errs
    lag: int = 0  #: 1 keeps the part outside the mask one level too noisy
    solver: Solver = DDIM()  #: of both ways; any that moves up
    clip: ClipPolicy | None = None  #: of x0 in decoding; None is the model's own way. Encoding never clips

    def __post_init__(self) -> None:
        """Check the numbers."""
        require(0 <= self.t0 <= 1, f"t0 is {self.t0}; it must lie in [0, 1]")
        require(self.noises >= 1, f"noises is {self.noises}; it must be at least 1")
        require(0 < self.strength <= 1, f"strength is {self.strength}; it must lie in (0, 1]")
        positive = self.clamp is None or self.clamp > 0
        require(positive, f"clamp is {self.clamp}; it must be above 0, or None for no clamp")
        require(0 <= self.threshold < 1, f"threshold is {self.threshold}; it must lie in [0, 1)")
        known = get_args(Encoding)
        require(self.encoding in known, f"encoding is {self.encoding!r}; known are {', '.join(known)}")
        require(self.lag in (0, 1), f"lag is {self.lag}; it must be 0 or 1")

    @torch.no_grad()
    def __call__(
        self,
        model: Model,
        image: Tensor,
        mask: Tensor | None = None,
        *,
        prompt: Prompt = None,
        target: Prompt = None,
        negative: Prompt = "",
        seed: Seeds = 0,
        progress: str | None = None,
    ) -> Tensor:
        """Edit each image.

        Args:
            model: Any model.
            image: [B, C, H, W] in [-1, 1].
            mask: [B, 1, H, W] or [1, 1, H, W], 1 where the image may change; None finds it, as `mask` does.
            prompt: What the image shows, the reference of the mask; None is the empty text. Without ``target`` this is
                what the result should show, and the reference is the empty text.
            target: What the result should show.
            negative: The other branch of guidance.
            seed: One integer (image i uses ``seed + i``) or one for each image; of the mask's noise, so that with a
                mask nothing depends on it.
            progress: Label of the progress bars, one for each way; None shows none.

        Returns:
            Images [B, C, H, W], equal to ``image`` outside the mask (of a latent model the latents are).

        Raises:
            UserError: An image, a mask or texts that the model cannot take, or no image for which a mask is found that
                is neither empty nor everything; where that is so of some, it is a warning.
        """
        x = model.encode(image)
        noise = Noise(seed, like=x)
        path = model.path(self.steps, self.spacing)
        path = path.from_t0(self.t0) if self.t0 else path
        query = prompt if target is None else target
        decode = model.denoiser(query, negative=negative, scale=self.guidance, clip=self.clip)
        encode = self._encoder(model, prompt, query, negative)
        free = self._free(model, x, mask, TextPair.of(model, prompt, target, x.shape[0]), noise)
        if self.t0 == 0:
            return model.decode(x)
        recorder = Recorder(on_cpu=False)
        start = integrate(encode, self.solver, path.inverted(), x, callback=recorder, progress=progress)
        held = StoredTrajectory.recorded(x, recorder, keep=1 - free.to(x.dtype), lag=self.lag)
        down = to_image_level(path)
        result = integrate(decode, self.solver, down, start, constraints=[held], noise=noise, progress=progress)
        return model.decode(result)

    @torch.no_grad()
    def mask(
        self, model: Model, image: Tensor, *, prompt: Prompt = None, target: Prompt = None, seed: Seeds = 0
    ) -> Tensor:
        """Return where the texts disagree, [B, 1, H, W] of zeros and ones, 1 where the image may change.

        It is found on the grid of the state and constant on its cells, so that every masked method can take it. One
        that is empty, as where both texts say the same, or everything is a warning. Arguments and other errors are
        those of the call.
        """
        difference = self.difference(model, image, prompt=prompt, target=target, seed=seed)
        free = cells_above(difference, self.clamp, self.threshold)
        check_found(free, at_least_one=False)
        return functional.interpolate(free, size=model.size, mode="nearest")

    @torch.no_grad()
    def difference(
        self, model: Model, image: Tensor, *, prompt: Prompt = None, target: Prompt = None, seed: Seeds = 0
    ) -> Tensor:
        """Return the map before clamp and threshold, [B, 1, h, w] on the grid of the state, at least 0.

        It is 0 where both texts say the same. Arguments and errors are those of the call.
        """
        x = model.encode(image)
        noise = Noise(seed, like=x)
        return self._difference(model, x, TextPair.of(model, prompt, target, x.shape[0]), noise)

    def _free(self, model: Model, x: Tensor, mask: Tensor | None, texts: TextPair, noise: Noise) -> Tensor:
        """The given mask or the one found, on the grid of the state."""
        if mask is not None:
            fitted = fitted_mask(model, mask, x.shape[0])
            if not fitted.any():
                warn("the mask is empty, so that nothing may change; make it 1 where it may")
            return fitted
        require(
            bool(texts.differ.any()),
            "the texts before and after say the same, so that the mask is empty; give another target, or a mask",
        )
        free = cells_above(self._difference(model, x, texts, noise), self.clamp, self.threshold)
        check_found(free, at_least_one=True)
        return free

    def _difference(self, model: Model, x: Tensor, texts: TextPair, noise: Noise) -> Tensor:
        level = model.schedule.level(max(0, round(self.strength * model.schedule.T) - 1))
        return noise_difference(model, x, texts, level, noise.fork("mask"), self.noises)

    def _encoder(self, model: Model, prompt: Prompt, query: Prompt, negative: Prompt) -> Denoiser:
        if self.encoding == "prompt":
            return model.denoiser(prompt, negative=negative, scale=self.encoding_guidance, clip="none")
        return model.denoiser(model.branches(query)[1], clip="none")


#: The published settings, those of ports, and what suits the shipped model.
PRESETS: dict[str, DiffEdit] = {
    "published": DiffEdit(),
    "imagenet": DiffEdit(guidance=5.0),  # of the class-conditional latent model at 256 x 256
    "diffusers": DiffEdit(t0=0.8, encoding="prompt", encoding_guidance=7.5, lag=1),
    "emoji64": DiffEdit(steps=24, t0=0.8, guidance=1.0, noises=4, clamp=1.5),
}

"""Semantic diffusion guidance: a model that knows no text is pulled towards a text, an image or both, by a CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from steerdiff.errors import require, warn
from steerdiff.guidance import Model
from steerdiff.guidance.clip_guidance import ClipGuidance, Encoder, ImageTerm, Term, TextTerm, check_encoder, encoder_of
from steerdiff.guidance.loading import load_cached
from steerdiff.guidance.losses import ImageLoss
from steerdiff.guidance.scales import ScaleSchedule
from steerdiff.samplers import DDPM, Callback, ClipPolicy, Denoiser, Noise, Seeds, Solver, integrate

__all__ = ["PRESETS", "SDG"]


@dataclass(frozen=True, kw_only=True)
class SDG:
    """Sample with a pull towards a text, a reference image or both, by a CLIP that was tuned to read noisy images.

    At each step the reference is noised to the level of the sample, the noisy CLIP reads both, and the mean of the step
    is moved by its variance times the gradient of ``text_weight cos(f(x_t), text) + image_weight S(f(x_t), f(y_t))``.
    The diffusion model itself is not differentiated and knows nothing of text and image. A part whose input is not
    given, or whose weight is 0, is left out. Defaults are the official commands', for models of 256 pixels and CLIP's
    RN50x16; they have to be found anew for another CLIP (preset "emoji64" is for the shipped one).

    Source: Liu et al. 2023, Algorithm 1 and section 3. Where the official code differs: it has no structure loss, and
    its Gram matrix mixes the images of a batch (``official=True``).
    """

    text_weight: float = 160.0  #: strength of the prompt
    image_weight: float = 100.0  #: strength of the reference image
    image_loss: ImageLoss = "content"  #: what of it is kept: what it shows, where things are, or how it is painted
    layers: tuple[int, ...] = ()  #: feature maps that structure and style compare, from 0, coarse ones last; () is all
    official: bool = False  #: style as in the official code, see above
    noisy_clip: str = "emoji64-noisy-clip"  #: reads the noisy images: a name or a file; a clean CLIP ignores the level
    clip: str = "emoji64-clip"  #: the CLIP it was tuned from, which reads the prompt: a name or a file
    schedule: ScaleSchedule = "constant"  #: how both strengths depend on the level
    steps: int | str = 100  #: respaced times
    solver: Solver = DDPM()  #: uses the learned variance if the network has one
    x0_clip: ClipPolicy | None = None  #: of x0, before guidance; None is the model's own way: images are clipped
    guidance: float = 0.0  #: classifier-free guidance by the prompt besides; 0 never tells it to the diffusion model

    def __post_init__(self) -> None:
        """Check the loss."""
        known = get_args(ImageLoss)
        require(self.image_loss in known, f"image_loss is {self.image_loss!r}; known are {', '.join(known)}")

    @torch.no_grad()
    def __call__(
        self,
        model: Model,
        image: Tensor | None = None,
        *,
        prompt: str | Sequence[str] | None = None,
        seed: Seeds = 0,
        progress: str | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Draw one image for each reference or prompt.

        Args:
            model: Any model of pixels; a text encoder of its own is not needed.
            image: What the result should be like, [B, C, H, W] in [-1, 1]; None leaves it to the prompt.
            prompt: What the result should show, for CLIP; one, or one for each image.
            seed: One integer (image i uses ``seed + i``) or one for each image.
            progress: Label of a progress bar; None shows none.
            callback: Called after every step, as by `shift_ratio` to calibrate the weights.

        Returns:
            Images [B, C, H, W] in [-1, 1].

        Raises:
            UserError: Neither prompt nor image, an image or a prompt that model or CLIP cannot take, or a CLIP that
                sees images of another size.
        """
        require(image is not None or prompt is not None, "nothing says where to go; give a prompt, an image or both")
        image = None if image is None else model.encode(image)
        noise = Noise(seed, self._shape(model, image, prompt, seed), model.device)
        denoise = self.guided(model, noise, image, prompt)
        path = model.path(self.steps, "respaced")
        x = integrate(denoise, self.solver, path, noise(), noise=noise, callback=callback, progress=progress)
        return model.decode(x)

    def guided(
        self, model: Model, noise: Noise, image: Tensor | None = None, prompt: str | Sequence[str] | None = None
    ) -> Denoiser:
        """Return the guided denoiser, for paths of one's own.

        Args:
            model: As in the call.
            noise: That of the run.
            image: As in the call, or one for all.
            prompt: As in the call.
        """
        told = prompt if self.guidance else None
        plainly = model.denoiser(told, scale=self.guidance if self.guidance else 1.0, clip=self.x0_clip)
        terms = self._terms(model, noise.shape[0], image, prompt)
        if not terms:
            return plainly
        return ClipGuidance(
            denoise=plainly,
            encoder=self._encoder(model),
            terms=terms,
            noise=noise,
            schedule=self.schedule,
            T=model.schedule.T,
        )

    def _encoder(self, model: Model) -> Encoder:
        """What reads the noisy images, if it fits the model."""
        encoder = encoder_of(load_cached(self.noisy_clip, "encoder", model.device))
        check_encoder(encoder, model)
        origin = getattr(encoder, "clip_hash", None)
        if origin is not None and load_cached(self.clip, "clip", model.device).weights_hash not in (None, origin):
            text = (
                f"noisy_clip '{self.noisy_clip}' was tuned from another CLIP than '{self.clip}'; its texts may mislead"
            )
            warn(text)
        return encoder

    def _terms(self, model: Model, rows: int, image: Tensor | None, prompt: str | Sequence[str] | None) -> list[Term]:
        """What the samples are pulled towards: the parts that are given and have a weight."""
        found: list[Term] = []
        if prompt is not None and self.text_weight:
            texts = [prompt] if isinstance(prompt, str) else list(prompt)
            count = len(texts)
            require(count in (1, rows), f"{count} prompts were given for {rows} images; give one, or one for each")
            clip = load_cached(self.clip, "clip", model.device)
            found.append(TextTerm(target=clip.text_features(texts), weight=self.text_weight))
        if image is not None and self.image_weight:
            options: dict[str, Any] = {"loss": self.image_loss, "layers": self.layers, "mixes_batch": self.official}
            found.append(ImageTerm(image=image, weight=self.image_weight, **options))
        return found

    def _shape(self, model: Model, image: Tensor | None, prompt: str | Sequence[str] | None, seed: Seeds) -> list[int]:
        """Shape of the state: as many rows as images, else as prompts, else as seeds."""
        listed = [value for value in (prompt, seed) if isinstance(value, Sequence) and not isinstance(value, str)]
        count = len(image) if image is not None else max((len(value) for value in listed), default=1)
        return model.state_shape(count)


_EMOJI64 = SDG(text_weight=700.0, image_weight=60.0, image_loss="structure", layers=(2, 3, 4), steps=50)

#: The official commands, GLIDE's form, and what fits the shipped model: as in the paper ("emoji64"), and with the text
#: told to the model, whose samples without one are poor, so that CLIP sees to the layout alone ("emoji64-told").
PRESETS: dict[str, SDG] = {
    "both": SDG(),
    "text": SDG(image_weight=0.0),
    "content": SDG(text_weight=0.0),
    "style": SDG(text_weight=0.0, image_loss="style", official=True),
    "glide": SDG(text_weight=300.0, image_weight=0.0, guidance=1.0),
    "emoji64": _EMOJI64,
    "emoji64-told": replace(_EMOJI64, text_weight=0.0, guidance=3.0),
}

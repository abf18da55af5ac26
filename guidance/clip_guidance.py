"""Guidance by texts and images in the features of a CLIP that reads noisy images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.models.clip import Clip
from steerdiff.models.clip_towers import ClipFeatures
from steerdiff.samplers import Denoiser, Level, Noise, Prediction, Record
from steerdiff.samplers.ddpm import VarianceKind, model_variance
from steerdiff.samplers.rows import predict_rows

from .losses import ImageLoss, image_similarity, text_similarity
from .noisy_classifier import same_noise
from .noisy_encoder import Encoder
from .scales import ScaleSchedule, check_factor, check_schedule, over_images, scale_at, spread

if TYPE_CHECKING:
    from .model import Model

__all__ = [
    "UntunedEncoder",
    "ClipGuidance",
    "Encoder",
    "ImageTerm",
    "Term",
    "TextTerm",
    "check_encoder",
    "encoder_of",
    "shift_ratio",
]

_STREAM = "clip reference"  # apart from the constraints' stream "reference", which goes on as it would without guidance


@dataclass(frozen=True, kw_only=True, eq=False)
class TextTerm:
    """Pull towards texts: ``weight cos(f(x_t, t), text)``.

    Raises:
        UserError: Features of another shape, or a weight that is not finite.
    """

    target: Tensor  #: features of one text or of one for each image, [1, D] or [B, D], such as ``clip.text_features``
    weight: float | Tensor = 160.0  #: factor of the cosine; a tensor [B] guides each image by its own

    def __post_init__(self) -> None:
        """Check the target and the weight."""
        require(self.target.ndim == 2, f"the target of a text is {list(self.target.shape)}; give [1, D] or [B, D]")
        check_factor(self.weight, "weight")

    def __call__(self, features: ClipFeatures, reference: ClipFeatures | None = None) -> Tensor:
        """Similarity [B] of the images whose features these are."""
        return text_similarity(features, self.target)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTerm:
    """Pull towards images: ``weight similarity(f(x_t, t), f(y_t, t))``, with ``y_t`` the image noised to the level.

    Raises:
        UserError: An image of another shape, or a weight that is not finite.
    """

    image: Tensor  #: clean reference, one for all or one for each, [1, C, H, W] or [B, C, H, W] in [-1, 1]
    loss: ImageLoss = "content"  #: what is compared: the vector, maps place by place, or Gram matrices of maps
    weight: float | Tensor = 100.0  #: factor of the similarity; a tensor [B] guides each image by its own
    layers: Sequence[int] = ()  #: which maps structure and style compare, from 0; none given takes all
    mixes_batch: bool = False  #: Gram matrices over the whole batch, see `style_similarity`

    def __post_init__(self) -> None:
        """Check the image, the loss and the weight."""
        require(self.image.ndim == 4, f"a reference is {list(self.image.shape)}; give [1, C, H, W] or [B, C, H, W]")
        known = get_args(ImageLoss)
        require(self.loss in known, f"the image loss is {self.loss!r}; known are {', '.join(known)}")
        check_factor(self.weight, "weight")

    def __call__(self, features: ClipFeatures, reference: ClipFeatures | None = None) -> Tensor:
        """Similarity [B] of the images and the references whose features these are."""
        require(reference is not None, "an image term compares with a reference; give its features")
        reference = features if reference is None else reference
        return image_similarity(self.loss, features, reference, self.layers, mixes_batch=self.mixes_batch)


Term = TextTerm | ImageTerm


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipGuidance:
    """A denoiser that pulls ``x_t`` towards texts and images: it adds the gradient of their terms to the score.

    ``g = scale s(t) grad_x sum_k weight_k similarity_k(f(x_t, t))``, with ``f`` an encoder that reads noisy images, so
    that nothing is differentiated through the denoiser. ``DDPM`` moves its mean by ``Var g``, all other solvers move
    ``eps``; no factor ``sqrt(1 - alpha_bar)`` is in g. The sum over the batch is differentiated and no similarity knows
    of two images, so each image is guided as it would be alone.

    References are noised anew at each call, by a stream of their own: no weight moves the noise of the sampler.
    Guidance nests, since scores add, also around classifier guidance and classifier-free guidance. Terms whose weight
    is 0 are left out; without any left, or with scale 0, this is the denoiser itself, bit for bit, and the encoder is
    not run.

    Source: Liu et al. 2023 (SDG), Algorithm 1. GLIDE (Nichol et al. 2022, section 2.4) has one text term of weight 300:
    its scale 3.0 times CLIP's 100. Official code: `ImageTerm.mixes_batch`.

    Raises:
        UserError: A scale that is not finite, an unknown schedule, or a reference without noise.
    """

    denoise: Denoiser  #: what is guided
    encoder: Encoder  #: ``encoder(x [B, C, H, W], t [B]) -> ClipFeatures``, differentiable, in eval mode
    terms: Sequence[Term]  #: what it is pulled towards
    noise: Noise | None = None  #: the run's noise, from which that of references is forked; texts need none
    scale: float | Tensor = 1.0  #: factor of the whole; a tensor [B] guides each image by its own
    schedule: ScaleSchedule = "constant"  #: how the factor depends on the level
    T: int = 1000  #: number of trained times, for the schedule
    time_scale: float = 1.0  #: the encoder is told t * time_scale
    _active: tuple[Term, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the scale and the schedule, and find the terms that count."""
        check_factor(self.scale, "scale")
        check_schedule(self.schedule)
        require(0 < self.time_scale < math.inf, f"time_scale is {self.time_scale}; it must be positive")
        active = tuple(term for term in self.terms if not _is_zero(term.weight)) if not _is_zero(self.scale) else ()
        needs_noise = any(isinstance(term, ImageTerm) for term in active) and self.noise is None
        require(not needs_noise, "a reference is noised at each step; give noise=, the noise of the run")
        object.__setattr__(self, "_active", active)

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict from ``x`` [B, C, H, W] at ``level``, with the terms' pull as score."""
        score = self._score(x, [level])  # first: what does not fit is found before anything else is computed
        return self.denoise(x, level).adding(score)

    def rows(self, x: Tensor, levels: Sequence[Level]) -> Prediction:
        """Predict from ``x`` [B, C, H, W] whose images stand at a level each."""
        score = self._score(x, levels)
        return predict_rows(self.denoise, x, levels).adding(score)

    def _score(self, x: Tensor, levels: Sequence[Level]) -> Tensor | None:
        """What is added to the score, [B, C, H, W]; None where nothing pulls."""
        factors = [scale_at(self.schedule, level, self.T) for level in levels] if self._active else []
        if not any(factors):
            return None
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = over_images(self.scale, wide, "scales") * spread(factors, wide)
        return scale.reshape(-1, 1, 1, 1) * self._gradient(wide, levels)

    def _gradient(self, x: Tensor, levels: Sequence[Level]) -> Tensor:
        """Gradient of the weighted sum of all terms in ``x``, [B, C, H, W], also where autograd is off."""
        side = getattr(self.encoder, "image_size", None)
        fits = side is None or tuple(x.shape[2:]) == (side, side)
        require(fits, f"the encoder sees images of {side} x {side} pixels; the state is {list(x.shape)}")
        with torch.inference_mode(False):
            t = spread([level.t * self.time_scale for level in levels], x).expand(x.shape[0])
            references = self._references(x, levels, t)
            with torch.enable_grad():
                seen = x.detach().clone().requires_grad_()
                features = self.encoder(seen, t)
                values = [term(features, _of(term, references)) for term in self._active]
            depends = all(value.requires_grad for value in values)
            require(
                depends, "the encoder's features carry no gradient; call it without torch.no_grad and without detach"
            )
            weights = [over_images(term.weight, x, "weights").clone() for term in self._active]
            (gradient,) = torch.autograd.grad(values, seen, weights)
        return gradient

    def _references(self, x: Tensor, levels: Sequence[Level], t: Tensor) -> dict[int, ClipFeatures]:
        """Features of each reference at the level of ``x``, by its identity; all of them share one noise."""
        images = {id(term.image): term.image for term in self._active if isinstance(term, ImageTerm)}
        if not images or self.noise is None:
            return {}
        eps = self.noise.fork(_STREAM)()
        require(
            eps.shape == x.shape, f"the noise is {list(eps.shape)} and the state {list(x.shape)}; give Noise(like=x)"
        )
        alpha_bar = torch.tensor([level.alpha_bar for level in levels], dtype=torch.float64).reshape(-1, 1, 1, 1)
        signal, sigma = alpha_bar.sqrt().to(x), (1 - alpha_bar).sqrt().to(x)
        found = {}
        with torch.no_grad():
            for key, image in images.items():
                count, fits = image.shape[0], image.shape[1:] == x.shape[1:]
                require(
                    fits and count in (1, x.shape[0]),
                    f"a reference is {list(image.shape)} and the state {list(x.shape)}; give one image of that size, "
                    "or one for each",
                )
                found[key] = self.encoder(signal * image.to(x) + sigma * eps.to(x), t)
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class UntunedEncoder:
    """A CLIP that never saw noise in the place of one that did: it reads ``x_t`` as it is and ignores the level."""

    clip: Clip  #: any

    @property
    def name(self) -> str:
        """Where its weights come from."""
        return self.clip.name

    def __call__(self, x: Tensor, t: Tensor) -> ClipFeatures:
        """Features of images [B, 3, H, W] of any size."""
        return self.clip.feature_maps(x)


def encoder_of(loaded: Any) -> Encoder:
    """Return what `load` gave as an encoder: a noisy CLIP, a clean one, or any callable that is one.

    Raises:
        UserError: It is something else.
    """
    encoder = UntunedEncoder(clip=loaded) if isinstance(loaded, Clip) else loaded
    known = callable(encoder) and not hasattr(encoder, "num_classes")
    require(known, f"{type(loaded).__name__} reads no noisy images; give a noisy CLIP, or a CLIP")
    result: Encoder = encoder
    return result


def check_encoder(encoder: Any, model: Model) -> None:
    """Raise ``UserError`` unless ``encoder`` can read the states of ``model``.

    An encoder without ``image_size`` takes pixels of any size, one without ``schedule`` any noise.
    """
    require(model.factor == 1, f"a CLIP sees pixels; {model.name} draws latents, which no such encoder reads")
    side = getattr(encoder, "image_size", None)
    height, width = model.size
    require(
        side is None or (height, width) == (side, side),
        f"the CLIP {getattr(encoder, 'name', '')!r} sees images of {side} x {side} pixels; {model.name} draws {height} "
        f"x {width}. Give an encoder of that size",
    )
    learned = getattr(encoder, "schedule", None)
    require(
        learned is None or same_noise(learned, model.schedule),
        f"the CLIP {getattr(encoder, 'name', '')!r} learned other noise levels than those of {model.name}; tune one "
        "with its schedule (steerdiff train noisy-clip)",
    )


def shift_ratio(record: Record, variance: VarianceKind = "auto") -> Tensor | None:
    """How far guidance moved the mean of a step, in standard deviations of its noise: ``rms(Var g) / sigma``, [B].

    A callback of `integrate` calls it to calibrate weights for another encoder or size: well below 1 guidance is lost
    in the noise, well above 1 it leaves the images behind that the model knows. None for a step without guidance, and
    for one without noise, such as the last.

    Args:
        record: What a callback is given.
        variance: As of the ``DDPM`` that made the step.
    """
    prediction = record.step.prediction
    if prediction is None or prediction.score is None or record.move.there.clean:
        return None
    _, log_variance = model_variance(prediction, record.move, variance)
    sigma = torch.as_tensor(log_variance / 2, device=prediction.score.device).exp()
    return (sigma * prediction.score).square().mean((1, 2, 3)).sqrt()


def _of(term: Term, references: dict[int, ClipFeatures]) -> ClipFeatures | None:
    return references.get(id(term.image)) if isinstance(term, ImageTerm) else None


def _is_zero(factor: float | Tensor) -> bool:
    return not bool(torch.as_tensor(factor).any())

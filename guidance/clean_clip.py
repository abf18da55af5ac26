"""Guidance by a CLIP that knows clean images only: its gradient goes through the denoiser, to the noisy image."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from steerdiff.errors import UserError, require
from steerdiff.samplers import Denoiser, Level, Noise, Prediction
from steerdiff.samplers.rows import predict_rows

from .augment import ExtendingAugmentations, fitted
from .distances import geodesic, range_loss
from .scales import ScaleSchedule, check_factor, check_schedule, scale_at

__all__ = ["BackgroundLoss", "CleanClipGuidance", "Distance", "ImageEncoder", "Region", "Sight", "seen_of"]

#: ``distance(a, b) -> [B]`` of images [B, C, H, W] in [-1, 1].
Distance = Callable[[Tensor, Tensor], Tensor]
#: What CLIP sees of an image: the region with grey around it, the whole prediction, or the region in the true image.
Sight = Literal["masked", "whole", "composite"]


class ImageEncoder(Protocol):
    """What the guidance asks of a CLIP."""

    @property
    def size(self) -> int:
        """Height and width of the images that it sees."""
        ...

    def image_features(self, image: Tensor, /) -> Tensor:
        """Return unit vectors [B, D] of images [B, 3, H, W] in [-1, 1]; gradients flow."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """What a part of the image should show."""

    target: Tensor  #: unit vectors [B, D] of CLIP, or [1, D] for all images
    mask: Tensor | None = None  #: 1 where the part is, [B, 1, H, W] or [1, 1, H, W]; None is the whole image
    weight: float | Tensor = 1.0  #: factor of its distance, one for all or [B]; 0 where nothing is asked for

    def __post_init__(self) -> None:
        """Make all tensors fit for autograd."""
        _unlock(self, "target", "mask", "weight")


@dataclass(frozen=True, kw_only=True, eq=False)
class BackgroundLoss:
    """How far the part outside the mask is from the image: Algorithm 1 of the paper, which does not blend.

    Source: Avrahami et al. 2022, eq. 3. Where its code differs (``reference="whole"``): it compares the masked
    prediction with the whole image. Its mean square is divided by the batch; here each image has its own.
    """

    image: Tensor  #: what is to be kept, [B, C, H, W] in [-1, 1]
    mask: Tensor  #: 1 where the image may change, [B, 1, H, W] or [1, 1, H, W]
    perceptual: Distance | None = None  #: such as LPIPS
    perceptual_scale: float = 1000.0  #: of ``perceptual``
    mse_scale: float = 10000.0  #: of the mean square
    reference: Literal["masked", "whole"] = "masked"  #: what it is compared with, see above

    def __post_init__(self) -> None:
        """Make all tensors fit for autograd."""
        _unlock(self, "image", "mask")

    def __call__(self, view: Tensor) -> Tensor:
        """Return the loss [B] of images ``view`` [B, C, H, W]."""
        keep = 1 - self.mask.to(view)
        kept, image = view * keep, self.image.to(view)
        wanted = image if self.reference == "whole" else image * keep
        loss = self.mse_scale * (kept - wanted).square().flatten(1).mean(1)
        if self.perceptual is not None and self.perceptual_scale:
            loss = loss + self.perceptual_scale * self.perceptual(kept, wanted.expand_as(kept))
        return loss

    @property
    def acts(self) -> bool:
        """Whether it is anything but zero."""
        return self.mse_scale != 0 or (self.perceptual is not None and self.perceptual_scale != 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class CleanClipGuidance:
    """A denoiser that pulls the predicted image towards texts, by an ordinary CLIP.

    The score is ``-grad_x`` of ``scale * sum_regions w * mean_views d(CLIP(view of x0), target) + range_scale *
    range(x0) + background``, with ``d`` half the squared angle. The gradient goes through the denoiser that is guided,
    so it works where no CLIP of noisy images is at hand, at the price of a backward pass. One call of the denoiser
    gives prediction and gradient; the official code calls it twice for the same. ``x0`` and ``eps`` of the prediction
    stay unguided. Losses are summed over images, so none depends on the others of its batch.

    Without any region of weight, or with all scales 0, it is the unguided denoiser, bit for bit and without a gradient;
    an image whose regions all weigh 0 has the score 0. A denoiser that is guided itself may be guided again: scores
    add. Where autograd is on, the prediction keeps its graph, so that tuning through guidance is possible.

    Source: Avrahami et al. 2022, Algorithms 1 and 2. The code gives CLIP ``f x0 + (1 - f) x_t`` with
    ``f = sqrt(1 - alpha_bar)``, which its author calls an experiment; ``mix=False`` is the paper's plain ``x0``.

    Raises:
        UserError: Settings that do not fit each other, or tensors that do not fit the batch.
    """

    denoise: Denoiser  #: what is guided
    clip: ImageEncoder  #: its image encoder, such as `models.clip.Clip`
    regions: Sequence[Region]  #: what is asked for, and where
    scale: float | Tensor = 1000.0  #: of the distance in CLIP; a tensor [B] guides each image by its own
    schedule: ScaleSchedule = "constant"  #: of ``scale`` over the noise levels
    T: int = 1000  #: trained times, for the schedule
    range_scale: float = 50.0  #: of what leaves [-1, 1]
    background: BackgroundLoss | None = None  #: what is to be kept; None leaves that to a constraint
    augmentations: ExtendingAugmentations = ExtendingAugmentations()  #: views of each image
    noise: Noise | None = None  #: its stream "augment" moves the views; only one view needs none
    mix: bool = True  #: CLIP and the background loss see x0 mixed with x_t, see above
    sees: Sight = "masked"  #: what CLIP sees outside a region: 0, which is grey; the prediction; or ``image``
    image: Tensor | None = None  #: [B, C, H, W], for ``sees="composite"``
    checkpoint: bool = False  #: compute CLIP's activations again, view by view; `Control` has the same of a network
    _stream: Noise | None = field(init=False, repr=False)
    _asked: Tensor = field(init=False, repr=False)
    _acts: bool = field(init=False, repr=False)
    _pulls: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the settings and read once what the steps ask: none of them waits for the device."""
        known = get_args(Sight)
        require(self.sees in known, f"sees is {self.sees!r}; known are {', '.join(known)}")
        lacks = self.sees == "composite" and self.image is None
        require(not lacks, "sees is 'composite', which shows CLIP the region in the image; give image")
        check_schedule(self.schedule)
        _unlock(self, "image")
        scale = torch.as_tensor(self.scale)
        check_factor(self.scale, "scale")
        require(math.isfinite(self.range_scale), f"range_scale is {self.range_scale}; it must be a finite number")
        asked = [torch.as_tensor(region.weight).cpu().reshape(-1) != 0 for region in self.regions]
        anywhere = functools.reduce(torch.logical_or, asked, torch.zeros(1, dtype=torch.bool))
        pulls = bool((scale != 0).any())
        acts = pulls or self.range_scale != 0 or (self.background is not None and self.background.acts)
        acts = acts and bool(anywhere.any())
        several = acts and pulls and self.augmentations.views > 1
        require(not several or self.noise is not None, "the views of an image are drawn; give noise, or take 1 view")
        stream = self.augmentations.stream(self.noise) if several and self.noise is not None else None
        for name, value in (("_stream", stream), ("_asked", anywhere), ("_acts", acts), ("_pulls", pulls)):
            object.__setattr__(self, name, value)

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict from ``x`` [B, C, H, W] at ``level``, with the pull of the texts as score."""
        return self._guided(x, [level], lambda seen: self.denoise(seen, level))

    def rows(self, x: Tensor, levels: Sequence[Level]) -> Prediction:
        """Predict from ``x`` [B, C, H, W] whose images stand at a level each."""
        return self._guided(x, levels, lambda seen: predict_rows(self.denoise, seen, levels))

    def loss(self, x: Tensor, x0: Tensor, levels: Sequence[Level]) -> Tensor:
        """Return the loss [B] of states ``x`` [B, C, H, W] whose predicted images are ``x0``; gradients flow.

        Args:
            x: Noisy images.
            x0: What the denoiser sees in them.
            levels: One level for all, or one for each image.
        """
        view = self._mixed(x, x0, levels)
        loss = self.range_scale * range_loss(x0)
        if self._pulls:
            factor = [scale_at(self.schedule, level, self.T) for level in levels]
            scale = torch.as_tensor(self.scale, dtype=x0.dtype, device=x0.device) * x0.new_tensor(factor)
            numbers = self.augmentations.draw(self._stream, x0.shape[0])
            for region in self.regions:
                weight = torch.as_tensor(region.weight, dtype=x0.dtype, device=x0.device)
                loss = loss + scale * weight * self._distance(view, region, numbers)
        return loss if self.background is None else loss + self.background(view)

    def _guided(self, x: Tensor, levels: Sequence[Level], predict: Callable[[Tensor], Prediction]) -> Prediction:
        if not self._acts:
            return predict(x)
        self._check(x)
        keeps = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            seen = x if keeps and x.requires_grad else x.detach().clone().requires_grad_()
            prediction = predict(seen)
            if not prediction.x0.requires_grad:
                raise UserError("the denoiser's prediction carries no gradient; call the network without torch.no_grad")
            loss = self.loss(seen, prediction.x0, levels)
            (gradient,) = torch.autograd.grad(loss.sum(), seen, retain_graph=keeps)
        gradient = gradient.to(prediction.x0.dtype)
        asked = self._asked.to(x.device).reshape(-1, 1, 1, 1)
        score = torch.where(asked, -gradient, torch.zeros_like(gradient))
        guided = (prediction if keeps else _detached(prediction)).adding(score)
        return replace(guided, score=None if guided.score is None else guided.score.detach())

    def _mixed(self, x: Tensor, x0: Tensor, levels: Sequence[Level]) -> Tensor:
        if not self.mix:
            return x0
        share = x0.new_tensor([math.sqrt(1 - level.alpha_bar) for level in levels]).reshape(-1, 1, 1, 1)
        return share * x0 + (1 - share) * x

    def _distance(self, view: Tensor, region: Region, numbers: Tensor) -> Tensor:
        """Half the squared angle between what CLIP sees and the target, [B], the mean of all views."""
        shown = fitted(seen_of(view, region.mask, self.sees, self.image), self.clip.size)
        views = self.augmentations.transformed(shown, numbers)
        images, count = views.shape[:2]
        if self.checkpoint:
            each = [checkpoint(self.clip.image_features, views[:, k], use_reentrant=False) for k in range(count)]
            vectors = torch.stack(each, dim=1)
        else:
            vectors = self.clip.image_features(views.flatten(0, 1)).reshape(images, count, -1)
        return geodesic(vectors, region.target.to(vectors)[:, None]).mean(1)

    def _check(self, x: Tensor) -> None:
        """Check that what was given for each image is as much as there are images."""
        images = x.shape[0]
        counts = {"scales": torch.as_tensor(self.scale).numel()}
        for region in self.regions:
            counts["targets"], counts["weights"] = region.target.shape[0], torch.as_tensor(region.weight).numel()
            if region.mask is not None:
                counts["masks"] = region.mask.shape[0]
            wrong = [f"{count} {name}" for name, count in counts.items() if count not in (1, images)]
            require(not wrong, f"{' and '.join(wrong)} for {images} images were given; give one, or one for each")


def seen_of(view: Tensor, mask: Tensor | None, sees: Sight, image: Tensor | None = None) -> Tensor:
    """Return what CLIP sees of images ``view`` [B, C, H, W] for the region ``mask``; ``image`` for "composite"."""
    if mask is None or sees == "whole":
        return view
    inside = mask.to(view)
    if sees == "composite" and image is not None:
        return inside * view + (1 - inside) * image.to(view)
    return inside * view


def _unlock(owner: Any, *names: str) -> None:
    """Copy tensors that were made in inference mode: autograd refuses them."""
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, Tensor) and value.is_inference():
            with torch.inference_mode(False):
                object.__setattr__(owner, name, value.clone())


def _detached(prediction: Prediction) -> Prediction:
    fraction = prediction.log_variance_fraction
    return replace(
        prediction,
        x0=prediction.x0.detach(),
        eps=prediction.eps.detach(),
        log_variance_fraction=None if fraction is None else fraction.detach(),
        score=None if prediction.score is None else prediction.score.detach(),
    )

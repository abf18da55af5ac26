"""Blended Diffusion: a text changes the masked part of an image, and every step blends the rest back in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.guidance import Model
from steerdiff.guidance.augment import ExtendingAugmentations, ShiftAxes
from steerdiff.guidance.classifier_free import Condition
from steerdiff.guidance.clean_clip import BackgroundLoss, CleanClipGuidance, Distance, Region, Sight
from steerdiff.guidance.loading import load_cached
from steerdiff.guidance.perceptual import perceptual
from steerdiff.guidance.scales import ScaleSchedule
from steerdiff.models.clip import Clip
from steerdiff.models.control import Control
from steerdiff.samplers import DDPM, Callback, ClipPolicy, Denoiser, Noise, Path, Seeds, Solver, integrate
from steerdiff.samplers.constraints import KnownRegion
from steerdiff.samplers.solvers import Constraint

from .blending import PredictedEnd, Ranking, Texts, candidate_seeds, distances, region_of, union

__all__ = ["PRESETS", "BlendedDiffusion"]


@dataclass(frozen=True, kw_only=True)
class BlendedDiffusion:
    """Change what is under a mask to what a text says, guided by CLIP alone: the denoiser is not told the text.

    The image is noised; each step is guided by CLIP's distance of the predicted image under the mask, averaged over
    augmented views, and what is outside the mask is then replaced by the image noised to the same level. The result is
    the image predicted last, before guidance, with the background put back exactly.

    Source: Avrahami et al. 2022, Algorithm 2 (``blends=True``), and Algorithm 1, which has a loss on the background
    instead (the preset "algorithm1"). Where the official code differs: it blends with the level before the step
    (``background_level="t"``), shifts views only vertically (``shift_axes="vertical"``), ranks by other pictures than
    those that guide (``ranking="official"``), compares the masked prediction with the whole image
    (``background_reference="whole"``), and mixes x_t into what CLIP sees, which is the default here too
    (``mix=False`` is the paper's).
    """

    clip: str = "emoji64-clip"  #: name or path of a CLIP
    clip_scale: float = 1000.0  #: lambda of the distance in CLIP
    schedule: ScaleSchedule = "constant"  #: of ``clip_scale`` over the noise levels
    range_scale: float = 50.0  #: lambda of what the predicted image has outside [-1, 1]
    views: int = 8  #: of each predicted image: itself and augmented ones, over which the distance is averaged
    shift_axes: ShiftAxes = "both"  #: along which axes a view is shifted; "vertical" as in the official code
    mix: bool = True  #: CLIP sees x0 mixed with x_t, as in the official code; False: x0, as in the paper
    sees: Sight = (
        "masked"  #: what CLIP sees outside the mask: grey, the prediction ("whole") or the image ("composite")
    )
    steps: int | str = 100  #: respaced times of a whole path
    skip_timesteps: int = 25  #: of which so many, the noisiest, are left out; more keeps more of what was there
    blends: bool = True  #: put the noised image back outside the mask after each step (Algorithm 2)
    background_level: Literal["t_next", "t"] = "t_next"  #: its level: that of the state, or the one before the step
    perceptual_scale: float = 0.0  #: lambda of the perceptual distance of the background (Algorithm 1: 1000)
    distance: str = "lpips-vgg"  #: which distance that is: "lpips-vgg", "lpips-alex", or a CLIP's name or path
    mse_scale: float = 0.0  #: lambda of the mean square of the background (Algorithm 1: 10000)
    background_reference: Literal["masked", "whole"] = "masked"  #: what these two compare with
    enforces_background: bool = True  #: the result is the image itself where the mask is 0
    candidates: int = 1  #: results drawn for each image, of which CLIP's choice is returned; the paper ranks many
    ranking: Ranking = "guidance"  #: what CLIP sees of them
    solver: Solver = DDPM()  #: the official code also has DDIM
    x0_clip: ClipPolicy = "none"  #: of the predicted image; the official code does not clip
    guidance: float = 0.0  #: classifier-free guidance of the denoiser by the same text; 0 as published: it is not told
    checkpoint: bool = False  #: keep no activations but compute them again: half as fast, far less memory

    def __post_init__(self) -> None:
        """Check the numbers that need no model."""
        require(self.views >= 1, f"views is {self.views}; there must be at least 1, the image itself")
        require(self.skip_timesteps >= 0, f"skip_timesteps is {self.skip_timesteps}; it must be at least 0")
        require(self.candidates >= 1, f"candidates is {self.candidates}; draw at least 1")
        for name, known in (("background_level", ("t_next", "t")), ("ranking", ("guidance", "official"))):
            value = getattr(self, name)
            require(value in known, f"{name} is {value!r}; known are {' and '.join(map(repr, known))}")

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(
        self,
        model: Model,
        image: Tensor,
        mask: Tensor | None = None,
        *,
        prompt: Texts = None,
        also: Sequence[tuple[Tensor, Texts]] = (),
        condition: Condition | None = None,
        seed: Seeds = 0,
        progress: str | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Edit each image.

        Args:
            model: Any model of images, not of latents.
            image: [B, 3, H, W] in [-1, 1].
            mask: [B, 1, H, W] or [1, 1, H, W], 1 where the image may change; None is everywhere.
            prompt: What the part under the mask should show, as CLIP knows texts; one, or one for each image. An empty
                one guides nothing.
            also: More parts with texts of their own, pairs of a mask and a prompt.
            condition: What the denoiser is told besides, ``model.condition(y=...)`` of a class-conditional model.
            seed: One integer (image i uses ``seed + i``) or one for each image.
            progress: Label of a progress bar, one a candidate; None shows none.
            callback: Called after every step, as by `guidance.clip_guidance.shift_ratio` to calibrate ``clip_scale``.

        Returns:
            Images [B, 3, H, W], equal to ``image`` where no mask is 1; about in [-1, 1] elsewhere.

        Raises:
            UserError: An image, a mask or a prompt that model or CLIP cannot take, a mask that selects nothing, a model
                of latents, or a ``skip_timesteps`` that leaves no step.
        """
        require(
            model.autoencoder is None, f"{model.name} works on latents, which CLIP cannot see; use a model of pixels"
        )
        x0 = model.encode(image)
        path = self.path(model)
        denoise = self._denoiser(model, prompt, condition)
        clip: Clip = load_cached(self.clip, "clip", model.device)
        regions = [region_of(model, clip, part, texts, len(x0)) for part, texts in ((mask, prompt), *also)]
        changed = union(regions, x0)
        drawn = []
        for seeds in candidate_seeds(seed, x0, self.candidates):
            noise = Noise(seeds, like=x0)
            guided = self._guided(clip, denoise, regions, x0, noise, model.schedule.T)
            start = model.schedule.q_sample(x0, path.start, noise())
            options: dict[str, Any] = {"noise": noise, "callback": callback, "progress": progress}
            held = self._constraints(x0, changed)
            drawn.append(integrate(guided, self.solver, path, start, constraints=held, **options))
        if len(drawn) == 1:
            return drawn[0]
        ranks = torch.stack([distances(clip, one, regions, x0, self.sees, self.ranking) for one in drawn])
        return torch.stack(drawn)[ranks.argmin(0), torch.arange(len(x0), device=x0.device)]

    def path(self, model: Model) -> Path:
        """Return the path from the first level that is not skipped; UserError if none is left."""
        whole = Path.respaced(model.schedule, self.steps)
        left = self.skip_timesteps < len(whole)
        require(left, f"skip_timesteps is {self.skip_timesteps} of {len(whole)} steps; leave at least one")
        return whole[self.skip_timesteps :]

    def _denoiser(self, model: Model, prompt: Texts, condition: Condition | None) -> Denoiser:
        """Return the denoiser, which knows the text only if it is asked to."""
        control = Control(checkpoints=True) if self.checkpoint else None
        if condition is not None or not self.guidance:
            return model.denoiser(condition, clip=self.x0_clip, control=control)
        return model.denoiser(prompt, scale=self.guidance, clip=self.x0_clip, control=control)

    def _guided(
        self, clip: Clip, denoise: Denoiser, regions: Sequence[Region], x0: Tensor, noise: Noise, T: int
    ) -> Denoiser:
        """Return the denoiser with CLIP's pull."""
        loss = BackgroundLoss(
            image=x0,
            mask=union(regions, x0),
            perceptual=self._distance(x0) if self.perceptual_scale else None,
            perceptual_scale=self.perceptual_scale,
            mse_scale=self.mse_scale,
            reference=self.background_reference,
        )
        return CleanClipGuidance(
            denoise=denoise,
            clip=clip,
            regions=regions,
            scale=self.clip_scale,
            schedule=self.schedule,
            T=T,
            range_scale=self.range_scale,
            background=loss if loss.acts else None,
            augmentations=ExtendingAugmentations(views=self.views, shift_axes=self.shift_axes),
            noise=noise,
            mix=self.mix,
            sees=self.sees,
            image=x0,
            checkpoint=self.checkpoint,
        )

    def _distance(self, x0: Tensor) -> Distance:
        """Return the perceptual distance, of a CLIP on the device of ``x0``."""
        by_clip = not self.distance.startswith("lpips-")
        return perceptual(self.distance, load_cached(self.distance, "clip", x0.device) if by_clip else None)

    def _constraints(self, x0: Tensor, mask: Tensor) -> list[Constraint]:
        """Return what holds the background after each step, and what ends the run."""
        ending = PredictedEnd(x0 if self.enforces_background else None, mask=mask)
        if not self.blends:
            return [ending]
        return [KnownRegion(x0, keep=1 - mask, at="there" if self.background_level == "t_next" else "here"), ending]


#: "published" is the official command, "paper" the text of the paper, "algorithm1" its form without blending; "emoji64"
#: is for the shipped model and CLIP.
PRESETS: dict[str, BlendedDiffusion] = {
    "published": BlendedDiffusion(),
    "paper": BlendedDiffusion(mix=False, candidates=64),
    "algorithm1": BlendedDiffusion(blends=False, perceptual_scale=1000.0, mse_scale=10000.0),
    "emoji64": BlendedDiffusion(steps=25, skip_timesteps=2, x0_clip="clip"),
}

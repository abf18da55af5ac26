"""DDIM inversion: the noise that a deterministic sampler turns into a given image, and the way back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.guidance import Model
from steerdiff.guidance.prompts import Prompt
from steerdiff.guidance.settings import Spacing
from steerdiff.samplers import DDIM, ClipPolicy, Denoiser, Move, Noise, Path, Seeds, Solver, Step, integrate

__all__ = ["PRESETS", "DDIMInversion", "FixedPointInversion", "to_image_level"]


def to_image_level(path: Path) -> Path:
    """Return the way down to the level that an inverted image counts as: the lowest one of ``path`` that has noise."""
    return path[:-1] if path.end.clean else path


@dataclass(frozen=True, kw_only=True)
class FixedPointInversion:
    """Invert a DDIM step exactly: find the x at ``there`` whose DDIM step (eta = 0) leads back to the x at ``here``.

    That x solves ``x' = a x + b eps(x', there)``, ``a = sqrt(ab' / ab)``, ``b = sqrt(1 - ab') - a sqrt(1 - ab)``.
    The iteration is accelerated image by image (Anderson, depth 1), since eps is steep where there is little noise.
    Order 1, ``iterations`` network calls a step.

    Source: the implicit form of Song et al. 2021, eq. 12; Pan et al. 2023 (AIDI) for fixed points and acceleration.
    """

    iterations: int = 5  #: network calls of each step; 1 takes eps of the old x at the new level
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check the count."""
        require(self.iterations >= 1, f"iterations is {self.iterations}; it must be at least 1")

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, H, W] up from level ``move.here`` to ``move.there``."""
        require(move.kind == "invert", f"a fixed-point inversion only moves up, not by '{move.kind}'; use DDIM")
        a = math.sqrt(move.there.alpha_bar / move.here.alpha_bar)
        b = math.sqrt(1 - move.there.alpha_bar) - a * math.sqrt(1 - move.here.alpha_bar)
        guess, image, residual = x, None, None
        for _ in range(self.iterations):
            prediction = denoise(guess, move.there).with_score(move.there.alpha_bar)
            new_image = a * x + b * prediction.eps
            new_residual = new_image - guess
            guess = new_image
            if image is not None and residual is not None:
                guess = new_image - _secant(residual, new_residual) * (new_image - image)
            image, residual = new_image, new_residual
        return Step(guess, prediction)


def _secant(before: Tensor, after: Tensor) -> Tensor:
    """Share of the last change to take back so that the residual, if linear, is least; one number an image."""
    change = (after - before).flatten(1)
    share = (after.flatten(1) * change).sum(1) / change.square().sum(1).clamp(min=1e-20)
    return share.reshape(-1, *[1] * (after.dim() - 1))


@dataclass(frozen=True, kw_only=True)
class DDIMInversion:
    """Invert an image to level ``t0`` and sample back from there, deterministically.

    The image counts as the lowest noisy level of the path in both directions, so that going up and coming down visit
    the same levels. Plain inversion reads eps at the lower level of a step where sampling reads it at the upper one:
    the round trip errs by O(1 / steps). ``fixed_point`` iterations remove that error, each at a network call a step.

    Source: Song et al. 2021 (DDIM), section 4.3 and eq. 14.
    """

    steps: int | str = 100  #: moves of a whole path from noise to image, of which the share t0 is walked
    t0: float = 1.0  #: how far up, in (0, 1]; 1 is down to pure noise
    spacing: Spacing = "respaced"  #: how the steps are spread over the trained times
    solver: Solver = DDIM()  #: of both ways; any that moves up, such as Heun or DPMSolver2M for a closer round trip
    fixed_point: int = 0  #: network calls of an implicit step up, for DDIM; 0 is the explicit step of the paper
    guidance: float = 1.0  #: classifier-free guidance on the way back, used only with a prompt
    invert_guidance: float = 1.0  #: the same on the way up; above 1 the round trip degrades
    clip: ClipPolicy = "none"  #: of x0; published inversions do not clip, for it bends the flow that is inverted

    def __post_init__(self) -> None:
        """Check the numbers."""
        require(0 < self.t0 <= 1, f"t0 is {self.t0}; it must lie in (0, 1]")
        require(self.fixed_point >= 0, f"fixed_point is {self.fixed_point}; give a number of iterations, 0 for none")
        fits = self.fixed_point == 0 or self.solver == DDIM()
        require(fits, f"fixed_point inverts DDIM's step and not that of {self.solver}; leave solver or fixed_point out")

    @torch.no_grad()
    def __call__(
        self,
        model: Model,
        image: Tensor,
        *,
        prompt: Prompt = None,
        target: Prompt = None,
        negative: Prompt = "",
        seed: Seeds = 0,
        progress: str | None = None,
    ) -> Tensor:
        """Invert ``image`` and sample back.

        Args:
            model: Any model.
            image: [B, C, H, W] in [-1, 1].
            prompt: What the image shows.
            target: What the result should show; None is ``prompt``, the reconstruction.
            negative: The other branch of guidance, on both ways.
            seed: Not used, both ways are deterministic; taken so that all methods are called alike.
            progress: Label of a progress bar; None shows none.

        Returns:
            Images [B, C, H, W], about in [-1, 1].

        Raises:
            UserError: An image or a prompt that the model cannot take.
        """
        latent = self.invert(model, image, prompt=prompt, negative=negative, progress=progress)
        target = prompt if target is None else target
        return self.reconstruct(model, latent, prompt=target, negative=negative, progress=progress)

    @torch.no_grad()
    def invert(
        self, model: Model, image: Tensor, *, prompt: Prompt = None, negative: Prompt = "", progress: str | None = None
    ) -> Tensor:
        """Return the state [B, C, H, W] at level ``t0`` that ``image`` [B, C, H, W] comes from."""
        denoise = model.denoiser(prompt, negative=negative, scale=self.invert_guidance, clip=self.clip)
        x = model.encode(image)
        solver = FixedPointInversion(iterations=self.fixed_point) if self.fixed_point else self.solver
        return integrate(denoise, solver, self._path(model).inverted(), x, progress=progress)

    @torch.no_grad()
    def reconstruct(
        self, model: Model, latent: Tensor, *, prompt: Prompt = None, negative: Prompt = "", progress: str | None = None
    ) -> Tensor:
        """Return the images [B, C, H, W] that a ``latent`` [B, C, H, W] at level ``t0`` leads to."""
        denoise = model.denoiser(prompt, negative=negative, scale=self.guidance, clip=self.clip)
        path = to_image_level(self._path(model))
        return model.decode(integrate(denoise, self.solver, path, latent, progress=progress))

    def _path(self, model: Model) -> Path:
        return model.path(self.steps, self.spacing).from_t0(self.t0)


PRESETS: dict[str, DDIMInversion] = {
    "ddim": DDIMInversion(),
    "exact": DDIMInversion(steps=50, fixed_point=10),
}

"""Null-text inversion: DDIM inversion of an image, and text states of the empty prompt that make guidance undo it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from steerdiff.errors import require
from steerdiff.guidance import Condition, Model
from steerdiff.guidance.prompts import Prompt
from steerdiff.guidance.settings import Spacing
from steerdiff.guidance.stepwise import stepwise
from steerdiff.models import Control
from steerdiff.samplers import (
    DDIM,
    ClipPolicy,
    Denoiser,
    Move,
    Noise,
    Path,
    Prediction,
    Record,
    Recorder,
    Seeds,
    Step,
    integrate,
    resolve_seeds,
)

from .finetuned import cached_tensors, digest, identity
from .invert import FixedPointInversion, to_image_level

__all__ = ["PRESETS", "Inverted", "NullTextInversion", "PivotalDDIM", "climbed", "descent"]

#: Attention edits and taps: the same at every step, or ``control(index)`` of the move number ``index``.
Controls = Control | Callable[[int], Control | None] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Inverted:
    """An image as the noise that it comes from, and what makes guided sampling from there end at it."""

    latent: Tensor  #: state [B, C, h, w] at the level where ``path`` starts
    path: Path  #: the way down; it ends at the level that the image counts as, and is walked with DDIM
    #: unconditional branch: one for each move of ``path``, one for all of them, or None: the empty prompt
    uncond: tuple[Condition, ...] | Condition | None = None
    guidance: float | None = None  #: strength of guidance that it was made for; None is the model's
    clip: ClipPolicy = "none"  #: of x0, as on the way up

    def denoiser(
        self,
        model: Model,
        prompt: Prompt = None,
        *,
        scale: float | Tensor | None = None,
        control: Controls = None,
        clip: ClipPolicy | None = None,
    ) -> Denoiser:
        """Return the guided denoiser of the way down, for this image or for an edit of it.

        Args:
            model: The model that inverted the image.
            prompt: What the result should show: what the image shows, or something else.
            scale: Guidance strength; None is that which it was made for, the only one that reconstructs.
            control: Attention edits and taps, one for all moves or ``control(index)`` for each.
            clip: Of x0; None is as it was made.
        """
        single = None if isinstance(self.uncond, tuple) else self.uncond
        cond, uncond = model.branches(prompt, "" if single is None else single)
        scale = self.guidance if scale is None else scale
        clip = self.clip if clip is None else clip

        def choose(index: int) -> Denoiser:
            other = self.uncond[index] if isinstance(self.uncond, tuple) else uncond
            edit = control(index) if callable(control) else control
            return model.denoiser(cond, negative=other, scale=scale, clip=clip, control=edit)

        same = not isinstance(self.uncond, tuple) and not callable(control)
        return choose(0) if same else stepwise(self.path, choose)

    def sampled(self, model: Model, prompt: Prompt = None, *, progress: str | None = None) -> Tensor:
        """Return the images [B, C, H, W] at the end of the way down, told ``prompt``, with a progress bar or none."""
        x = integrate(self.denoiser(model, prompt), DDIM(), self.path, self.latent, progress=progress)
        return model.decode(x)

    def rows(self, images: Sequence[int]) -> Inverted:
        """Return the images of these numbers, each as often as it is named: one row for each edit of an image."""
        places = list(images)
        inside = len(places) > 0 and all(0 <= place < len(self.latent) for place in places)
        require(inside, f"rows are {places}; {len(self.latent)} images were inverted, name some of them, from 0 on")
        uncond = self.uncond
        if isinstance(uncond, tuple):
            uncond = tuple(one[places] for one in uncond)
        elif uncond is not None:
            uncond = uncond[places]
        return replace(self, latent=self.latent[places], uncond=uncond)


def descent(model: Model, steps: int | str, spacing: Spacing) -> Path:
    """Return the way down from noise to the level that an image counts as: the lowest one that has noise."""
    path = model.path(steps, spacing)
    path.inverted()  # says what cannot be inverted
    return to_image_level(path)


def climbed(
    denoise: Denoiser, path: Path, x: Tensor, *, fixed_point: int = 0, progress: str | None = None
) -> list[Tensor]:
    """Return the states [B, C, h, w] of DDIM inversion at all levels of ``path``, a way down, in its order.

    Args:
        denoise: Plainly conditional: guidance on the way up loses the image.
        path: From `descent`.
        x: What is inverted, [B, C, h, w]; it comes back as the last state.
        fixed_point: Network calls of an implicit step; 0 is the explicit one.
        progress: Label of a progress bar; None shows none.
    """
    seen = Recorder(on_cpu=False)
    solver = FixedPointInversion(iterations=fixed_point) if fixed_point else DDIM()
    integrate(denoise, solver, path.inverted(), x, callback=seen, progress=progress)
    return [*reversed(seen.images), x]


@dataclass(frozen=True, kw_only=True)
class NullTextInversion:
    """Invert an image, then tune the empty prompt's text states step by step so that guided sampling ends at it.

    Plain DDIM inversion with the image's own prompt gives a state at every level, the pivots. On the way down with
    guidance, each step first tunes the unconditional text states, beginning with those of the step before, until it
    ends at the next pivot; the model and the prompt's text states stay as they are. What an edit does with the latent
    and the tuned states is up to it; ``target`` alone gives the plain edit by another prompt.

    Source: Mokady et al. 2023, section 3 and Algorithm 1. Rates and stops are the official code's at 50 steps. Where
    that differs (``fixed_point=1``): going up it reads eps of the old state at the new level, the paper at the old one.
    """

    steps: int | str = 50  #: moves of the whole path from noise to image
    spacing: Spacing = "compvis"  #: how the steps are spread over the trained times
    guidance: float = 7.5  #: classifier-free guidance that the states are tuned for; 1 needs and tunes none
    inner_steps: int = 10  #: N, updates of a step at most; 0 is plain DDIM inversion
    learning_rate: float = 1e-2  #: of Adam, which begins anew at every step
    final_rate: float = 0.5  #: share of the learning rate that is left at the end, in [0, 1]; it falls evenly
    stop: float = 1e-5  #: an image is tuned no further in a step once its mean squared distance was below this
    stop_rise: float = 1e-3  #: by how much that bound grows to the end, evenly
    fixed_point: int = 0  #: network calls of an implicit step up; 1 is the official code's, 0 the explicit step
    clip: ClipPolicy = "none"  #: of x0 both ways; published inversions do not clip
    checkpoint: bool = False  #: compute activations again for the gradient instead of keeping them: less memory

    def __post_init__(self) -> None:
        """Check the numbers."""
        require(self.inner_steps >= 0, f"inner_steps is {self.inner_steps}; give a number of updates, 0 for none")
        require(self.learning_rate > 0, f"learning_rate is {self.learning_rate}; it must be positive")
        require(0 <= self.final_rate <= 1, f"final_rate is {self.final_rate}; it must lie in [0, 1]")
        bounds = self.stop >= 0 and self.stop + self.stop_rise >= 0
        require(bounds, f"stop is {self.stop} and stop_rise {self.stop_rise}; the bound must stay at least 0")
        require(self.fixed_point >= 0, f"fixed_point is {self.fixed_point}; give a number of iterations, 0 for none")

    def rate(self, done: float) -> float:
        """Return Adam's learning rate in a step before which the share ``done`` of all steps was made."""
        return self.learning_rate * (1 - (1 - self.final_rate) * done)

    def bound(self, done: float) -> float:
        """Return the mean squared distance below which a step counts as tuned."""
        return self.stop + self.stop_rise * done

    @torch.inference_mode(False)
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
        """Invert ``image`` and sample back with guidance.

        Args:
            model: Any model.
            image: [B, C, H, W] in [-1, 1].
            prompt: What the image shows.
            target: What the result should show; None is ``prompt``, the reconstruction.
            negative: What the tuned text states are at first.
            seed: Not used, both ways are deterministic; taken so that all methods are called alike.
            progress: Label of the progress bars; None shows none.

        Returns:
            Images [B, C, H, W], about in [-1, 1].

        Raises:
            UserError: An image or a prompt that the model cannot take.
        """
        resolve_seeds(seed, image.shape[0])
        cond = model.condition(prompt)
        found = self.invert(model, image, prompt=prompt, negative=negative, progress=progress)
        return found.sampled(model, cond if target is None else target, progress=progress)

    @torch.inference_mode(False)
    @torch.no_grad()
    def invert(
        self, model: Model, image: Tensor, *, prompt: Prompt = None, negative: Prompt = "", progress: str | None = None
    ) -> Inverted:
        """Return the latent of ``image`` [B, C, H, W] and the tuned states; from the cache if they were found before.

        Arguments and errors are those of a call.
        """
        path, x = descent(model, self.steps, self.spacing), model.encode(image).clone()
        cond, uncond = model.branches(prompt, negative)
        cond.expand(len(x)), uncond.expand(len(x))  # an error for prompts that are not as many as the images
        plain = model.denoiser(cond, negative=cond, clip=self.clip)
        given = Inverted(latent=x, path=path, guidance=self.guidance, clip=self.clip)
        if uncond is cond or self.guidance == 1 or self.inner_steps == 0:
            latent = climbed(plain, path, x, fixed_point=self.fixed_point, progress=progress)[0]
            return replace(given, latent=latent, uncond=None if uncond is cond else uncond)
        require(
            uncond.context is not None,
            f"{model.name} is told no text whose states could be tuned; use negative-prompt inversion (negprompt)",
        )

        def find() -> dict[str, Tensor]:
            states = climbed(plain, path, x, fixed_point=self.fixed_point, progress=progress)
            return {"latent": states[0], "context": self._tuned(model, cond, uncond, path, states, progress)}

        found = find() if not isinstance(model.network, nn.Module) else self._cached(find, model, x, cond, uncond, path)
        states = found["context"].to(model.device)
        steps = tuple(replace(uncond.expand(len(x)), context=one) for one in states)
        return replace(given, latent=found["latent"].to(model.device), uncond=steps)

    def _tuned(
        self, model: Model, cond: Condition, uncond: Condition, path: Path, states: list[Tensor], progress: str | None
    ) -> Tensor:
        """Return the tuned text states of each move [S, B, L, D]."""
        found: list[Tensor] = []

        def keep(record: Record) -> None:
            found.append(record.step.state.context)

        solver = PivotalDDIM(settings=self, model=model, cond=cond, uncond=uncond, pivots=tuple(states[1:]))
        plain = model.denoiser(cond, negative=cond, clip="none")
        integrate(plain, solver, path, states[0], callback=keep, progress=progress)
        return torch.stack(found)

    def _cached(
        self,
        find: Callable[[], dict[str, Tensor]],
        model: Model,
        x: Tensor,
        cond: Condition,
        uncond: Condition,
        path: Path,
    ) -> dict[str, Tensor]:
        """Return what ``find`` finds, from the cache if it is there: the key holds all that decides it."""
        settings = {name: value for name, value in asdict(self).items() if name != "checkpoint"}
        return cached_tensors(
            "null-text",
            model,
            find,
            model=identity(model),
            parameterization=model.parameterization,
            levels=[[level.t * model.time_scale, level.alpha_bar] for level in path.levels],
            told=digest(x, *cond.arguments().values(), *uncond.arguments().values()),
            settings=settings,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PivotalDDIM:
    """A guided DDIM step whose unconditional text states are first tuned so that it ends at a pivot.

    What it hands to the next step is the tuned condition, a row for each image. It asks the denoiser that it is given
    for the plainly conditional prediction, once. An image's states do not depend on the images beside it: Adam works
    number by number, and an image that is done stays as it is.

    Source: Mokady et al. 2023, section 3.2.
    """

    settings: NullTextInversion  #: guidance, rates and stops
    model: Model  #: whose unconditional branch is tuned
    cond: Condition  #: what the image shows
    uncond: Condition  #: with which the first step begins
    pivots: tuple[Tensor, ...]  #: [B, C, h, w] where each move should end
    order: ClassVar[int] = 1

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: Condition | None, noise: Noise) -> Step:
        """Carry ``x`` [B, C, h, w] down along one move."""
        uncond = self._first(len(x)) if state is None else state
        if move.here.alpha_bar != move.there.alpha_bar:  # a step that stays where it is needs no guidance
            uncond = self._tuned(denoise(x, move.here), x, move, uncond, noise)
        guided = self.model.denoiser(
            self.cond, negative=uncond, scale=self.settings.guidance, clip=self.settings.clip
        )  # as `Inverted` binds it: walking down again gives the same bits
        return replace(DDIM().step(guided, x, move, None, noise), state=uncond)

    def losses(self, cond: Prediction, uncond: Condition, x: Tensor, move: Move, noise: Noise) -> Tensor:
        """Return each image's mean squared distance [B] from its pivot after a step guided by these branches."""
        settings = self.settings
        control = Control(checkpoints=True) if settings.checkpoint else None
        plain = self.model.denoiser(uncond, negative=uncond, clip="none", control=control)(x, move.here)
        guided = Prediction(
            plain.x0 + settings.guidance * (cond.x0 - plain.x0), plain.eps + settings.guidance * (cond.eps - plain.eps)
        )
        if settings.clip != "none":
            limited = guided.clipped if settings.clip == "clip" else guided.thresholded
            guided = limited(move.here, x)
        reached = DDIM().step(lambda *_: guided, x, move, None, noise).x
        return (reached - self.pivots[move.index]).square().flatten(1).mean(1)

    def _first(self, rows: int) -> Condition:
        """Return the states to begin with, in float32 at least and a row for each image."""
        uncond = self.uncond.expand(rows)
        context = cast(Tensor, uncond.context)
        return replace(uncond, context=context.to(torch.promote_types(context.dtype, torch.float32)))

    @torch.enable_grad()
    def _tuned(self, cond: Prediction, x: Tensor, move: Move, uncond: Condition, noise: Noise) -> Condition:
        """Return the unconditional branch with its text states tuned for this move."""
        settings, done = self.settings, move.index / move.total
        states = cast(Tensor, uncond.context).detach().clone().requires_grad_(True)
        optimizer = torch.optim.Adam([states], lr=settings.rate(done))
        active = torch.ones(len(x), 1, 1, dtype=torch.bool, device=x.device)
        for _ in range(settings.inner_steps):
            losses = self.losses(cond, replace(uncond, context=states), x, move, noise)
            (states.grad,) = torch.autograd.grad(losses.sum(), states)
            before = states.detach().clone()
            optimizer.step()
            with torch.no_grad():
                states.copy_(torch.where(active, states, before))
            active &= (losses.detach() >= settings.bound(done)).reshape(-1, 1, 1)
            if not active.any():  # waits for the device, after a whole backward pass; it saves all that are left
                break
        return replace(uncond, context=states.detach())


#: "emoji64" is for the shipped model, whose empty prompt has two text states only: they must move further than 77.
PRESETS: dict[str, NullTextInversion] = {
    "paper": NullTextInversion(),
    "official": NullTextInversion(fixed_point=1),
    "emoji64": NullTextInversion(steps=16, guidance=3.0, learning_rate=0.1, fixed_point=2),
}

"""A model: a network with its text encoder, first stage and schedule; what every method is called with."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import Tensor, nn

from steerdiff.errors import require
from steerdiff.samplers import (
    ClipPolicy,
    Denoiser,
    NetworkDenoiser,
    Noise,
    NoiseSchedule,
    Parameterization,
    Path,
    Seeds,
    Solver,
    integrate,
    resolve_seeds,
)

from .checks import check_image, check_labels, check_mask
from .classifier import ClassifierGuidance
from .classifier_free import Condition, Network
from .extra_inputs import ExtraInput, cells_of
from .noisy_classifier import Classes, Classifier, hash_of, targets_of
from .prompts import Prompt, TextEncoder, listed
from .settings import Sampling, Spacing, solver_of, spaced_path, thresholding
from .strength import Guidance, Strength

if TYPE_CHECKING:
    from steerdiff.models.autoencoder import Autoencoder

__all__ = ["Model"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A diffusion model of images or of latents, ready to sample and to be steered.

    ``network`` may be any callable ``(x, t) -> output``, a formula too; with a text encoder it is also called with
    ``context`` (and ``context_mask``), with class labels with ``y``, and with ``concat`` where it sees more than ``x``.
    With an ``autoencoder`` the state is a latent: images, masks and references cross over in `encode`, `fit_mask` and
    `decode`, and nowhere else.
    """

    network: Network  #: ``network(x [B, C, H, W], t [B], context=..., y=..., concat=..., control=...)``
    schedule: NoiseSchedule  #: the noise levels it was trained with
    parameterization: Parameterization = "eps"  #: what its output means
    text: TextEncoder | None = None  #: None for a model without text
    autoencoder: Autoencoder | None = None  #: first stage of a latent model, None where the state is the image
    learns_variance: bool = False  #: the output has twice the channels, the second half for the variance
    image_size: int | tuple[int, int] = 64  #: side of an image in pixels, or its height and width
    channels: int = 3  #: channels of the state: colours, or channels of a latent
    num_classes: int | None = None  #: number of class labels, None without labels
    null_class: int | None = None  #: label that stands for none in classifier-free guidance, where there is one
    extra: ExtraInput = ExtraInput()  #: what the network sees beside ``x``
    time_scale: float = 1.0  #: factor on t before the network sees it (1000 / T for "rescaled" timesteps)
    sampling: Sampling = Sampling()  #: what was published with it
    tile: int | None = None  #: side in pixels of the tiles in which the first stage works; None takes images whole
    name: str = "custom"  #: where the weights come from, for the record
    files: tuple[FilePath, ...] = ()  #: files of the weights, for the record

    def __post_init__(self) -> None:
        """Check the parameterisation."""
        given, known = self.parameterization, get_args(Parameterization)
        require(given in known, f"parameterization is {given!r}; known are {', '.join(known)}")

    @functools.cached_property
    def weights_hash(self) -> str | None:
        """SHA-256 of the weights' file, for the record (of several: of their hashes); None without a file."""
        return hash_of(self.files)

    @property
    def device(self) -> torch.device:
        """Where the network is; a network without parameters runs on the CPU."""
        return torch.device("cpu") if (parameter := self._parameter()) is None else parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the network's weights. States stay in float32 or more; only the network runs in less."""
        return torch.float32 if (parameter := self._parameter()) is None else parameter.dtype

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def factor(self) -> int:
        """Pixels of an image per cell of the state, along each axis."""
        return 1 if self.autoencoder is None else self.autoencoder.config.factor

    def resized(self, height: int, width: int) -> Model:
        """Return the same model for images of another size, which it may or may not have learned to draw.

        Raises:
            UserError: The network cannot take states of that size.
        """
        divisor = self.factor * getattr(getattr(self.network, "config", None), "divisor", 1)
        fits = height > 0 and width > 0 and height % divisor == 0 and width % divisor == 0
        require(fits, f"the size is {height} x {width}; {self.name} needs multiples of {divisor}")
        return replace(self, image_size=(height, width))

    def tiled(self, tile: int) -> Model:
        """Return the same model with a first stage that works in tiles of ``tile`` pixels; UserError without one."""
        require(self.autoencoder is not None, f"{self.name} has no first stage to work in tiles; leave tile out")
        return replace(self, tile=tile)

    def state_shape(self, rows: int) -> list[int]:
        """Return the shape of the state of so many images, [rows, C, h, w]."""
        return [rows, self.channels, *(side // self.factor for side in self.size)]

    def encode(self, image: Tensor, noise: Noise | None = None) -> Tensor:
        """Check an image and return the state it stands for, on the model's device.

        Args:
            image: [B, 3, H, W] in [-1, 1].
            noise: Source of the sample from a first stage's posterior, of the shape of the state; None takes its mean.

        Returns:
            The image itself, or the scaled latent [B, C, H / factor, W / factor] of a model with a first stage.

        Raises:
            UserError: Wrong shape, size, type or range, or a value that is not finite.
        """
        stage = self.autoencoder
        image = check_image(image, self.channels if stage is None else stage.config.in_channels, self.size)
        image = image.to(self.device)
        if stage is None:
            return image
        dtype = next(stage.parameters()).dtype
        eps = None if noise is None else noise().to(dtype)
        with torch.no_grad():
            latents = [
                stage.latents(part.to(dtype), None if eps is None else eps[k : k + 1], tile=self.tile)
                for k, part in enumerate(torch.split(image, 1))
            ]
        return torch.cat(latents).to(torch.promote_types(image.dtype, torch.float32))

    def decode(self, x: Tensor) -> Tensor:
        """Turn a final state [B, C, h, w] into images; a pixel model's is one, a first stage's result is clamped."""
        stage = self.autoencoder
        if stage is None:
            return x
        dtype = next(stage.parameters()).dtype
        with torch.no_grad():
            images = [stage.images(part.to(dtype), tile=self.tile) for part in torch.split(x, 1)]
        return torch.cat(images).to(x.dtype).clamp(-1, 1)

    def fit_mask(self, mask: Tensor) -> Tensor:
        """Check a mask and bring it to the state's size and the model's device, as float32.

        A cell of a latent may change if any of its pixels may.

        Args:
            mask: [B, 1, H, W] of zeros and ones (or booleans), 1 where the image may change.

        Raises:
            UserError: Wrong shape or size, or values other than 0 and 1.
        """
        return cells_of(check_mask(mask, self.size).to(self.device), self.factor)

    def inpainting_input(self, image: Tensor, mask: Tensor) -> Tensor:
        """Return what an inpainting network sees beside ``x``: the mask, then the latent of the masked image.

        Args:
            image: [B, 3, H, W] in [-1, 1].
            mask: [B, 1, H, W] or [1, 1, H, W], 1 where the image is to be filled.

        Raises:
            UserError: This is no inpainting model, or an image or a mask does not fit.
        """
        return self.extra.inpainting(self, image, mask)

    def low_res_input(self, images: Tensor) -> Tensor:
        """Return what an upsampler sees beside ``x``: small images [B, 3, h, w] in [-1, 1] at the full size."""
        return self.extra.low_res(self, images)

    def depth_input(self, depth: Tensor) -> Tensor:
        """Return what a depth-conditioned network sees beside ``x``, from inverse depths [B, 1, H, W] of any range."""
        return self.extra.depth(self, depth)

    def condition(self, prompt: Prompt = None, *, y: Classes | None = None, extra: Tensor | None = None) -> Condition:
        """Encode prompts and labels; what a `Condition` already holds is returned as it is.

        Args:
            prompt: One text or one for each image; None is the empty prompt of a model with text.
            y: One label or one for each image.
            extra: What `inpainting_input`, `low_res_input` or `depth_input` gave.

        Raises:
            UserError: A text for a model without text, unknown words, a label outside [0, num_classes), or an extra
                input that is missing or superfluous.
        """
        if isinstance(prompt, Condition):
            return prompt
        labels = check_labels(y, self.num_classes, self.name, self.device)
        self.extra.check(self, extra)
        if self.text is None:
            require(prompt is None or prompt == "", f"{self.name} has no text encoder; leave the prompt out")
            return Condition(y=labels, concat=extra)
        texts = listed(prompt)
        require(len(texts) > 0, "the list of prompts is empty; give at least one")
        ids, mask = self.text.tokenize(texts)
        mask = None if mask is None else mask.to(self.device)
        return Condition(context=self.text(ids.to(self.device), mask), context_mask=mask, y=labels, concat=extra)

    def branches(
        self,
        prompt: Prompt = None,
        negative: Prompt = "",
        *,
        y: Classes | None = None,
        extra: Tensor | None = None,
    ) -> tuple[Condition, Condition]:
        """Return the two sides of classifier-free guidance; they are the same object where nothing is to be guided.

        The other side of a prompt is ``negative``, that of a label is ``null_class``, where the model has one.
        Arguments and errors are those of `condition`.
        """
        cond = self.condition(prompt, y=y, extra=extra)
        if negative is not None and negative != "":
            return cond, self.condition(negative, y=y, extra=extra)
        if self.null_class is not None and cond.y is not None:
            return cond, replace(cond, y=torch.full_like(cond.y, self.null_class))
        return cond, cond if prompt is None or self.text is None else self.condition("", y=y, extra=extra)

    def denoiser(
        self,
        prompt: Prompt = None,
        *,
        negative: Prompt = "",
        scale: Strength = 1.0,
        y: Classes | None = None,
        extra: Tensor | None = None,
        clip: ClipPolicy | None = None,
        quantile: float | None = None,
        control: Any = None,
    ) -> Denoiser:
        """Bind the conditioning and return ``denoise(x, level) -> Prediction``.

        Args:
            prompt: What the image should show; None is the empty prompt. One, or one for each image.
            negative: What takes the place of the empty prompt in classifier-free guidance.
            scale: Guidance strength, ``uncond + scale * (cond - uncond)``; 1 is plainly conditional, 0 plainly
                unconditional (both run one branch), None the strength published with the model; a tensor [B] guides
                each image by its own, and a function gives it for each level. A `Guidance` says this and more. It has
                no effect where the two branches are the same: without a prompt and a negative one.
            y: Class labels, for both branches; or, of a model with a ``null_class``, for the one.
            extra: What the network sees beside ``x`` (see `inpainting_input`).
            clip: What happens to the x0 prediction after guidance (see `NetworkDenoiser`); None is the model's own
                way: images are usually clipped, latents never.
            quantile: Of ``clip="dynamic"``, in (0, 1]; None is Imagen's 0.995.
            control: Attention edits and taps, passed to the network. It sees the rows of all branches, the conditional
                ones first.

        Raises:
            UserError: A text for a model without a text encoder, unknown words, bad labels, a scale that is not finite,
                dynamic thresholding of latents.
        """
        cond, uncond = self.branches(prompt, negative, y=y, extra=extra)
        guide = Guidance.of(scale).bound(self, y=y, extra=extra)
        network = guide.network(self._run, cond, uncond, channels=self.channels, control=control)
        plain = NetworkDenoiser(
            network=network,
            parameterization=self.parameterization,
            learns_variance=self.learns_variance,
            **thresholding(self, clip, quantile),
            time_scale=self.time_scale,
        )
        return guide.over_levels(plain, self.schedule.T)

    def path(self, steps: int | str | None = None, spacing: Spacing | None = None) -> Path:
        """Return the path of ``steps`` moves from noise to a clean image, spaced as named; None is the model's own."""
        return spaced_path(self.schedule, **self.sampling.or_given(steps=steps, spacing=spacing))

    @torch.no_grad()
    def sample(
        self,
        prompt: str | Sequence[str] | None = None,
        n: int = 1,
        *,
        steps: int | str | None = None,
        guidance: Strength = None,
        negative: str = "",
        y: Classes | None = None,
        extra: Tensor | None = None,
        classifier: Classifier | None = None,
        classifier_scale: float | None = None,
        seed: Seeds = 0,
        solver: str | Solver | None = None,
        spacing: Spacing | None = None,
        clip: ClipPolicy | None = None,
        quantile: float | None = None,
        batch: int = 32,
        progress: str | None = None,
    ) -> Tensor:
        """Draw images from noise. What is None is as it was published with the model (``model.sampling``).

        Args:
            prompt: A text or several; None draws without one.
            n: Images for each prompt or label.
            steps: Moves of the path.
            guidance: Strength of classifier-free guidance, or a `Guidance`; several are one for each image of the
                result. Not used without a prompt or a label that has a null.
            negative: What the images should not show.
            y: Class label, or several, in the place of prompts or one for each of them: for a class-conditional model,
                for the classifier, which takes names too, or for both.
            extra: What the network sees beside the state: ``model.low_res_input(small_images)`` of an upsampler,
                ``model.inpainting_input(image, mask)``, ``model.depth_input(depth)``; one row, or one for each prompt.
            classifier: A noisy classifier ``(x, t) -> logits`` that pulls towards ``y``.
            classifier_scale: Its strength; 0 is none.
            seed: Image k of the result (prompt by prompt) uses ``seed + k``; or a list of one for each image.
            solver: A name in `SOLVERS` or a solver.
            spacing: How the steps are spread over the noise levels.
            clip: What happens to each x0 prediction after guidance.
            quantile: Of ``clip="dynamic"``, in (0, 1]; None is Imagen's 0.995.
            batch: Images computed together; it changes memory and speed, not the images.
            progress: Label of a progress bar; None is silent.

        Returns:
            Images [prompts * n, C, H, W] in [-1, 1], those of the first prompt first.

        Raises:
            UserError: Bad arguments, before anything is computed.
        """
        require(n >= 1, f"n is {n}; ask for at least one image")
        require(batch >= 1, f"batch is {batch}; it must be at least 1")
        chosen = solver_of(self.sampling.solver if solver is None else solver)
        targets = Condition() if classifier is None else Condition(y=targets_of(classifier, y, self))
        own = y if classifier is None else targets.y if self.num_classes is not None else None
        cond, uncond = self.branches(prompt, negative, y=own, extra=extra)
        guide = Guidance.of(guidance).bound(self, y=own, extra=extra)
        seeds = resolve_seeds(seed, max(cond.rows, targets.rows, guide.rows) * n)
        cond, uncond = _sides(cond, uncond, lambda one: one.repeat(n))
        targets, guide = targets.repeat(n), guide.repeat(n)
        path = self.path(steps, spacing)
        guide.check_fits(path, self.schedule.T, len(seeds))
        parts = []
        for some in (slice(first, first + batch) for first in range(0, len(seeds), batch)):
            here, other = _sides(cond, uncond, operator.itemgetter(some))
            denoise = self.denoiser(here, negative=other, scale=guide[some], clip=clip, quantile=quantile)
            denoise = self._pulled(denoise, classifier, targets[some].expand(len(seeds[some])), classifier_scale)
            noise = Noise(seeds[some], self.state_shape(len(seeds[some])), self.device)
            parts.append(self.decode(integrate(denoise, chosen, path, noise(), noise=noise, progress=progress)))
        return torch.cat(parts)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Model:
        """Return the model with its parts moved (in place, as ``torch.nn.Module.to`` does).

        A first stage stays in float32 when float16 is asked for: its decoder overflows there.
        """
        network, text = (_moved(part, device, dtype) for part in (self.network, self.text))
        stage = _moved(self.autoencoder, device, torch.float32 if dtype == torch.float16 else dtype)
        return replace(self, network=network, text=text, autoencoder=stage)

    def _pulled(
        self, denoise: Denoiser, classifier: Classifier | None, targets: Condition, scale: float | None
    ) -> Denoiser:
        """Return the denoiser pulled towards the labels of ``targets``; a scale of None is the model's own."""
        if classifier is None:
            return denoise
        scale = self.sampling.classifier_scale if scale is None else scale
        return ClassifierGuidance(denoise=denoise, classifier=classifier, y=cast(Tensor, targets.y), scale=scale)

    def _run(self, x: Tensor, t: Tensor, **arguments: Any) -> Tensor:
        """Call the network in its own floating type and give its output in that of ``x``."""
        if not isinstance(self.network, nn.Module):
            return self.network(x, t, **arguments)
        return cast(Tensor, self.network(x.to(self.dtype), t, **arguments)).to(x.dtype)

    def _parameter(self) -> nn.Parameter | None:
        module = self.network
        return next(module.parameters(), None) if isinstance(module, nn.Module) else None


def _sides(cond: Condition, uncond: Condition, change: Callable[[Condition], Condition]) -> tuple[Condition, Condition]:
    """Change both sides of guidance; one object stays one: the denoiser knows by it that there is nothing to guide."""
    changed = change(cond)
    return changed, changed if uncond is cond else change(uncond)


def _moved(part: Any, device: str | torch.device | None, dtype: torch.dtype | None) -> Any:
    return part.to(device=device, dtype=dtype) if isinstance(part, nn.Module) else part

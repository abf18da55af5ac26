"""DiffusionCLIP: tune the whole network so that a deterministic round trip changes one attribute of an image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from steerdiff.errors import UserError, require
from steerdiff.guidance import Model
from steerdiff.guidance.directional import text_direction
from steerdiff.guidance.loading import load_cached
from steerdiff.guidance.mixed import MixedDenoiser
from steerdiff.guidance.prompts import Prompt
from steerdiff.models.clip import Clip
from steerdiff.models.delta import Delta, make_delta
from steerdiff.samplers import CLEAN, DDIM, ClipPolicy, Denoiser, Noise, NoiseSchedule, Path, Seeds, integrate
from steerdiff.train.finetune import FinetuneConfig

from .diffusion_clip_tuning import EfficientTuning, Finish, QuickTuning
from .edit_tuning import (
    EditLoss,
    Identity,
    LatentPairs,
    latent_pairs,
    named_deltas,
    sentences,
    training_images,
)
from .finetuned import cached_delta, copy_of, descend, digest, with_delta
from .finetuned import identity as identity_of

__all__ = ["PRESETS", "DiffusionCLIP"]

_METHOD = "diffusionclip"
_READING = (".attn2.to_k.", ".attn2.to_v.")  # in the names of the weights that look at the prompt
_REVISION = 1  # of what tuning computes: a new one makes the cached deltas anew
#: Fields that may be left open, with what was published for the README's edit.
_LEFT_OPEN: dict[str, Any] = {"t0": 0.5, "until": 0.0, "uses_prompt": False}
#: Fields that decide what tuning computes; its CLIP and its images count by their contents.
_TUNING = (
    *("source_text", "target_text", "t0", "n_inv", "n_train", "variant", "templates", "clip_x0", "uses_prompt"),
    *("until", "tunes", "views"),
    *("clip_weight", "l1_weight", "id_weight", "learning_rate", "rate_gamma", "epochs", "batch_size"),
)


@dataclass(frozen=True, kw_only=True)
class DiffusionCLIP:
    """Invert an image with the model as it was, and sample back with the model tuned to an edit that two texts name.

    Both ways are deterministic DDIM between the clean image and level t0. Tuning takes inverted images through a few
    moves down and descends a directional CLIP loss plus the difference from the input. Without a ``delta`` it is done
    at the first call and kept in the cache. Defaults are those of the official README (t0 500 of 1000).

    Source: Kim, Kwon and Ye 2022, Algorithms 1 to 4. Where the official code differs from the paper: L_clip is
    ``-log((1 + cos) / 2)`` and not ``1 - cos``, and it is the code's that is computed here; its identity loss has no
    gradient in the efficient variant, and has one here.
    """

    prompt_is: ClassVar[str] = "source"  #: the prompt of the call says what the image shows

    source_text: str = ""  #: what images show before the edit, such as "flat" or "face"
    target_text: str = ""  #: what they shall show, such as "3d" or "tanned face"
    delta: FilePath | None = None  #: file that ``steerdiff finetune`` wrote; None tunes now, or takes it from the cache
    more: tuple[FilePath, ...] = ()  #: further deltas, whose predictions are mixed with those of the first
    mix: tuple[str, ...] = ()  #: "0.3:1,0" is weights of the models from t = 0.3 T on; none given: equal ones
    degree: float = 1.0  #: r: share of the tuned model in the predicted noise, 0 (nothing changes) to 1
    t0: float | None = None  #: how far up, in (0, 1]: 0.2 for texture to 0.6 for shape; None: the delta's, else 0.5
    n_inv: int = 40  #: levels of the way up
    n_test: int = 40  #: moves of the way down
    until: float | None = (
        None  #: share of the times below which the original finishes; None: the delta's, else 0, never
    )
    start: Literal["invert", "noise"] = "invert"  #: noise: fresh noise on the image in the place of its inversion
    repeats: int = 1  #: how often noising and sampling back are repeated, with start noise
    translations: int = 0  #: noisings with which the model first makes an image of another domain one of its own
    n_train: int = 6  #: moves of the way down in tuning
    variant: Literal["quick", "efficient"] = "quick"  #: one update through all moves, or one after each of them
    tunes: Literal["all", "attention"] = "all"  #: all weights, as published, or those that look at the prompt alone
    clip: str = "emoji64-clip"  #: name or path of a CLIP
    templates: Literal["auto", "none"] = "auto"  #: average the direction over sentences that fit the texts, or not
    views: int = 1  #: of each image that CLIP compares, the whole one first; published 1, more resist patterns
    clip_weight: float = 3.0  #: of the directional loss
    l1_weight: float = 1.0  #: of the mean absolute difference from the input
    id_weight: float = 0.0  #: of the identity loss; above 0 tune with ``finetune(identity=...)``
    learning_rate: float = 8e-6  #: of Adam
    rate_gamma: float = 1.3  #: factor on it after every epoch; it grows, so more than 8 epochs end in noise
    epochs: int = 5  #: times that all training images are gone through
    images: FilePath | None = None  #: folder of training images (captions in .txt); None draws them with the model
    n_images: int = 50  #: training images; about 30 suffice
    image_steps: int = 25  #: moves in which each is drawn
    batch_size: int = 1  #: images of one update
    uses_prompt: bool | None = None  #: tell the network what images show; None: as the delta was tuned, else without
    clip_x0: ClipPolicy = "none"  #: of the x0 prediction, which published runs do not clip
    tune_seed: int = 0  #: decides the drawn training images

    def __post_init__(self) -> None:
        """Check what needs no model."""
        for name, known in (("start", ("invert", "noise")), ("variant", ("quick", "efficient"))):
            require(
                getattr(self, name) in known, f"{name} is {getattr(self, name)!r}; known are {known[0]}, {known[1]}"
            )
        require(self.tunes in ("all", "attention"), f"tunes is {self.tunes!r}; known are all and attention")
        require(self.templates in ("auto", "none"), f"templates is {self.templates!r}; known are auto and none")
        require(0 <= self.degree <= 1, f"degree is {self.degree}; it must lie in [0, 1], the share of the tuned model")
        require(self.t0 is None or 0 < self.t0 <= 1, f"t0 is {self.t0}; it must lie in (0, 1]")
        below = self.until is None or 0 <= self.until < (1.0 if self.t0 is None else self.t0)
        require(below, f"until is {self.until}; it must be at least 0 and below t0")
        for name in ("n_inv", "n_test", "n_train"):
            require(getattr(self, name) >= 2, f"{name} is {getattr(self, name)}; it must be at least 2, t0 and 0")
        for name in ("repeats", "epochs", "n_images", "image_steps", "batch_size", "views"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(self.translations >= 0, f"translations is {self.translations}; it must be at least 0")
        again = self.repeats == 1 or self.start == "noise"
        require(again, f"repeats is {self.repeats}, but an inverted image gives the same each time; use start noise")
        require(self.delta is not None or not self.more, "more deltas are given but no first one; give delta too")
        _stages(self.mix, 1 + len(self.more), 1)  # for its errors

    @torch.no_grad()
    def __call__(
        self,
        model: Model,
        image: Tensor,
        *,
        prompt: Prompt = None,
        seed: Seeds = 0,
        progress: str | None = None,
    ) -> Tensor:
        """Edit each image.

        Args:
            model: The model that was tuned, or is to be; not yet tuned itself.
            image: [B, 3, H, W] in [-1, 1].
            prompt: What the image shows before the edit, if the network is told (``uses_prompt``).
            seed: Used by ``start="noise"`` and ``translations`` only: the rest is deterministic.
            progress: Label of progress bars, also of tuning; None shows none.

        Returns:
            Images [B, 3, H, W], about in [-1, 1].

        Raises:
            UserError: An image, a prompt, a delta or a number of levels that the model cannot take, or texts that are
                missing where it has to be tuned.
        """
        x = model.encode(image)
        noise = Noise(seed, like=x)
        condition = model.condition(prompt)
        deltas = self.deltas(model, progress)
        settled = self.settled(deltas)
        down, up = settled.path(model.schedule, self.n_test), settled.path(model.schedule, self.n_inv).inverted()
        told = condition if settled.uses_prompt or condition.y is not None else None
        original = model.denoiser(told, scale=1.0, clip=self.clip_x0)
        tuned = tuple(with_delta(model, delta).denoiser(told, scale=1.0, clip=self.clip_x0) for delta in deltas)
        finish = settled._finish(model)
        edited = self._mixed(tuple(finish.after(one) for one in tuned), original, model.schedule.T)

        for _ in range(self.translations):
            few = settled.path(model.schedule, self.n_train)
            x = self._renewed(original, few, model.schedule, x, noise.fork("translations"))
        if self.start == "invert":
            latent = integrate(original, DDIM(), up, x, progress=progress)  # Algorithm 1, lines 2 to 5
            x = integrate(edited, DDIM(), down, latent, progress=progress)
        else:
            for _ in range(self.repeats):
                x = self._renewed(edited, down, model.schedule, x, noise)
        return model.decode(x)

    def path(self, schedule: NoiseSchedule, n: int) -> Path:
        """Return the way down in ``n`` moves: the times ``int(linspace(0, 1, n) * t0)``, then the clean image."""
        t0 = _LEFT_OPEN["t0"] if self.t0 is None else self.t0
        top = min(round(t0 * schedule.T), schedule.T - 1)
        require(n <= top + 1, f"{n} levels do not fit below t0 = {t0}, which is time {top}; use fewer, or a larger t0")
        times = sorted({int(share * top) for share in np.linspace(0, 1, n)}, reverse=True)
        levels = [*(schedule.level(t) for t in times), CLEAN]
        return Path.from_levels(levels, T=schedule.T, schedule=schedule)

    def deltas(self, model: Model, progress: str | None = None) -> tuple[Delta, ...]:
        """Return the deltas of the given files; without one, that of this edit, tuned now if it is not in the cache.

        Raises:
            UserError: A file is no delta of this method, or tuning is not possible.
        """
        if self.delta is not None:
            return named_deltas(self, _METHOD, identity_of(model))
        if self.degree == 0:
            return ()
        require(not self.id_weight, "id_weight needs what compares faces; tune with finetune(identity=...), give delta")
        clip: Clip = load_cached(self.clip, "clip", device=model.device)
        self.direction(clip)  # for its errors, before anything is computed
        images, _ = training_images(self, copy_of(model, shares=True))
        settings = self._settings(clip, images)

        def tune(folder: FilePath) -> Delta:
            return self.finetune(model, folder=folder, resume=True, progress=progress is not None)

        return (cached_delta(_METHOD, model, settings, tune),)

    def settled(self, deltas: tuple[Delta, ...]) -> DiffusionCLIP:
        """Return these settings with what they leave open as the first delta was tuned, or as published."""
        known = {**_LEFT_OPEN, **(deltas[0].settings if deltas else {})}
        return replace(self, **{name: known[name] for name in _LEFT_OPEN if getattr(self, name) is None})

    def direction(self, clip: Clip) -> Tensor:
        """Return the unit vector [D] from the source text to the target text, averaged over templates."""
        return text_direction(clip, self.source_text, self.target_text, sentences(self, clip))

    def tuning_path(self, schedule: NoiseSchedule) -> Path:
        """Return the moves of tuning; the efficient variant leaves out those of the original, which teach nothing."""
        whole = self.path(schedule, self.n_train)
        if self.variant == "quick" or not self.until:
            return whole
        return Path.from_moves([move for move in whole if move.here.t >= self.until * schedule.T], T=schedule.T)

    def finetune(
        self,
        model: Model,
        *,
        folder: FilePath,
        resume: bool = False,
        progress: bool = True,
        identity: Identity | None = None,
        bf16: bool = False,
        checkpointing: bool = False,
    ) -> Delta:
        """Tune the network to the edit, or go on with it.

        Args:
            model: The model to tune; it stays as it is.
            folder: Where the run's checkpoints and numbers go.
            resume: Go on from the newest checkpoint in ``folder``.
            progress: Show a progress bar.
            identity: ``identity(edited, source) -> [B]``, 0 where two faces are one person's; for ``id_weight``.
            bf16: Run the networks in bfloat16 where that is safe (autocast); weights and optimiser stay as they are.
            checkpointing: Keep no activations but compute them again: less memory, a third more time.

        Returns:
            What it changed, to be saved by `steerdiff.models.delta.save_delta`.

        Raises:
            UserError: Texts are missing, ``id_weight`` without ``identity``, or a model, a CLIP or a folder do not fit.
            KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint was written, with which ``resume`` goes on.

        Source: Kim et al. 2022, Algorithms 1 (quick) and 2 (GPU-efficient).
        """
        fits = not self.id_weight or identity is not None
        require(fits, f"id_weight is {self.id_weight} but nothing compares faces; call finetune with identity=...")
        clip: Clip = load_cached(self.clip, "clip", device=model.device)
        loss = EditLoss(
            clip=clip,
            direction=self.direction(clip),
            clip_weight=self.clip_weight,
            l1_weight=self.l1_weight,
            id_weight=self.id_weight,
            identity=identity,
            views=self.views,
        )
        tuned, pairs = copy_of(model, shares=False), self._pairs(copy_of(model, shares=True), clip)
        network = cast(nn.Module, tuned.network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(self.tunes == "all" or any(part in name for part in _READING))
        kind = QuickTuning if self.variant == "quick" else EfficientTuning
        path = self.tuning_path(model.schedule)
        finish = self.settled(())._finish(copy_of(model, shares=True))
        tuning = kind(tuned, path, pairs, loss, self.clip_x0, checkpointing, finish)
        settings = self._settings(clip, pairs.images)
        config = self._config(folder, pairs, {**settings, "base": identity_of(model)}, bf16)
        descend(config, network, tuning, pairs, resume=resume, progress=progress)
        before = cast(nn.Module, model.network).state_dict()
        return make_delta(before, network.state_dict(), base=identity_of(model), method=_METHOD, settings=settings)

    def _finish(self, model: Model) -> Finish:
        """Return who makes the last moves."""
        if not self.until:
            return Finish()
        return Finish(original=model.denoiser(clip=self.clip_x0), below=self.until * model.schedule.T)

    def _mixed(self, tuned: tuple[Denoiser, ...], original: Denoiser, T: int) -> Denoiser:
        """Return ``r sum_i w_i eps_i + (1 - r) eps_original`` (section 3.4)."""
        if not tuned or self.degree == 0:
            return original
        mixed = MixedDenoiser(denoisers=tuned, stages=_stages(self.mix, len(tuned), T))
        return MixedDenoiser(denoisers=(mixed, original), stages=((0.0, (self.degree, 1 - self.degree)),))

    def _renewed(self, denoise: Denoiser, down: Path, schedule: NoiseSchedule, x: Tensor, noise: Noise) -> Tensor:
        """Noise an image and sample back; as in the official code it is noised to one time below where that starts."""
        below = schedule.level(max(0.0, down.start.t - 1))
        return integrate(denoise, DDIM(), down, schedule.q_sample(x, below, noise()))

    def _pairs(self, model: Model, clip: Clip) -> LatentPairs:
        """Return the training images with their latents (section 3.2)."""
        updates = 1 if self.variant == "quick" else len(self.tuning_path(model.schedule))
        return latent_pairs(self, model, clip, self.path(model.schedule, self.n_inv).inverted(), updates)

    def _settings(self, clip: Clip, images: Tensor) -> dict[str, Any]:
        """Return all that decides what tuning computes, JSON-able."""
        fields = {name: getattr(self, name) for name in _TUNING}
        known = {name: getattr(self.settled(()), name) for name in _LEFT_OPEN}
        seen = {"clip": identity_of(clip), "images": digest(images)}
        return {**fields, **known, **seen, "n_images": len(images), "revision": _REVISION}

    def _config(self, folder: FilePath, pairs: LatentPairs, about: dict[str, Any], bf16: bool) -> FinetuneConfig:
        """Return the settings of the loop: the rate grows after every epoch."""
        return FinetuneConfig(
            folder=str(folder),
            about=about,
            steps=pairs.epoch * self.epochs,
            batch_size=pairs.batch_size,
            learning_rate=self.learning_rate,
            rate_gamma=self.rate_gamma,
            rate_every=pairs.epoch,
            precision="bf16" if bf16 else "fp32",
            checkpoint_every=pairs.epoch,
        )


def _stages(mix: tuple[str, ...], models: int, T: int) -> tuple[tuple[float, tuple[float, ...]], ...]:
    """Return thresholds in trained times and normalised weights, from texts such as "0.3:1,0".

    Raises:
        UserError: A text of another form, weights of another number than there are models, or that sum to 0.
    """
    if not mix:
        return ((0.0, (1 / models,) * models),)
    stages = []
    for text in mix:
        threshold, _, weights = text.partition(":")
        try:
            start, values = float(threshold), [float(value) for value in weights.split(",")]
        except ValueError:
            raise UserError(
                f"mix has {text!r}; write the share of t from which it holds and weights, as 0.3:1,0"
            ) from None
        require(len(values) == models, f"mix has {text!r}; it needs {models} weights, one for each delta")
        require(min(values) >= 0 and sum(values) > 0, f"mix has {text!r}; weights are at least 0, and not all 0")
        stages.append((start * T, tuple(value / sum(values) for value in values)))
    lowest = min(start for start, _ in stages)
    require(lowest == 0, f"mix begins at {lowest / T:g}; say also what holds from 0 on, as 0:0.5,0.5")
    return tuple(stages)


#: "published" is the official README's recipe; "emoji64" is calibrated to the embedded model and tunes for a minute.
PRESETS: dict[str, DiffusionCLIP] = {
    "published": DiffusionCLIP(),
    "efficient": DiffusionCLIP(variant="efficient"),
    "emoji64": DiffusionCLIP(
        t0=0.7,
        until=0.2,
        n_inv=16,
        n_test=16,
        n_train=6,
        variant="efficient",
        tunes="attention",
        uses_prompt=True,
        views=4,
        l1_weight=0.1,
        learning_rate=1e-3,
        rate_gamma=1.0,
        epochs=10,
        n_images=12,
        image_steps=8,
    ),
}

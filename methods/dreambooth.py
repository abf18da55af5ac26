"""DreamBooth: teach a model a subject by name from a few pictures, while its class stays what it was."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.guidance import Model
from steerdiff.guidance.classifier_free import Condition
from steerdiff.guidance.prompts import Prompt
from steerdiff.models.delta import Delta
from steerdiff.models.lora import ATTENTION
from steerdiff.samplers import DDIM, ClipPolicy, DPMSolver2M, Noise, Seeds, Solver, integrate
from steerdiff.train.finetune import FinetuneConfig
from steerdiff.train.loop import LossFn

from .dreambooth_tuning import (
    Pictures,
    PriorPreservation,
    Tuned,
    class_captions,
    class_pictures,
    folder_pictures,
    given_pictures,
    noun_behind,
    told,
)
from .finetuned import cached_delta, copy_of, descend, digest, given_delta, identity, with_delta
from .image_tuning import DenoisingLoss, alike, gather, rows_of, separate
from .new_words import with_new_word

__all__ = ["PRESETS", "DreamBooth"]

_METHOD = "dreambooth"
_REVISION = 1  # of what tuning computes: a new one makes the cached deltas anew
#: Fields that decide what tuning computes; pictures count by their contents and captions.
_TUNING = (
    *("identifiers", "nouns", "template", "flip", "prior_weight", "n_class", "class_steps", "class_guidance"),
    *("tunes_text", "lora", "lora_in", "tune_steps", "learning_rate", "weight_decay", "clip_norm", "batch_size"),
    *("ema_decay", "tune_seed"),
)


@dataclass(frozen=True, kw_only=True)
class DreamBooth:
    """Teach the model a subject, "a [V] [class]", from a few pictures, and draw it as a prompt says.

    All weights descend the loss that the model was trained with, on pictures of the subject and, with the weight
    lambda, on as many of "a [class]" that the model drew before (prior preservation). Several subjects are taught in
    one run, each with its identifier, noun and folder. The tuned weights are kept in the cache; or give the ``delta``
    of ``steerdiff finetune``. Defaults are the paper's for Stable Diffusion, with the ports' way of drawing.

    Source: Ruiz et al. 2023 (DreamBooth), section 3. There is no official code; the presets "diffusers" and
    "xavierxiao" are the ports' settings. The paper weights the errors of x0; as in both ports it is the network's own
    target here. The latent of a picture is the mean of the posterior, and a sample of it at each step in the ports.
    """

    images: tuple[FilePath, ...] = ()  #: a folder of 3 to 5 pictures for each subject; none: the image of the call
    identifiers: tuple[str, ...] = ("sks",)  #: [V] of each subject; the paper takes rare tokens, see docs
    nouns: tuple[str, ...] = ()  #: [class] of each subject, such as dog; none: the word behind [V] in the captions
    template: str = "a {}"  #: what pictures show, with {} for "[V] [class]"; of class pictures for "[class]"
    captioned: bool = False  #: what each picture of a folder shows stands beside it in a .txt, [V] included
    flip: bool = False  #: tune on mirror images too
    delta: FilePath | None = None  #: file that ``steerdiff finetune`` wrote; None tunes now, or takes it from the cache
    prior_weight: float = 1.0  #: lambda; 0 is plain fine-tuning
    n_class: int = 1000  #: class pictures in all; 200 are usual
    class_steps: int | str | None = None  #: moves in which each is drawn; None is the model's own
    class_guidance: float | None = None  #: with which each is drawn; None is the model's own
    tunes_text: bool = False  #: tune the text encoder too
    lora: int | None = None  #: rank of low-rank adapters, which alone are tuned; None tunes all weights
    lora_in: tuple[str, ...] = ATTENTION  #: matrices with one of these in their name get adapters
    tune_steps: int = 1000  #: updates; 0 leaves the model as it is
    learning_rate: float = 5e-6  #: of AdamW
    weight_decay: float = 0.01  #: of AdamW, on matrices
    clip_norm: float | None = None  #: longest gradient; None does not shorten it
    ema_decay: float = 0.0  #: of the averaged weights that are the result; 0 takes those of the last update
    batch_size: int = 1  #: pictures of the subject in one update, and as many of its class
    tune_seed: int = 0  #: decides times, noises and class pictures
    steps: int | str | None = 50  #: moves of the path when drawing; None is the model's own
    solver: Solver = DDIM()  #: when drawing
    guidance: float | None = 7.5  #: classifier-free guidance when drawing; None is the model's own
    clip: ClipPolicy | None = None  #: of the x0 prediction; None is the model's own

    def __post_init__(self) -> None:
        """Check what needs no model."""
        n = max(1, len(self.images))
        fits = len(self.identifiers) == n and len(self.nouns) in (0, n)
        counts = f"{len(self.identifiers)} identifiers, {len(self.nouns)} nouns and {n} subjects"
        require(fits, f"there are {counts}; give each subject its folder, identifier and noun, in the same order")
        require(len(set(self.identifiers)) == n, "identifiers are given twice; each subject needs its own")
        require(self.template.count("{}") == 1, f"template is {self.template!r}; it needs one {{}} for the subject")
        require(self.prior_weight >= 0, f"prior_weight is {self.prior_weight}; it must be at least 0")
        for name in ("n_class", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("tune_steps", "weight_decay", "tune_seed"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must be at least 0")
        require(self.lora is None or self.lora >= 1, f"lora is {self.lora}; it is a rank of at least 1, or None")

    @torch.no_grad()
    def __call__(
        self,
        model: Model,
        image: Tensor | None = None,
        *,
        prompt: Prompt = None,
        target: Prompt = None,
        negative: Prompt = "",
        seed: Seeds = 0,
        progress: str | None = None,
    ) -> Tensor:
        """Draw the subject.

        Args:
            model: The model that is taught, or was; it stays as it is.
            image: The subject, one picture of each [B, C, H, W] in [-1, 1], on which a model is tuned for each. With
                ``images`` or ``delta`` it only says how many to draw; None draws one for each prompt or seed.
            prompt: What is drawn, such as "a sks dog in a bucket"; None is the subject alone. Beside a target: what
                the image shows, identifier included.
            target: What is drawn.
            negative: What should not be drawn.
            seed: One integer (image i uses ``seed + i``) or one for each image.
            progress: Label of progress bars, also of tuning; None shows none.

        Returns:
            Images [B, C, H, W], about in [-1, 1].

        Raises:
            UserError: No subject, or an image, a prompt or a delta that the model cannot take.
        """
        x = None if image is None else model.encode(image)
        drawn, caption = (prompt, None) if target is None else (target, prompt)
        rows = max(_rows(drawn), len(seed) if isinstance(seed, Sequence) else 1) if x is None else len(x)
        _check_rows(rows, prompt=prompt, target=target, negative=negative)
        noise = Noise(seed, model.state_shape(rows), model.device)
        path, parts = model.path(self.steps), []
        groups = self._groups(x, caption, rows)
        for places in groups:
            delta = self._delta(model, image, caption, places[0], progress)
            tuned = model if delta is None else with_delta(model, delta)
            shown = delta.settings["shows"] if delta is not None and drawn is None else drawn
            told_so, not_so = (_at(some, places) for some in (shown, negative))
            denoise = tuned.denoiser(told_so, negative=not_so, scale=self.guidance, clip=self.clip)
            own = Noise([noise.seeds[k] for k in places], model.state_shape(len(places)), model.device)
            parts.append(integrate(denoise, self.solver, path, own(), noise=own, progress=progress))
        return model.decode(gather(parts, groups))

    def deltas(self, model: Model, progress: str | None = None) -> tuple[Delta, ...]:
        """Return the delta of the given file, else of the folders of pictures, tuned now if it is not in the cache.

        Without either there is none: a model is tuned to each image of a call.

        Raises:
            UserError: The file is no delta of this method and model, or tuning is not possible.
        """
        found = self._delta(model, None, None, 0, progress) if self.delta is not None or self.images else None
        return () if found is None else (found,)

    def finetune(
        self,
        model: Model,
        image: Tensor | None = None,
        *,
        prompt: Prompt = None,
        folder: FilePath,
        resume: bool = False,
        progress: bool = True,
        bf16: bool = False,
        checkpointing: bool = False,
    ) -> Delta:
        """Teach the subjects, or go on with it.

        Args:
            model: The model that is taught; it stays as it is.
            image: Pictures of one subject [N, C, H, W] in [-1, 1]; None takes those of the folders.
            prompt: What they show, identifier included; None is "[V] [class]" in the template.
            folder: Where the run's checkpoints and numbers go.
            resume: Go on from the newest checkpoint in ``folder``.
            progress: Show progress bars.
            bf16: Run the networks in bfloat16 where that is safe (autocast); weights and optimiser stay as they are.
            checkpointing: Keep no activations but compute them again: less memory, a third more time.

        Returns:
            What it changed, to be saved by `steerdiff.models.delta.save_delta`.

        Raises:
            UserError: No pictures, or a model, a caption, a noun or a folder that do not fit.
            KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint was written, with which ``resume`` goes on.

        Source: Ruiz et al. 2023, eq. 2.
        """
        require(self.tune_steps > 0, "tune_steps is 0, which tunes nothing; give a number of updates")
        pictures = self._pictures(model, image, prompt)
        named = functools.reduce(with_new_word, self.identifiers, model)
        tuned = Tuned(model, named, text=self.tunes_text, rank=self.lora, among=self.lora_in)
        shown = self._loss_of(tuned.model, pictures, "", checkpointing)  # for its errors, before classes are drawn
        loss: LossFn = shown
        if self.prior_weight:
            prior = self._class_pictures(copy_of(model, shares=True), pictures, "class pictures" if progress else None)
            kept = self._loss_of(tuned.model, prior, "prior", checkpointing)
            loss = PriorPreservation(shown, kept, prior.states(model, flip=self.flip), self.prior_weight)
        settings = self._settings(pictures)
        config = self._config(folder, {**settings, "base": identity(model)}, bf16)
        states = pictures.states(model, flip=self.flip)
        descend(config, tuned.parts, loss, states, resume=resume, progress=progress)
        return tuned.delta(_METHOD, settings)

    def _groups(self, x: Tensor | None, caption: Prompt, rows: int) -> list[list[int]]:
        """Return the places that one model draws: those of equal pictures with one caption, else all."""
        if x is None or not self.tune_steps or self.delta is not None or self.images:
            return [list(range(rows))]
        return alike(x, separate(caption, rows))

    def _delta(
        self, model: Model, image: Tensor | None, caption: Prompt, place: int, progress: str | None
    ) -> Delta | None:
        """Return what the model is changed by for one place of a batch; None: nothing."""
        if self.delta is not None:
            return given_delta(self.delta, _METHOD, identity(model))
        if not self.tune_steps:
            return None
        own = None if self.images or image is None else image[place : place + 1]
        one = None if own is None else _at(caption, [place])

        def tune(folder: FilePath) -> Delta:
            return self.finetune(model, own, prompt=one, folder=folder, resume=True, progress=progress is not None)

        return cached_delta(_METHOD, model, self._settings(self._pictures(model, own, one)), tune)

    def _called(self, subject: int) -> str:
        """Return "a [V] [class]"."""
        noun = self.nouns[subject : subject + 1]
        return self.template.format(" ".join((self.identifiers[subject], *noun)))

    def _pictures(self, model: Model, image: Tensor | None, prompt: Prompt) -> Pictures:
        """Return the pictures of all subjects with their captions."""
        if image is not None:
            return given_pictures(model, image, self._called(0) if prompt is None else prompt)
        require(bool(self.images), "there is no subject; give images (a folder of pictures), an image, or a delta")
        texts = [None if self.captioned else self._called(k) for k in range(len(self.images))]
        return folder_pictures(model, dict(zip(self.images, texts, strict=True)))

    def _nouns(self, captions: Sequence[str]) -> tuple[str, ...]:
        """Return the class of each subject."""
        return self.nouns or tuple(noun_behind(word, captions) for word in self.identifiers)

    def _class_pictures(self, model: Model, pictures: Pictures, progress: str | None) -> Pictures:
        """Return pictures of the subjects' classes, in turn, as the model draws them."""
        nouns = tuple(dict.fromkeys(self._nouns(pictures.captions)))
        each = -(-self.n_class // len(nouns))
        of_class = [class_captions(model.text, noun, each, self.tune_seed, self.template) for noun in nouns]
        captions = [caption for some in zip(*of_class, strict=True) for caption in some]
        drawing = {"steps": self.class_steps, "guidance": self.class_guidance}
        return class_pictures(model, captions[: self.n_class], self.tune_seed, progress, **drawing)

    def _loss_of(self, model: Model, pictures: Pictures, stream: str, checkpointing: bool) -> DenoisingLoss:
        conditions = told(model, pictures.told(flip=self.flip), anew=self.tunes_text)
        return DenoisingLoss(model, conditions, stream=stream, checkpointing=checkpointing)

    def _settings(self, pictures: Pictures) -> dict[str, Any]:
        """Return all that decides what tuning computes, JSON-able, and what the first subject is called."""
        captions = list(pictures.captions)
        fields = {name: getattr(self, name) for name in _TUNING}
        nouns = self._nouns(captions) if self.prior_weight or self.nouns else ("",)
        shows = self.template.format(f"{self.identifiers[0]} {nouns[0]}".strip())
        seen = {"pictures": digest(pictures.images), "captions": captions, "shows": shows}
        return {**fields, **seen, "revision": _REVISION}

    def _config(self, folder: FilePath, about: dict[str, Any], bf16: bool) -> FinetuneConfig:
        return FinetuneConfig(
            folder=str(folder),
            about=about,
            steps=self.tune_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            ema_decay=self.ema_decay,
            precision="bf16" if bf16 else "fp32",
            seed=self.tune_seed,
        )


def _rows(prompt: Prompt) -> int:
    if isinstance(prompt, Condition):
        return prompt.rows
    return 1 if prompt is None or isinstance(prompt, str) else len(prompt)


def _check_rows(images: int, **prompts: Prompt) -> None:
    """Raise UserError unless each prompt is one, or one for each image."""
    for name, prompt in prompts.items():
        rows = _rows(prompt)
        require(rows in (1, images), f"{name} has {rows} texts for {images} images; give one, or one for each image")


def _at(prompt: Prompt, places: Sequence[int]) -> Prompt:
    """Return what the images at these places are told."""
    if isinstance(prompt, Condition):
        return rows_of(prompt, torch.tensor(places))
    if prompt is None or isinstance(prompt, str):
        return prompt
    return list(prompt) if len(prompt) == 1 else [prompt[k] for k in places]


#: "paper" is the paper's for Stable Diffusion; "diffusers" and "xavierxiao" are the ports'; "emoji64" is calibrated to
#: the embedded model and tunes in about a minute.
PRESETS: dict[str, DreamBooth] = {
    "paper": DreamBooth(),
    "diffusers": DreamBooth(
        template="a photo of {}", n_class=200, tune_steps=800, clip_norm=1.0, class_guidance=7.5, class_steps=50
    ),
    "xavierxiao": DreamBooth(
        template="photo of a {}",
        n_class=200,
        class_steps=50,
        class_guidance=10.0,
        tunes_text=True,
        flip=True,
        tune_steps=800,
        learning_rate=1e-6,
        steps=100,
        guidance=10.0,
    ),
    "emoji64": DreamBooth(
        n_class=32,
        class_steps=12,
        tune_steps=160,
        learning_rate=4e-4,
        ema_decay=0.96,
        batch_size=2,
        steps=12,
        solver=DPMSolver2M(),
        guidance=3.0,
    ),
}

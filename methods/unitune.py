"""UniTune: tune the model to draw one image for a rare word, and let guidance pull the image towards a text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from steerdiff.errors import UserError, require
from steerdiff.guidance import Model
from steerdiff.guidance.classifier_free import Condition
from steerdiff.guidance.prompts import Prompt, listed
from steerdiff.models.delta import Delta, make_delta
from steerdiff.samplers import DDIM, DDPM, ClipPolicy, Noise, Path, Seeds, Solver
from steerdiff.train.finetune import FinetuneConfig

from .finetuned import cached_delta, copy_of, descend, digest, identity, with_delta
from .image_tuning import DenoisingLoss, TunedImages, alike, gather, own_delta, rows_of, separate, told_key
from .new_words import with_new_word
from .sdedit import SDEdit

__all__ = ["PRESETS", "UniTune"]

_METHOD = "unitune"
_REVISION = 1  # of what tuning computes: a new one makes the cached deltas anew
#: Fields that decide what tuning computes.
_TUNING = ("token", "tune_steps", "learning_rate", "batch_size", "ema_decay", "tune_seed")


@dataclass(frozen=True, kw_only=True)
class UniTune:
    """Tune the model to draw one image for a rare word; then noise the image and denoise it with "WORD text", guided.

    Without guidance the tuned model gives the image back; strong guidance away from the empty prompt, which the tuned
    model is told too, brings in the text. The fewer updates and the larger t0, the freer is the edit. The paper's
    figures are picked by hand from grids of ``t0``, ``tune_steps`` and ``guidance``.

    Source: Valevski et al. 2023 (UniTune), section 3. The optimiser is Adam where the paper, on Imagen, seems to use
    Adafactor; exact values of guidance and t0 are not published, and how it interpolates pixels with the image neither:
    ``keep`` is ours. The known port, on Stable Diffusion, is another method: it starts from noise.
    """

    token: str = "beikkpic"  #: rare word, that the model has no opinion of; a closed list of words gains it
    delta: FilePath | None = None  #: file that ``steerdiff finetune`` wrote; None tunes now, or takes it from the cache
    tune_steps: int = 128  #: updates; 64 suffice to redraw the image; 0 is SDEdit
    learning_rate: float = 1e-4  #: of Adam
    batch_size: int = 4  #: times and noises of the image in one update
    ema_decay: float = 0.0  #: of averaged weights, which then are the result; none published
    t0: float = 0.9  #: how far the image is noised: 0.8 to 0.98 keeps the layout, 1 forgets it, 0 returns the image
    steps: int | str = 256  #: respaced times of a whole path, of which the share t0 is walked
    solver: Solver = DDPM()  #: of the way down
    clip: ClipPolicy | None = None  #: of the x0 prediction; None is the model's own
    guidance: float = 16.0  #: classifier-free guidance; 32 in the paper's first version, from pure noise; 1 is none
    keep: float = 0.0  #: difference from the image, of grey values in [-1, 1], below which it comes back; 0 never
    blur: float = 0.02  #: standard deviation of the blur of that difference, in shares of the shorter side
    tune_seed: int = 0  #: decides the times and noises of tuning

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("tune_steps", "tune_seed", "keep", "blur"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must be at least 0")
        require(self.learning_rate > 0, f"learning_rate is {self.learning_rate}; it must be positive")
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}; it must be at least 1")
        require(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}; it must lie in [0, 1), 0 for none")
        require(0 <= self.t0 <= 1, f"t0 is {self.t0}; it must lie in [0, 1]")

    @torch.no_grad()
    def __call__(
        self,
        model: Model,
        image: Tensor,
        *,
        prompt: Prompt = None,
        negative: Prompt = "",
        seed: Seeds = 0,
        progress: str | None = None,
    ) -> Tensor:
        """Edit each image, with a model tuned to it alone.

        Args:
            model: The model that is tuned to each image; it stays as it is.
            image: [B, C, H, W] in [-1, 1].
            prompt: What the result should show, without the rare word, which is put before it.
            negative: What guidance leads away from in the place of the empty prompt: what the image shows, say.
            seed: One integer (image i uses ``seed + i``) or one for each image; of sampling.
            progress: Label of progress bars, also of tuning; None shows none.

        Returns:
            Images [B, C, H, W], about in [-1, 1].

        Raises:
            UserError: An image, a prompt or a delta that the model cannot take.
        """
        x, rows = model.encode(image), len(image)
        model = self._reader(model)
        noise = Noise(seed, like=x)
        if self.t0:
            Path.respaced(model.schedule, self.steps).from_t0(self.t0)  # for its errors, before anything is tuned
        text = self._sentence(model, prompt)
        cond, uncond = model.branches(text, negative)
        wanted, against = cond.expand(rows), None if uncond is cond else uncond.expand(rows)
        told = [self._told(model, one) for one in separate(prompt, rows)]
        given = None if self.delta is None else self._given(model, x)
        edit = SDEdit(
            t0=self.t0,
            repeats=1,
            steps=self.steps,
            solver=self.solver,
            clip=model.sampling.clip if self.clip is None else self.clip,
            guidance=self.guidance,
        )
        tunes = given is not None or self.tune_steps > 0
        groups, parts = alike(x, told) if tunes else [list(range(rows))], []
        for places in groups:
            some = torch.tensor(places)
            delta = given or self._delta(model, image[places[:1]], told[places[0]], progress is not None)
            tuned = model if delta is None else with_delta(model, delta)
            unlike = "" if against is None else rows_of(against, some)
            seeds = [noise.seeds[k] for k in places]
            prompts = rows_of(wanted, some)
            parts.append(edit(tuned, image[places], prompt=prompts, negative=unlike, seed=seeds, progress=progress))
        return self.interpolated(gather(parts, groups), image)

    def interpolated(self, edited: Tensor, image: Tensor) -> Tensor:
        """Return ``M edited + (1 - M) image`` with ``M = min(1, d / keep)``, d the blurred difference over colours.

        Where the edit changed little, the image comes back exactly as far as it did so. Source: our own; the paper
        interpolates pixels but does not say how.
        """
        if not self.keep:
            return edited
        image = image.to(edited)
        difference = (edited - image).abs().mean(1, keepdim=True)
        mask = (_blurred(difference, self.blur * min(image.shape[2:])) / self.keep).clamp(max=1)
        return torch.lerp(image, edited, mask)

    def finetune(
        self,
        model: Model,
        image: Tensor,
        *,
        folder: FilePath,
        told: Condition | None = None,
        resume: bool = False,
        progress: bool = True,
        bf16: bool = False,
        checkpointing: bool = False,
    ) -> Delta:
        """Tune the network to draw one image for the rare word, or go on with it.

        Args:
            model: The model to tune; it stays as it is.
            image: The picture to edit, [1, C, H, W] in [-1, 1].
            folder: Where the run's checkpoints and numbers go.
            told: What a model without text is told in the place of the rare word.
            resume: Go on from the newest checkpoint in ``folder``.
            progress: Show a progress bar.
            bf16: Run the network in bfloat16 where that is safe (autocast); weights and optimiser stay as they are.
            checkpointing: Keep no activations but compute them again: less memory, a third more time.

        Returns:
            What it changed, to be saved by `steerdiff.models.delta.save_delta`.

        Raises:
            UserError: Several images, or a model, an image, a word or a folder that do not fit.
            KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint was written, with which ``resume`` goes on.

        Source: Valevski et al. 2023, section 3.1.
        """
        x = model.encode(image)
        require(len(x) == 1, f"{len(x)} images were given; UniTune is tuned to one at a time")
        require(self.tune_steps > 0, "tune_steps is 0, which tunes nothing; give a number of updates")
        model = self._reader(model)
        word = self._told(model, told)
        condition, settings = model.condition(word).expand(1), self._settings(word, x)
        tuned = copy_of(model, shares=False)
        network = cast(nn.Module, tuned.network).requires_grad_(True)
        config = FinetuneConfig(
            folder=str(folder),
            about={**settings, "base": identity(model)},
            steps=self.tune_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            ema_decay=self.ema_decay,
            seed=self.tune_seed,
            precision="bf16" if bf16 else "fp32",
        )
        loss = DenoisingLoss(tuned, condition, checkpointing=checkpointing)
        descend(config, network, loss, TunedImages(states=x), resume=resume, progress=progress)
        before = cast(nn.Module, model.network).state_dict()
        return make_delta(before, network.state_dict(), base=identity(model), method=_METHOD, settings=settings)

    def _given(self, model: Model, x: Tensor) -> Delta:
        """Return the delta of the file; UserError if it is none of the model, or was tuned to another word."""
        found = own_delta(self.delta, _METHOD, model, x)
        word = found.settings.get("token")
        same = model.text is None or word == self.token
        require(same, f"the delta was tuned to the word {word!r}, and token is {self.token!r}; give token {word!r}")
        return found

    def _delta(self, model: Model, image: Tensor, told: str | Condition | None, progress: bool) -> Delta | None:
        """Return what tuning to one image changes, from the cache if it is there; None if nothing is tuned."""
        if not self.tune_steps:
            return None
        condition = told if isinstance(told, Condition) else None

        def tune(folder: FilePath) -> Delta:
            return self.finetune(model, image, folder=folder, told=condition, resume=True, progress=progress)

        return cached_delta(_METHOD, model, self._settings(told, model.encode(image)), tune)

    def _reader(self, model: Model) -> Model:
        """Return the model with a text encoder that can read the rare word."""
        return model if model.text is None else with_new_word(model, self.token)

    def _told(self, model: Model, prompt: str | Condition | None) -> str | Condition | None:
        """Return what the network is told in tuning: the rare word, or whatever a model without text is told."""
        return prompt if model.text is None else self.token

    def _sentence(self, model: Model, prompt: Prompt) -> Prompt:
        """Return the rare word followed by each prompt.

        Raises:
            UserError: Text states, which no word can be put before.
        """
        if model.text is None:
            return prompt
        if isinstance(prompt, Condition):
            raise UserError("the prompt is a condition, and UniTune puts a word before it; give texts")
        return [f"{self.token} {text}".strip() for text in listed(prompt)]

    def _settings(self, told: str | Condition | None, x: Tensor) -> dict[str, Any]:
        """Return all that decides what tuning computes, JSON-able."""
        fields = {name: getattr(self, name) for name in _TUNING}
        return {**fields, "image": digest(x), "told": told_key(told), "revision": _REVISION}


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """Return images [B, 1, H, W] after a Gaussian blur of ``sigma`` pixels, whose edges repeat."""
    radius = min(math.ceil(3 * sigma), *(side - 1 for side in x.shape[2:]))
    if radius < 1:
        return x
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma**2), 0)
    padded = functional.pad(x, (radius, radius, radius, radius), mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel.reshape(1, 1, 1, -1)), kernel.reshape(1, 1, -1, 1))


#: "published" is what the paper names, "strong" its first version; "emoji64" is calibrated to the embedded model and
#: tunes for about a minute.
PRESETS: dict[str, UniTune] = {
    "published": UniTune(),
    "strong": UniTune(t0=1.0, guidance=32.0),
    "emoji64": UniTune(
        tune_steps=100,
        learning_rate=2e-4,
        ema_decay=0.9,
        t0=0.8,
        steps=25,
        solver=DDIM(),
        clip="clip",
        guidance=3.0,
    ),
}

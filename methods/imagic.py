"""Imagic: tune the target text's embedding to an image, then the model, and draw with an embedding in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from steerdiff.errors import require, warn
from steerdiff.guidance import Model
from steerdiff.guidance.classifier_free import Condition
from steerdiff.guidance.prompts import Prompt
from steerdiff.models.delta import Delta, make_delta
from steerdiff.samplers import DDIM, ClipPolicy, Noise, Seeds, Solver, integrate
from steerdiff.train.finetune import FinetuneConfig

from .finetuned import cached_delta, cached_tensors, copy_of, descend, digest, identity, with_delta
from .image_tuning import DenoisingLoss, TunedImages, alike, gather, own_delta, rows_of, separate, told_key

__all__ = ["PRESETS", "Imagic"]

_METHOD = "imagic"
_CHANGE = "imagic.embedding"  # in a delta: the tuned embedding minus the target's
_REVISION = 1  # of what tuning computes: a new one makes the cached deltas anew
#: Fields that decide the tuned embedding, and those that then decide the tuned network.
_EMBEDDING = ("embedding_steps", "embedding_rate", "batch_size", "posterior", "tune_seed")
_NETWORK = ("network_steps", "network_rate", "ema_decay")


@dataclass(frozen=True, kw_only=True)
class Imagic:
    """Tune the target text's embedding to an image, then the model at it, and draw with an embedding between the two.

    Stage 1 freezes the network and moves the embedding from the text's, e_tgt, to e_opt, where the network explains the
    image; stage 2 freezes e_opt and tunes all weights until it draws the image; stage 3 draws from noise with ``eta
    e_tgt + (1 - eta) e_opt``. Both tunings are kept in the cache, each by what decides it, so that another ``eta``,
    seed or guidance tunes nothing again. Defaults are the paper's for Stable Diffusion.

    Source: Kawar et al. 2023 (Imagic), section 3 and appendix A. The guidance of stage 3 on Stable Diffusion is not
    stated: None is the model's own. There is no official code; the ports' settings are presets, and where they differ:
    the ports encode an image by a sample of the first stage's posterior (``posterior="sample"``).
    """

    eta: float = 0.7  #: weight of the text: 0 redraws the image, 0.6 to 0.8 edits it, 1 is the text alone; it may be >1
    delta: FilePath | None = None  #: file that ``steerdiff finetune`` wrote; None tunes now, or takes it from the cache
    embedding_steps: int = 1000  #: updates of stage 1; 0 leaves the embedding as it is, and eta without effect
    embedding_rate: float = 2e-3  #: learning rate of stage 1, Adam
    network_steps: int = 1500  #: updates of stage 2; 0 leaves the model as it is
    network_rate: float = 5e-7  #: learning rate of stage 2, Adam
    ema_decay: float = 0.0  #: of averaged weights in stage 2, which then are its result; none published
    batch_size: int = 1  #: times and noises of the image in one update of either stage
    posterior: Literal["mean", "sample"] = "mean"  #: of a first stage, as what the image is tuned on; drawn once
    steps: int | str | None = 50  #: moves of the path of stage 3; None is the model's own
    solver: Solver = DDIM()  #: of stage 3; the paper found DDIM slightly better than DDPM
    clip: ClipPolicy | None = None  #: of the x0 prediction; None is the model's own
    guidance: float | None = None  #: classifier-free guidance of stage 3 against the empty prompt; None is the model's
    tune_seed: int = 0  #: decides the times and noises of both tunings

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("embedding_steps", "network_steps", "tune_seed"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("embedding_rate", "network_rate"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; it must be positive")
        require(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}; it must lie in [0, 1), 0 for none")
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}; it must be at least 1")
        known = ("mean", "sample")
        require(self.posterior in known, f"posterior is {self.posterior!r}; known are mean and sample")

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
            image: [B, C, H, W] in [-1, 1]. With a ``delta`` it decides nothing: that knows its image.
            prompt: What the result should show, the target text; with a ``delta`` None is the text of its tuning.
            negative: What takes the place of the empty prompt in guidance.
            seed: One integer (image i uses ``seed + i``) or one for each image; of stage 3.
            progress: Label of progress bars, also of tuning; None shows none.

        Returns:
            Images [B, C, H, W], about in [-1, 1].

        Raises:
            UserError: An image, a prompt or a delta that the model cannot take, or a model without a text to tune.
        """
        x = model.encode(image)
        noise, path = Noise(seed, like=x), model.path(self.steps)
        given = None if self.delta is None else own_delta(self.delta, _METHOD, model, x)
        prompt = prompt if given is None else _text_of(given, prompt)
        targets = model.condition(prompt).expand(len(x))
        cond, uncond = model.branches(targets, negative)
        against = None if uncond is cond else uncond.expand(len(x))
        self._check(model, targets, "" if prompt is None and given is None else prompt)
        told = separate(prompt, len(x))
        tunes = given is not None or self.embedding_steps + self.network_steps > 0
        groups, parts = alike(x, told) if tunes else [list(range(len(x)))], []
        for places in groups:
            first = slice(places[0], places[0] + 1)
            delta = given or self._delta(model, image[first], told[places[0]], progress is not None)
            tuned = model if delta is None else with_delta(model, delta)
            unlike = "" if against is None else rows_of(against, torch.tensor(places))
            condition = self.interpolated(rows_of(targets, torch.tensor(places)), delta)
            denoise = tuned.denoiser(condition, negative=unlike, scale=self.guidance, clip=self.clip)
            own = Noise([noise.seeds[k] for k in places], like=x[places])
            parts.append(integrate(denoise, self.solver, path, own(), noise=own, progress=progress))
        return model.decode(gather(parts, groups))

    def sweep(self, model: Model, image: Tensor, etas: Sequence[float], **arguments: Any) -> Tensor:
        """Return the edits by several weights of the text, [len(etas), B, C, H, W], from one tuning and one noise.

        Args:
            model: As in the call.
            image: As in the call.
            etas: Values for ``eta``.
            arguments: The other arguments of the call.

        Source: Kawar et al. 2023, figure 7.
        """
        require(len(etas) > 0, "etas is empty; give at least one weight of the text")
        return torch.stack([replace(self, eta=eta)(model, image, **arguments) for eta in etas])

    def interpolated(self, target: Condition, delta: Delta | None) -> Condition:
        """Return the condition at ``eta e_tgt + (1 - eta) e_opt``, eq. 3; exact where the two are the same."""
        change = {} if delta is None else delta.added()
        if _CHANGE not in change:
            return target
        context = cast(Tensor, target.context)
        optimised = context + change[_CHANGE].to(context)
        return replace(target, context=torch.lerp(optimised, context, self.eta))

    def finetune(
        self,
        model: Model,
        image: Tensor,
        *,
        prompt: Prompt = None,
        folder: FilePath,
        resume: bool = False,
        progress: bool = True,
        bf16: bool = False,
        checkpointing: bool = False,
    ) -> Delta:
        """Run stages 1 and 2 for one image, or go on with them; stage 1 is taken from the cache if it is there.

        Args:
            model: The model to tune; it stays as it is.
            image: The picture to edit, [1, C, H, W] in [-1, 1].
            prompt: What the results should show, the target text.
            folder: Where checkpoints and numbers of both stages go.
            resume: Go on from the newest checkpoint in ``folder``.
            progress: Show progress bars.
            bf16: Run the network in bfloat16 where that is safe (autocast); weights and optimiser stay as they are.
            checkpointing: Keep no activations but compute them again: less memory, a third more time.

        Returns:
            What it changed, the embedding among it, to be saved by `steerdiff.models.delta.save_delta`.

        Raises:
            UserError: Several images, or a model, an image, a prompt or a folder that do not fit.
            KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint was written, with which ``resume`` goes on.

        Source: Kawar et al. 2023, section 3.2.
        """
        x = model.encode(image)
        require(len(x) == 1, f"{len(x)} images were given; Imagic is tuned to one at a time")
        target = model.condition(prompt).expand(1)
        self._check(model, target, "" if prompt is None else prompt)
        require(self.embedding_steps + self.network_steps > 0, "both stages have 0 steps; give one of them some")
        settings = self._settings(separate(prompt, 1)[0], x)
        stages = _Stages(
            model=copy_of(model, shares=False),
            image=TunedImages(states=self._state(model, image)),
            folder=folder,
            about={**settings, "base": identity(model)},
            precision="bf16" if bf16 else "fp32",
            checkpointing=checkpointing,
            options={"resume": resume, "progress": progress},
        )
        before, network = cast(nn.Module, model.network), cast(nn.Module, stages.model.network)
        network.requires_grad_(False)
        moved = _Moved(target)
        if self.embedding_steps:
            moved.change.data = self._change(stages, moved)
        if self.network_steps:
            network.requires_grad_(True)
            self._descend("network", stages, network, moved(torch.zeros(1)))
        after = {**network.state_dict(), **({_CHANGE: moved.change} if self.embedding_steps else {})}
        return make_delta(before.state_dict(), after, base=identity(model), method=_METHOD, settings=settings)

    def _check(self, model: Model, target: Condition, prompt: Prompt) -> None:
        """Raise UserError for a model that has no embedding to tune, and warn where no text says what to edit."""
        has = target.context is not None or not self.embedding_steps
        require(has, f"{model.name} has no text whose embedding could be tuned; use embedding_steps 0")
        if model.text is not None and isinstance(prompt, str) and not prompt.strip():
            warn("no text says what the result shows, so that nothing is edited; give a prompt")

    def _delta(self, model: Model, image: Tensor, told: str | Condition | None, progress: bool) -> Delta | None:
        """Return what tuning to one image changes, from the cache if it is there; None if nothing is tuned."""
        if not self.embedding_steps + self.network_steps:
            return None

        def tune(folder: FilePath) -> Delta:
            return self.finetune(model, image, prompt=told, folder=folder, resume=True, progress=progress)

        return cached_delta(_METHOD, model, self._settings(told, model.encode(image)), tune)

    def _change(self, stages: _Stages, moved: _Moved) -> Tensor:
        """Return ``e_opt - e_tgt`` (stage 1), from the cache if it is there."""

        def tune() -> dict[str, Tensor]:
            self._descend("embedding", stages, moved, moved)
            return {_CHANGE: moved.change.detach()}

        known = {name: stages.about[name] for name in ("base", "image", "told", "revision", *_EMBEDDING)}
        found = cached_tensors("embeddings", stages.model, tune, precision=stages.precision, **known)
        return found[_CHANGE].to(moved.change.device)

    def _descend(
        self, stage: str, stages: _Stages, module: nn.Module, told: Condition | Callable[[Tensor], Condition]
    ) -> None:
        """Tune ``module`` by the loss of the image at the condition that it is told."""
        config = FinetuneConfig(
            folder=str(stages.folder / stage),
            about=stages.about,
            steps=getattr(self, f"{stage}_steps"),
            batch_size=self.batch_size,
            learning_rate=getattr(self, f"{stage}_rate"),
            ema_decay=self.ema_decay if stage == "network" else 0.0,
            seed=self.tune_seed,
            precision=stages.precision,
        )
        loss = DenoisingLoss(stages.model, told, stream=stage, checkpointing=stages.checkpointing)
        descend(config, module, loss, stages.image, **stages.options)

    def _state(self, model: Model, image: Tensor) -> Tensor:
        """Return the state of the image that is tuned on, drawn once."""
        x = model.encode(image)
        return x if self.posterior == "mean" else model.encode(image, Noise(self.tune_seed, like=x))

    def _settings(self, told: str | Condition | None, x: Tensor) -> dict[str, Any]:
        """Return all that decides what tuning computes, JSON-able."""
        fields = {name: getattr(self, name) for name in (*_EMBEDDING, *_NETWORK)}
        seen = {"image": digest(x), "told": told_key(told), "prompt": told if isinstance(told, str) else None}
        return {**fields, **seen, "revision": _REVISION}


class _Moved(nn.Module):
    """The target's condition with an embedding that may be moved."""

    def __init__(self, target: Condition) -> None:
        super().__init__()
        self.target = target
        context = torch.zeros(1) if target.context is None else target.context
        self.change = nn.Parameter(torch.zeros_like(context, dtype=torch.float32))

    def forward(self, places: Tensor) -> Condition:
        """Return as many rows as there are places."""
        context = self.target.context
        moved = self.target if context is None else replace(self.target, context=context.float() + self.change)
        return moved.expand(len(places))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Stages:
    """What stages 1 and 2 have in common."""

    model: Model  #: a copy, whose weights may change
    image: TunedImages  #: what both stages look at
    folder: FilePath  #: of the checkpoints
    about: dict[str, Any]  #: what decides the result, for the record
    precision: Literal["fp32", "bf16"]  #: of the network's arithmetic
    checkpointing: bool  #: keep no activations
    options: dict[str, bool]  #: of the loop


def _text_of(delta: Delta, prompt: Prompt) -> Prompt:
    """Return the text that a delta was tuned to.

    Raises:
        UserError: Another one is asked for.
    """
    tuned: str | None = delta.settings.get("prompt")
    if prompt is None:
        return tuned
    same = tuned is None or isinstance(prompt, Condition) or {tuned} == set(separate(prompt, 1))
    require(same, f"the delta was tuned to {tuned!r}, and the prompt is {prompt!r}; leave it out, or tune again")
    return prompt


#: "published" is the paper's on Stable Diffusion; "notebook" and "community" are the settings of the two ports of it;
#: "emoji64" is calibrated to the embedded model and tunes for about a minute.
PRESETS: dict[str, Imagic] = {
    "published": Imagic(),
    "notebook": Imagic(
        eta=0.9,
        embedding_steps=500,
        embedding_rate=1e-3,
        network_steps=1000,
        network_rate=1e-6,
        posterior="sample",
        steps=45,
        guidance=3.0,
    ),
    "community": Imagic(
        eta=1.2,
        embedding_steps=500,
        embedding_rate=1e-3,
        network_steps=1000,
        network_rate=2e-6,
        posterior="sample",
        guidance=7.5,
    ),
    "emoji64": Imagic(
        eta=0.8,
        embedding_steps=60,
        embedding_rate=1e-2,
        network_steps=100,
        network_rate=2e-4,
        ema_decay=0.9,
        batch_size=4,
        steps=25,
        clip="clip",
        guidance=3.0,
    ),
}

"""Asyrp: edit real images of a frozen model by shifting its bottleneck, in the predicted image alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.guidance import Model
from steerdiff.guidance.asymmetric import asymmetric
from steerdiff.guidance.directional import filled, text_direction
from steerdiff.guidance.loading import load_cached
from steerdiff.guidance.perceptual import perceptual
from steerdiff.guidance.phases import PhaseCurves
from steerdiff.guidance.prompts import Prompt
from steerdiff.guidance.settings import Spacing
from steerdiff.models.clip import Clip
from steerdiff.models.delta import Delta, make_delta
from steerdiff.models.delta_h import DeltaHForm, MixedDeltaH, build_delta_h, delta_h_config
from steerdiff.samplers import DDIM, ClipPolicy, Denoiser, Noise, Path, Seeds, SigmaSpacing, integrate
from steerdiff.train.finetune import FinetuneConfig

from .asyrp_tuning import AsyrpTuning, SourceImage, cached_curves, shift_config, shift_of
from .boosted_ddim import BoostedDDIM
from .edit_tuning import EditLoss, LatentPairs, latent_pairs, named_deltas, sentences, training_images
from .finetuned import cached_delta, copy_of, descend, digest
from .finetuned import identity as identity_of

__all__ = ["PRESETS", "Asyrp"]

_METHOD = "asyrp"
_REVISION = 1  # of what tuning computes: a new one makes the cached deltas anew
#: Fields that decide what tuning computes; its CLIP, its images and its curves count by their contents.
_TUNING = (
    *("source_text", "target_text", "n_inv", "n_train", "spacing", "t_begin", "templates", "cosine", "clip_x0"),
    *("symmetric", "source", "views", "form", "ignores_time", "gain", "clip_weight", "l1_weight", "optimizer"),
    *("learning_rate", "rate_gamma", "rate_every", "epochs", "batch_size", "tune_seed"),
    *("distance", "threshold_edit", "threshold_boost", "curve_images", "curve_steps"),
)


@dataclass(frozen=True, kw_only=True)
class Asyrp:
    """Invert an image and sample back in three phases: edited down to t_edit, as it was, with fresh noise from t_boost.

    The edit shifts the bottleneck by a small network ``f_t(h)`` that was tuned to an attribute; the model stays frozen.
    The shift counts in the predicted image P_t alone and not in the direction D_t, with which it would cancel. Without
    a ``delta`` it is tuned at the first call and kept in the cache. Defaults are those of the official README.

    Source: Kwon, Jeong and Uh 2023, "Diffusion models already have a semantic latent space", eq. 5 to 9. Where the
    official code differs: it measures directions from the image and not from P_t (``source="image"``), and compares all
    images of a batch with the last one.
    """

    prompt_is: ClassVar[str] = "source"  #: the prompt of the call says what the image shows

    source_text: str = ""  #: what images show before the edit, such as "flat" or "face"
    target_text: str = ""  #: what they shall show, such as "3d" or "smiling face"
    #: file that ``steerdiff finetune`` wrote, or a shipped one's name; None tunes now, or takes it from the cache
    delta: FilePath | None = None
    more: tuple[FilePath, ...] = ()  #: further deltas: several attributes at once
    degree: float = 1.0  #: k, how far the edit goes; above 1 is more, below 0 turns it round, 0 changes nothing
    degrees: tuple[float, ...] = ()  #: k of each of ``more``; none given: 1 for all
    n_inv: int = 40  #: levels of the way up
    n_test: int = 1000  #: moves of the way down; 40 to 50 are quick
    spacing: Spacing | None = None  #: how levels are spread; None is the delta's own, in tuning "respaced": evenly
    t_begin: float | None = None  #: images are inverted to this time; None is the delta's own, as published the top
    t_edit: float | None = None  #: the edit ends below this time; None is the delta's own, by the rule below
    t_boost: float | None = None  #: fresh noise from below this time; None is the delta's own; 0 is none
    symmetric: bool = False  #: shift the direction too, in tuning and in editing, which cancels: for comparison
    uses_prompt: bool | None = (
        None  #: tell the network what images show; None is as in tuning, there without, as published
    )
    clip_x0: ClipPolicy = "none"  #: of the x0 prediction, which published runs do not clip
    clip: str = "emoji64-clip"  #: name or path of a CLIP
    templates: Literal["auto", "none"] = "auto"  #: average the direction over sentences that fit the texts, or not
    cosine: Literal["plain", "templates"] = (
        "plain"  #: of the texts, for weight and rule: alone, or mean in the sentences
    )
    form: DeltaHForm = "ddpm"  #: of the shift: the official network for DDPM's or ADM's UNets, or plain tensors
    ignores_time: bool = False  #: leave the time out of the shift
    gain: float = 1.0  #: factor on the shift's network, about the size of a bottleneck's numbers; published is 1
    clip_weight: float = 1.0  #: of the directional loss
    l1_weight: float = 3.0  #: of the mean absolute difference from the original P_t, times the texts' cosine
    views: int = 1  #: of each image that CLIP compares, the whole one first; published 1, more resist patterns
    source: SourceImage = "predicted"  #: what directions are measured from: P_t of the original, or the image
    n_train: int = 40  #: moves of the way down in tuning; the shift is scaled by n_train / n_test
    optimizer: Literal["sgd", "adamw"] = "sgd"  #: published is plain gradient descent; adamw is Adam, without decay
    learning_rate: float = 0.5  #: of it
    rate_gamma: float = 0.1  #: factor on it after every ``rate_every`` epochs
    rate_every: int = 3  #: epochs
    epochs: int = 5  #: times that all training images are gone through
    images: FilePath | None = None  #: folder of training images (captions in .txt); None draws them with the model
    n_images: int = 100  #: training images
    image_steps: int = 25  #: moves in which each is drawn
    batch_size: int = 1  #: images of one update
    tune_seed: int = 0  #: decides the drawn training images and the shift at the start
    distance: str = "lpips-alex"  #: of the rule: "lpips-alex", "lpips-vgg", or name or path of a CLIP (not LPIPS)
    threshold_edit: float = 0.33  #: t_edit: where P_t is so far from the image, times the texts' cosine
    threshold_boost: float = 1.2  #: t_boost: where x_t is so far from the image
    curve_images: int = 100  #: training images that the rule looks at
    curve_steps: int = 1000  #: levels at which it does; 50 will do

    def __post_init__(self) -> None:
        """Check what needs no model."""
        choices = {"source": get_args(SourceImage), "form": get_args(DeltaHForm), "templates": ("auto", "none")}
        for name, known in {**choices, "cosine": ("plain", "templates")}.items():
            value = getattr(self, name)
            require(value in known, f"{name} is {value!r}; known are {', '.join(known)}")
        for name in ("n_inv", "n_test", "n_train", "curve_steps"):
            require(getattr(self, name) >= 2, f"{name} is {getattr(self, name)}; it must be at least 2")
        for name in ("epochs", "n_images", "image_steps", "batch_size", "rate_every", "views", "curve_images"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        seen = self.views == 1 or self.source == "predicted"
        require(seen, f"views is {self.views}; views of P_t are compared with views of P_t: leave source at predicted")
        require(math.isfinite(self.degree), f"degree is {self.degree}; it must be a finite number")
        require(self.delta is not None or not self.more, "more deltas are given but no first one; give delta too")
        fits = len(self.degrees) in (0, len(self.more))
        require(fits, f"{len(self.degrees)} degrees are given for {len(self.more)} further deltas; give one for each")
        for name in ("t_begin", "t_edit", "t_boost"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"{name} is {value}; it must be at least 0, in trained times")

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
            model: The model that the shift was tuned for, or is to be.
            image: [B, 3, H, W] in [-1, 1].
            prompt: What the image shows before the edit, if the network is told (``uses_prompt``).
            seed: Of the fresh noise below ``t_boost``: one integer (image i uses ``seed + i``) or one for each image.
            progress: Label of progress bars, also of tuning; None shows none.

        Returns:
            Images [B, 3, H, W], about in [-1, 1].

        Raises:
            UserError: An image, a prompt, a delta or a number of steps that the model cannot take, or texts that are
                missing where the shift has to be tuned.
        """
        x = model.encode(image)
        noise = Noise(seed, like=x)
        condition = model.condition(prompt).expand(len(x))
        for n in (self.n_inv, self.n_test):
            self.path(model, n)  # for its errors, before anything is tuned
        deltas = self.deltas(model, progress)
        settled = self.settled(deltas)
        up, down = settled.path(model, self.n_inv).inverted(), settled.path(model, self.n_test)
        told = condition if settled.uses_prompt or condition.y is not None else None
        original = model.denoiser(told, scale=1.0, clip=self.clip_x0)

        latent = integrate(original, DDIM(), up, x, progress=progress)
        edited = settled._edited(model, deltas, original, told)
        boosted = BoostedDDIM(t_boost=settled.t_boost or 0.0)
        x = integrate(edited, boosted, down, latent, noise=noise, progress=progress)
        return model.decode(x)

    def path(self, model: Model, n: int) -> Path:
        """Return the way down from ``t_begin``: ``n`` moves, of spacings in t those of ``n`` that begin below it."""
        spacing = self.spacing or "respaced"
        if self.t_begin is None or spacing not in get_args(SigmaSpacing):
            moves = [move for move in model.path(n, spacing) if self.t_begin is None or move.here.t <= self.t_begin]
            require(len(moves) > 1, f"of {n} levels fewer than 2 are below t_begin = {self.t_begin}; use more")
            return Path.from_moves(moves, T=model.schedule.T)
        top = model.schedule.level(self.t_begin)
        return Path.sigmas(model.schedule, n, cast(SigmaSpacing, spacing), sigma_max=top.sigma)

    def deltas(self, model: Model, progress: str | None = None) -> tuple[Delta, ...]:
        """Return the deltas of the given files; without one, that of this edit, tuned now if it is not in the cache.

        Raises:
            UserError: A file is no delta of this method and this model, or tuning is not possible.
        """
        if self.delta is not None:
            return named_deltas(self, _METHOD, identity_of(model))
        if self.degree == 0:
            return ()
        clip: Clip = load_cached(self.clip, "clip", device=model.device)
        self.direction(clip)  # for its errors, before anything is computed
        delta_h_config(model.network)  # likewise
        images, _ = training_images(self, copy_of(model, shares=True))

        tuned = self if self.t_edit is not None else replace(self, t_boost=None)  # it does not matter to the shift

        def tune(folder: FilePath) -> Delta:
            return tuned.finetune(model, folder=folder, resume=True, progress=progress is not None)

        return (cached_delta(_METHOD, model, tuned._settings(clip, images), tune),)

    def settled(self, deltas: Sequence[Delta]) -> Asyrp:
        """Return these settings with what is left open taken from the deltas.

        The phases are those of the attribute whose two texts are most alike: the shortest edit.
        """
        leads = max((delta.settings for delta in deltas), key=lambda known: float(known["cosine"]), default={})
        names = [name for name in ("spacing", "t_begin", "t_edit", "t_boost") if getattr(self, name) is None]
        phases: dict[str, Any] = {name: leads.get(name) for name in names}
        uses = bool(leads.get("uses_prompt", False)) if self.uses_prompt is None else self.uses_prompt
        return replace(self, uses_prompt=uses, **phases)

    def direction(self, clip: Clip) -> Tensor:
        """Return the unit vector [D] from the source text to the target text, averaged over templates."""
        return text_direction(clip, self.source_text, self.target_text, sentences(self, clip))

    def cosine_of_texts(self, clip: Clip) -> float:
        """Return how alike the two texts are, in (0, 1].

        Raises:
            UserError: They point away from each other, so that the rule for ``t_edit`` says nothing.
        """
        chosen = sentences(self, clip) if self.cosine == "templates" else ("{}",)
        source, target = ([filled(one, text) for one in chosen] for text in (self.source_text, self.target_text))
        with torch.no_grad():
            cosine = float((clip.text_features(source) * clip.text_features(target)).sum(-1).mean())
        texts = f"{self.source_text!r} and {self.target_text!r} have the cosine {cosine:.2f}"
        require(cosine > 0, f"{texts} in this CLIP; the rule needs texts that are alike: set cosine=templates")
        return cosine

    @torch.no_grad()
    def curves(self, model: Model, clip: Clip | None = None) -> PhaseCurves:
        """Return the curves that the phases are read from, on training images; they are cached with the model.

        Args:
            model: The model.
            clip: The CLIP of the field ``clip``, for a distance of that name; None loads it.

        Raises:
            UserError: The distance lacks its weights, or there are no images.
        """
        quiet = copy_of(model, shares=True)
        images, captions = training_images(self, quiet)
        images, told = images[: self.curve_images], captions[: self.curve_images] if captions else None
        told = told if self.uses_prompt else None
        distance = perceptual(self.distance, clip if self.distance == self.clip else None)

        return cached_curves(quiet, images, told, distance, self.curve_steps)

    def finetune(self, model: Model, *, folder: FilePath, resume: bool = False, progress: bool = True) -> Delta:
        """Tune a shift to the attribute that the two texts name, or go on with it.

        Args:
            model: The model; it stays as it is.
            folder: Where the run's checkpoints and numbers go.
            resume: Go on from the newest checkpoint in ``folder``.
            progress: Show a progress bar.

        Returns:
            The shift with its phases, to be saved by `steerdiff.models.delta.save_delta`.

        Raises:
            UserError: Texts are missing, or a model, a CLIP or a folder do not fit.
            KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint was written, with which ``resume`` goes on.

        Source: Kwon et al. 2023, section 4.1 and its official code.
        """
        clip: Clip = load_cached(self.clip, "clip", device=model.device)
        direction, quiet = self.direction(clip), copy_of(model, shares=True)
        facts = self._facts(model, clip)
        moves = [move for move in self.path(model, self.n_train) if move.here.t >= facts["t_edit"]]
        require(moves != [], f"no move of tuning begins above t_edit = {facts['t_edit']:g}; lower it")
        path = Path.from_moves(moves, T=model.schedule.T)
        pairs = latent_pairs(self, quiet, clip, self.path(model, self.n_inv).inverted(), len(path))
        config = shift_config(quiet, path, self.form, ignores_time=self.ignores_time, gain=self.gain)
        delta_h = build_delta_h(config, seed=self.tune_seed).to(model.device)
        loss = EditLoss(
            clip=clip,
            direction=direction,
            clip_weight=self.clip_weight,
            l1_weight=self.l1_weight * facts["cosine"],
            views=self.views,
        )
        tuning = AsyrpTuning(quiet, delta_h, path, pairs, loss, self.source, self.clip_x0, self.symmetric)
        settings = {**self._settings(clip, pairs.images), **facts, "delta_h": config.to_dict()}
        run = self._run(folder, pairs, {**settings, "base": identity_of(model)})
        descend(run, delta_h, tuning, pairs, resume=resume, progress=progress)
        return make_delta({}, delta_h.state_dict(), base=identity_of(model), method=_METHOD, settings=settings)

    def _edited(self, model: Model, deltas: Sequence[Delta], original: Denoiser, told: Any) -> Denoiser:
        """Return the asymmetric denoiser of all shifts with their weights, or the original one if these are 0.

        A weight is ``k_i / sqrt(m)``, scaled so that the shifts of all moves together are what they were in tuning.
        """
        degrees = (self.degree, *(self.degrees or (1.0,) * len(self.more)))
        scales = [float(delta.settings["n_train"]) / self.n_test / math.sqrt(len(deltas)) for delta in deltas]
        weights = [k * scale for k, scale in zip(degrees, scales, strict=False)]
        if not any(weights):
            return original
        shift = MixedDeltaH([shift_of(model, delta) for delta in deltas], weights)
        fields: dict[str, Any] = {"t_edit": self.t_edit or 0.0, "symmetric": self.symmetric}
        return asymmetric(model, shift, prompt=told, clip=self.clip_x0, **fields)

    def _facts(self, model: Model, clip: Clip) -> dict[str, float]:
        """Return the texts' cosine and the phases that the rule gives, or those that are set."""
        cosine = self.cosine_of_texts(clip)
        given = {"t_edit": self.t_edit, "t_boost": self.t_boost}
        if None in given.values():
            curves = self.curves(model, clip)
            found = {
                "t_edit": lambda: curves.t_edit(self.threshold_edit, cosine),
                "t_boost": lambda: curves.t_boost(self.threshold_boost),
            }
            given = {name: found[name]() if value is None else value for name, value in given.items()}
        return {"cosine": cosine, **given}  # type: ignore[dict-item]  # none is left

    def _settings(self, clip: Clip, images: Tensor) -> dict[str, Any]:
        """Return all that decides what tuning computes, JSON-able."""
        fields = {name: getattr(self, name) for name in _TUNING}
        known = {"uses_prompt": bool(self.uses_prompt), "given": [self.t_edit, self.t_boost]}
        seen = {"clip": identity_of(clip), "images": digest(images), "n_images": len(images)}
        return {**fields, **known, **seen, "revision": _REVISION}

    def _run(self, folder: FilePath, pairs: LatentPairs, about: dict[str, Any]) -> FinetuneConfig:
        """Return the settings of the loop: plain gradient descent whose rate falls every few epochs."""
        return FinetuneConfig(
            folder=str(folder),
            about=about,
            steps=pairs.epoch * self.epochs,
            batch_size=pairs.batch_size,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            rate_gamma=self.rate_gamma,
            rate_every=pairs.epoch * self.rate_every,
            checkpoint_every=pairs.epoch,
        )


#: "published" is the official README's recipe; "quick" samples in fewer moves; "emoji64" is what was found for the
#: embedded model, whose bottleneck has large numbers and whose distance is none of LPIPS.
PRESETS: dict[str, Asyrp] = {
    "published": Asyrp(),
    "quick": Asyrp(n_test=40),
    "emoji64": Asyrp(
        n_inv=20,
        n_test=20,
        n_train=20,
        spacing="karras",
        t_begin=900.0,
        gain=10.0,
        cosine="templates",
        views=3,
        l1_weight=1.0,
        optimizer="adamw",
        learning_rate=3e-3,
        rate_gamma=0.5,
        rate_every=1,
        epochs=3,
        n_images=24,
        image_steps=12,
        batch_size=4,
        distance="emoji64-clip",
        threshold_edit=0.09,
        threshold_boost=0.6,
        curve_images=8,
        curve_steps=25,
    ),
}

"""DiffusionCLIP's fine-tuning: pairs of images and latents, the loss of an edit, and the two ways to descend it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import cast

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.guidance import Model
from steerdiff.guidance.augment import ExtendingAugmentations
from steerdiff.guidance.directional import directional_cosine, directional_loss
from steerdiff.guidance.mixed import MixedDenoiser
from steerdiff.guidance.prompts import TextEncoder
from steerdiff.models.clip import Clip
from steerdiff.samplers import DDIM, ClipPolicy, Denoiser, Noise, Path, integrate, trajectory
from steerdiff.train.data import ImageFolder, Labels
from steerdiff.train.finetune import recomputed
from steerdiff.train.losses import Batch
from steerdiff.train.randomness import SampleRandom, mix
from steerdiff.train.scene_text import WORDS
from steerdiff.train.templates import source_captions

from .finetuned import cached_tensors, digest, identity

__all__ = [
    "EditLoss",
    "EfficientTuning",
    "Finish",
    "Identity",
    "LatentPairs",
    "QuickTuning",
    "drawn_images",
    "folder_images",
    "images_of",
    "inverted",
]

_TILT = 0.3  # how far a corner of a view comes in: objects must stay what they are
_BATCH = 32  # images that are drawn, inverted or looked at together; it does not change them

#: ``identity(edited, source) -> [B]``: how little two images [B, 3, H, W] in [-1, 1] show one person; 0 if they do.
Identity = Callable[[Tensor, Tensor], Tensor]


def images_of(model: Model, x: Tensor) -> Tensor:
    """Return the images [B, 3, H, W] of states, with gradients: `Model.decode` has none."""
    stage = model.autoencoder
    if stage is None:
        return x
    dtype = next(stage.parameters()).dtype
    return torch.cat([stage.images(part.to(dtype), tile=model.tile) for part in torch.split(x, 1)]).to(x.dtype)


def drawn_images(model: Model, source: str, n: int, steps: int, seed: int) -> tuple[Tensor, list[str] | None]:
    """Return ``n`` images that the model draws of scenes with ``source`` in them, from the cache if they are there.

    Returns:
        Images [n, 3, H, W] in [-1, 1], and their captions; None of a model without text.
    """
    captions = None if model.text is None else _captions(model.text, source, n, seed)
    seeds = list(range(seed * n, seed * n + n))

    def draw() -> dict[str, Tensor]:
        if captions is None:
            return {"images": model.sample(None, n, steps=steps, seed=seeds, batch=_BATCH).clamp(-1, 1)}
        return {"images": model.sample(captions, 1, steps=steps, seed=seeds, batch=_BATCH).clamp(-1, 1)}

    made = cached_tensors(
        "images", draw, model=identity(model), size=model.size, captions=captions, seeds=seeds, steps=steps
    )
    return made["images"].to(model.device), captions


def _captions(text: TextEncoder, source: str, n: int, seed: int) -> list[str]:
    """Return captions of scenes for a text encoder that has read such, else the source text itself."""
    words = getattr(getattr(text, "config", None), "words", ())
    return source_captions(source, n, seed) if set(WORDS) <= set(words) else [source] * n


def folder_images(model: Model, folder: FilePath, n: int, captioned: bool) -> tuple[Tensor, list[str] | None]:
    """Return the first ``n`` images of a folder, or all if there are fewer, and their captions if they are asked for.

    Raises:
        UserError: No folder, no images, a missing caption, or a model whose images are not square.
    """
    height, width = model.size
    require(height == width, f"{model.name} draws {height} x {width}; training images of a folder are cut square")
    found = ImageFolder(folder, image_size=height, labels="caption" if captioned else "none", flip=False)
    images, labels = found.batch(range(min(n, len(found))))
    return images.to(model.device), labels if isinstance(labels, list) else None


def inverted(model: Model, images: Tensor, captions: Sequence[str] | None, up: Path, clip: ClipPolicy) -> Tensor:
    """Return the latents [N, C, h, w] of images by DDIM inversion along ``up``, from the cache if they are there.

    The key holds all that decides them: weights, schedule, levels, images and captions.
    """

    def invert() -> dict[str, Tensor]:
        parts = []
        for first in range(0, len(images), _BATCH):
            told = None if captions is None else list(captions[first : first + _BATCH])
            denoise = model.denoiser(told, scale=1.0, clip=clip)
            parts.append(integrate(denoise, DDIM(), up, model.encode(images[first : first + _BATCH])))
        return {"latents": torch.cat(parts)}

    made = cached_tensors(
        "latents",
        invert,
        model=identity(model),
        schedule=model.schedule.to_dict(),
        times=[level.t for level in up.levels],
        images=digest(images),
        captions=None if captions is None else list(captions),
        clip=clip,
    )
    return made["latents"].to(model.device)


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentPairs:
    """Images with the latents that the original model inverts them to, taken in their order, round and round.

    Sample number i of a run belongs to update ``i // batch_size``; ``updates`` of them in a row have the same images.
    """

    images: Tensor  #: [N, 3, H, W] in [-1, 1]
    latents: Tensor  #: [N, C, h, w] at level t0
    features: Tensor  #: of the images, CLIP's unit vectors [N, D]
    captions: tuple[str, ...] | None  #: what the network is told, one each; None: nothing
    batch_size: int = 1  #: images of one update
    updates: int = 1  #: optimiser steps for each batch of images

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Labels]:
        """Return samples number ``indices``: their images, and their places among the N."""
        size = self.batch_size
        places = [(i // size // self.updates * size + i % size) % len(self.images) for i in indices]
        return self.images[places], torch.tensor(places)

    def told(self, model: Model, places: Tensor, clip: ClipPolicy) -> Denoiser:
        """Return the denoiser of ``model`` for the images at these places."""
        prompt = None if self.captions is None else [self.captions[i] for i in places.tolist()]
        return model.denoiser(prompt, scale=1.0, clip=clip)


@dataclass(frozen=True, kw_only=True, eq=False)
class EditLoss:
    """``w_clip L_clip + w_l1 L1 + w_id L_id`` of each image; see `steerdiff.guidance.directional`.

    Source: Kim et al. 2022 (DiffusionCLIP), eq. 9 to 11. L1 is the mean over pixels against the input.
    """

    clip: Clip  #: sees the images
    direction: Tensor  #: of the texts, a unit vector [D]
    clip_weight: float = 3.0  #: of the directional loss
    l1_weight: float = 1.0  #: of the mean absolute difference from the input
    id_weight: float = 0.0  #: of the identity
    identity: Identity | None = None  #: compares faces
    views: int = (
        1  #: of each image and its source that CLIP compares: the whole, and so many - 1 turned and tilted alike
    )

    def __call__(
        self, edited: Tensor, source: Tensor, features: Tensor, random: SampleRandom | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each image [B] and means to report.

        Args:
            edited: [B, 3, H, W], about in [-1, 1]; gradients flow.
            source: The inputs [B, 3, H, W].
            features: CLIP's vectors of the inputs [B, D].
            random: Random numbers of the samples, for views beyond the first.
        """
        vectors, before = self._seen(edited.float(), source.float(), features, random)
        aligned = directional_loss(vectors, before, self.direction).reshape(len(edited), -1).mean(1)
        l1 = (edited - source).abs().flatten(1).mean(1)
        loss = self.clip_weight * aligned + self.l1_weight * l1
        metrics = {
            "clip": aligned.mean().detach(),
            "cosine": directional_cosine(vectors.detach(), before, self.direction).mean(),
            "l1": l1.mean().detach(),
        }
        if self.identity is not None and self.id_weight:
            kept = self.identity(edited, source)
            loss = loss + self.id_weight * kept
            metrics["identity"] = kept.mean().detach()
        return loss, metrics

    def _seen(
        self, edited: Tensor, source: Tensor, features: Tensor, random: SampleRandom | None
    ) -> tuple[Tensor, Tensor]:
        """Return CLIP's vectors of all views of the edited images and of the sources, each [B * views, D]."""
        if self.views == 1 or random is None:
            return self.clip.image_features(edited), features
        make = ExtendingAugmentations(views=self.views, distortion=_TILT)
        seeds = [int(bits) >> 1 for bits in mix(random.seed, "views", random.indices)]
        numbers = make.draw(make.stream(Noise(seeds, [len(seeds), 1])), len(edited))
        with torch.no_grad():
            before = self.clip.image_features(make.transformed(source, numbers).flatten(0, 1))
        return self.clip.image_features(make.transformed(edited, numbers).flatten(0, 1)), before


@dataclass(frozen=True, kw_only=True, eq=False)
class Finish:
    """Who makes the last moves of an edit: the tuned model as well, or the original one below a time.

    The original model, which is told no prompt there, draws what it knows: patterns that please CLIP do not survive it.
    """

    original: Denoiser | None = None  #: told no prompt
    below: float = 0.0  #: trained time below which it takes over; 0 is never

    def after(self, tuned: Denoiser) -> Denoiser:
        """Return the denoiser of all moves, given that of the first ones."""
        if self.original is None or not self.below:
            return tuned
        stages = ((0.0, (0.0, 1.0)), (self.below, (1.0, 0.0)))
        return MixedDenoiser(denoisers=(tuned, self.original), stages=stages)


@dataclass(eq=False)
class QuickTuning:
    """The whole trajectory with its gradients, then one loss on its end: one update an image.

    Source: section 3.4 of the paper's code, "quick"; Algorithm 1.
    """

    model: Model  #: with the network that is tuned
    path: Path  #: from t0 to the clean image in few moves
    pairs: LatentPairs  #: what is tuned on
    loss: EditLoss  #: of the last image
    clip: ClipPolicy = "none"  #: of the x0 prediction
    checkpointing: bool = False  #: compute the activations of each move again in the backward pass
    finish: Finish = Finish()  #: who makes the last moves

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of a batch of `LatentPairs`, and what to report."""
        places = cast(Tensor, batch.labels).cpu()
        denoise = self.finish.after(self.pairs.told(self.model, places, self.clip))
        denoise = recomputed(denoise, enabled=self.checkpointing)
        x = self.pairs.latents[places].to(batch.images.device)
        for record in trajectory(denoise, DDIM(), self.path, x):
            x = record.step.x
        features = self.pairs.features[places].to(x.device)
        loss, metrics = self.loss(images_of(self.model, x), batch.images, features, batch.random)
        return loss.mean(), metrics


@dataclass(eq=False)
class EfficientTuning:
    """One move, a loss on the x0 that it predicts, an update; then the next move from where this one led.

    As many updates an image as the path has moves, the memory of one. The trajectory is carried from update to update
    and is saved with the run. All losses see the x0 of this very move; in the official code the identity sees the next
    state, which has no gradient.

    Source: the official code, "GPU-efficient".
    """

    model: Model  #: with the network that is tuned
    path: Path  #: from t0 to the clean image in few moves
    pairs: LatentPairs  #: what is tuned on; its ``updates`` are the moves
    loss: EditLoss  #: of each predicted image
    clip: ClipPolicy = "none"  #: of the x0 prediction
    checkpointing: bool = False  #: compute the activations again in the backward pass
    finish: Finish = Finish()  #: who makes the last moves
    x: Tensor | None = None  #: where the trajectory is, [B, C, h, w]; None before the first move

    def __post_init__(self) -> None:
        """Check that images stay for as many updates as there are moves."""
        require(
            self.pairs.updates == len(self.path),
            f"each image has {self.pairs.updates} updates and the path {len(self.path)} moves; they must agree",
        )

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of the move that is due, and what to report; the trajectory moves on."""
        places = cast(Tensor, batch.labels).cpu()
        index = batch.random.indices[0] // self.pairs.batch_size % len(self.path)
        x = self.pairs.latents[places].to(batch.images.device) if index == 0 or self.x is None else self.x
        move = self.path[index]
        denoise = self.finish.after(self.pairs.told(self.model, places, self.clip))
        denoise = recomputed(denoise, enabled=self.checkpointing)
        step = DDIM().step(denoise, x.detach(), move, None, Noise(0, like=x))
        self.x = step.x.detach()
        predicted = cast(Tensor, step.prediction and step.prediction.x0)
        features = self.pairs.features[places].to(x.device)
        loss, metrics = self.loss(images_of(self.model, predicted), batch.images, features, batch.random)
        return loss.mean(), metrics

    def state_dict(self) -> dict[str, Tensor]:
        """Return where the trajectory is."""
        return {} if self.x is None else {"x": self.x}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from where the trajectory was."""
        self.x = state["x"].to(self.model.device) if "x" in state else None

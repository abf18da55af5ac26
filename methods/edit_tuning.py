"""What DiffusionCLIP and Asyrp share in tuning an edit: training images with their latents, its loss, and the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Protocol

import torch
from torch import Tensor

from steerdiff.guidance import Model
from steerdiff.guidance.augment import ExtendingAugmentations
from steerdiff.guidance.directional import directional_cosine, directional_loss
from steerdiff.guidance.prompts import TextEncoder
from steerdiff.models.clip import Clip
from steerdiff.models.delta import Delta
from steerdiff.samplers import DDIM, ClipPolicy, Denoiser, Noise, Path, integrate
from steerdiff.train.data import Labels
from steerdiff.train.randomness import SampleRandom, mix
from steerdiff.train.templates import reads_scenes, source_captions, templates_for

from .finetuned import cached_tensors, digest, given_delta, identity
from .inputs import folder_images

__all__ = [
    "EditLoss",
    "Identity",
    "LatentPairs",
    "TextEdit",
    "images_of",
    "latent_pairs",
    "named_deltas",
    "sentences",
    "training_images",
]

_TILT = 0.3  # how far a corner of a view comes in: objects must stay what they are
_BATCH = 32  # images that are drawn, inverted or looked at together; it does not change them

#: ``identity(edited, source) -> [B]``: how little two images [B, 3, H, W] in [-1, 1] show one person; 0 if they do.
Identity = Callable[[Tensor, Tensor], Tensor]


class TextEdit(Protocol):
    """Fields of a method that tunes an edit which two texts name."""

    @property
    def source_text(self) -> str:
        """What images show before the edit."""

    @property
    def target_text(self) -> str:
        """What they shall show."""

    @property
    def templates(self) -> str:
        """Whether directions are averaged over sentences: "auto" or "none"."""

    @property
    def images(self) -> FilePath | None:
        """Folder of training images; None draws them with the model."""

    @property
    def n_images(self) -> int:
        """Training images."""

    @property
    def image_steps(self) -> int:
        """Moves in which each is drawn."""

    @property
    def tune_seed(self) -> int:
        """Decides the drawn training images."""

    @property
    def uses_prompt(self) -> bool | None:
        """Whether the network is told what images show."""

    @property
    def clip_x0(self) -> ClipPolicy:
        """Of the x0 prediction."""

    @property
    def batch_size(self) -> int:
        """Images of one update."""

    @property
    def delta(self) -> FilePath | None:
        """File of a delta, or the name of a shipped one."""

    @property
    def more(self) -> tuple[FilePath, ...]:
        """Further deltas."""


def named_deltas(edit: TextEdit, method: str, base: str) -> tuple[Delta, ...]:
    """Return the deltas that an edit names, the first one first.

    Raises:
        UserError: There is no such file, or it is no delta of ``method`` and of the weights with identity ``base``.
    """
    return tuple(given_delta(source, method, base) for source in (edit.delta, *edit.more) if source is not None)


def sentences(edit: TextEdit, clip: Clip) -> tuple[str, ...]:
    """Return the sentences over which the direction of an edit is averaged, as far as the CLIP can read them."""
    return templates_for(edit.source_text, edit.target_text, clip.words) if edit.templates == "auto" else ("{}",)


def training_images(edit: TextEdit, model: Model) -> tuple[Tensor, list[str] | None]:
    """Return the training images [N, 3, H, W] in [-1, 1] of an edit, and their captions if there are any.

    Raises:
        UserError: There is no such folder, or what is in it does not fit.
    """
    if edit.images is not None:
        return folder_images(model, edit.images, captioned=bool(edit.uses_prompt), n=edit.n_images)
    return _drawn_images(model, edit.source_text, edit.n_images, edit.image_steps, edit.tune_seed)


def latent_pairs(edit: TextEdit, model: Model, clip: Clip, up: Path, updates: int = 1) -> LatentPairs:
    """Return the training images of an edit with the latents that DDIM inversion along ``up`` finds.

    Args:
        edit: Which images, and whether the network is told what they show.
        model: The model as it was before tuning.
        clip: Looks at the images.
        up: The way of the inversion.
        updates: Optimiser steps for each batch of images.
    """
    images, captions = training_images(edit, model)
    told = captions if edit.uses_prompt else None
    with torch.no_grad():
        features = torch.cat([clip.image_features(one) for one in torch.split(images, _BATCH)])
        latents = _inverted(model, images, told, up, edit.clip_x0)
    return LatentPairs(
        images=images,
        latents=latents,
        features=features,
        captions=None if told is None else tuple(told),
        batch_size=min(edit.batch_size, len(images)),
        updates=updates,
    )


def images_of(model: Model, x: Tensor) -> Tensor:
    """Return the images [B, 3, H, W] of states, with gradients: `Model.decode` has none."""
    stage = model.autoencoder
    if stage is None:
        return x
    dtype = next(stage.parameters()).dtype
    return torch.cat([stage.images(part.to(dtype), tile=model.tile) for part in torch.split(x, 1)]).to(x.dtype)


def _drawn_images(model: Model, source: str, n: int, steps: int, seed: int) -> tuple[Tensor, list[str] | None]:
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

    about = {"size": model.size, "captions": captions, "seeds": seeds, "steps": steps}
    made = cached_tensors("images", model, draw, model=identity(model), **about)
    return made["images"].to(model.device), captions


def _captions(text: TextEncoder, source: str, n: int, seed: int) -> list[str]:
    """Return captions of scenes for a text encoder that has read such, else the source text itself."""
    return source_captions(source, n, seed) if reads_scenes(text) else [source] * n


def _inverted(model: Model, images: Tensor, captions: Sequence[str] | None, up: Path, clip: ClipPolicy) -> Tensor:
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
        model,
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

    @property
    def epoch(self) -> int:
        """Optimiser steps in which all images are gone through once."""
        return max(1, len(self.images) // self.batch_size) * self.updates

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

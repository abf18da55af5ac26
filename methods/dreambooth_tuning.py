"""What DreamBooth tunes on and by: pictures of subjects, drawn ones of their classes, its loss, and what it tunes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, cast

import torch
from torch import Tensor, nn

from steerdiff.errors import UserError, require, warn
from steerdiff.guidance import Model
from steerdiff.guidance.classifier_free import Condition
from steerdiff.guidance.prompts import Prompt, TextEncoder
from steerdiff.models.delta import Delta
from steerdiff.models.lora import LowRank, with_factors
from steerdiff.train.losses import Batch
from steerdiff.train.templates import reads_scenes, source_captions

from .finetuned import cached_tensors, copy_of, identity, model_delta
from .image_tuning import DenoisingLoss, TunedImages, rows_of
from .inputs import folder_images

__all__ = [
    "Pictures",
    "PriorPreservation",
    "Tuned",
    "class_captions",
    "class_pictures",
    "folder_pictures",
    "given_pictures",
    "noun_behind",
    "told",
]

_FEW = 3  # pictures of a subject, below which the paper does not go
_CHUNK = 16  # class images that are drawn together and kept in one file of the cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Pictures and what each shows."""

    images: Tensor  #: [N, 3, H, W] in [-1, 1]
    captions: tuple[str, ...]  #: N texts

    def states(self, model: Model, *, flip: bool = False) -> TunedImages:
        """Return the states of the pictures, with ``flip`` those of their mirror images behind them."""
        images = torch.cat([self.images, self.images.flip(3)]) if flip else self.images
        return TunedImages(states=torch.cat([model.encode(image) for image in torch.split(images, _CHUNK)]))

    def told(self, *, flip: bool = False) -> tuple[str, ...]:
        """Return the texts of `states`."""
        return (*self.captions, *self.captions) if flip else self.captions


def given_pictures(model: Model, images: Tensor, shown: Prompt) -> Pictures:
    """Return images [N, 3, H, W] with what they show, one text or one for each."""
    require(not isinstance(shown, Condition), "what the image shows is given as text states; give the text itself")
    texts = [shown] if isinstance(shown, str) else list(cast("Sequence[str]", shown))
    fits = len(texts) in (1, len(images))
    require(fits, f"{len(texts)} texts say what {len(images)} images show; give one, or one for each")
    captions = texts * len(images) if len(texts) == 1 else texts
    return Pictures(images=images.to(model.device), captions=tuple(captions))


def folder_pictures(model: Model, folders: Mapping[FilePath, str | None]) -> Pictures:
    """Return all pictures of folders, one folder after the other.

    Args:
        model: Whose size they get.
        folders: Each with what all of its pictures show; None reads the text beside each.

    Raises:
        UserError: No folder, no pictures, a text that is missing, or a model whose images are not square.
    """
    images, captions = [], list[str]()
    for folder, caption in folders.items():
        some, texts = folder_images(model, folder, captioned=caption is None)
        n = len(some)
        if n < _FEW:
            count = "1 picture" if n == 1 else f"{n} pictures"
            warn(f"{folder} holds {count}; 3 to 5 show what belongs to the subject")
        images.append(some)
        captions += cast("list[str]", texts) if caption is None else [caption] * n
    return Pictures(images=torch.cat(images), captions=tuple(captions))


def noun_behind(identifier: str, captions: Sequence[str]) -> str:
    """Return the word behind an identifier in the first caption that has one; UserError if none has."""
    for caption in captions:
        words = caption.split()
        behind = words[words.index(identifier) + 1 :] if identifier in words else []
        if behind:
            return behind[0].strip(",.")
    raise UserError(f"no caption says what {identifier!r} is; give nouns, such as dog")


def class_captions(text: Any, noun: str, n: int, seed: int, template: str) -> list[str]:
    """Return what ``n`` pictures of a class show: whole captions for an encoder that has read such, else one text."""
    if reads_scenes(text):
        return source_captions(noun, n, seed) if noun in text.config.words else [noun] * n
    return [template.format(noun)] * n


def class_pictures(model: Model, captions: Sequence[str], seed: int, progress: str | None, **drawing: Any) -> Pictures:
    """Return pictures that the model draws, from the cache as far as they are there; stored in 8 bits a colour.

    Args:
        model: The model as it was before tuning.
        captions: One for each picture.
        seed: Picture i has the seed ``seed * 1_000_003 + i``, whatever their number.
        progress: Label of progress bars; None is silent.
        drawing: Arguments of `Model.sample`, JSON-able.
    """
    parts = []
    for first in range(0, len(captions), _CHUNK):
        told = list(captions[first : first + _CHUNK])
        seeds = [seed * 1_000_003 + first + k for k in range(len(told))]

        def draw(told: list[str] = told, seeds: list[int] = seeds) -> dict[str, Tensor]:
            images = model.sample(told, 1, seed=seeds, batch=_CHUNK, progress=progress, **drawing)
            return {"images": ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)}

        about = {"model": identity(model), "size": model.size, "captions": told, "seeds": seeds, **drawing}
        parts.append(cached_tensors("class-images", model, draw, **about)["images"])
    images = torch.cat(parts).to(model.device).float() / 127.5 - 1
    return Pictures(images=images, captions=tuple(captions))


def told(model: Model, captions: Sequence[str], *, anew: bool) -> Callable[[Tensor], Condition]:
    """Return what gives the conditions of places among captions, each different text being read once.

    Args:
        model: Its text encoder reads.
        captions: By place.
        anew: Read at each call, with gradients.
    """
    unique = {caption: k for k, caption in enumerate(dict.fromkeys(captions))}
    which = torch.tensor([unique[caption] for caption in captions], device=model.device)
    if not anew:
        read = model.condition(list(unique))
        return lambda places: rows_of(read, which[places.to(which.device)])
    text = cast(TextEncoder, model.text)
    ids, mask = text.tokenize(list(unique))
    ids, mask = ids.to(model.device), None if mask is None else mask.to(model.device)

    def condition(places: Tensor) -> Condition:
        rows = which[places.to(which.device)]
        seen = None if mask is None else mask[rows]
        return Condition(context=text(ids[rows], seen), context_mask=seen)

    return condition


class PriorPreservation:
    """The loss of the subject's pictures plus ``weight`` times that of pictures of its class, one for one.

    Sample i is paired with class picture ``i mod M``. Time and noise of the two have streams of their own, so that the
    subject's part is plain fine-tuning whatever the weight is.

    Source: Ruiz et al. 2023, eq. 2, in the network's own parameterisation as all open code has it.
    """

    def __init__(self, subject: DenoisingLoss, prior: DenoisingLoss, states: TunedImages, weight: float) -> None:
        """Take the two losses, the class pictures' states, and lambda."""
        self.subject, self.prior, self.states, self.weight = subject, prior, states, weight

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of samples of the subject, and the two errors to report."""
        loss, metrics = self.subject(batch)
        states, places = self.states.batch(batch.random.indices)
        kept = self.prior.each(states.to(batch.images.device), cast(Tensor, places), batch.random).mean()
        return loss + self.weight * kept, {**metrics, "prior_mse": kept.detach()}


class Tuned:
    """A model that is tuned, in a copy: all weights of its network or adapters, and of its text encoder if asked."""

    def __init__(self, model: Model, named: Model, *, text: bool, rank: int | None, among: tuple[str, ...]) -> None:
        """Copy a model.

        Args:
            model: The base of the delta.
            named: The same with new words.
            text: Tune the text encoder too.
            rank: Of adapters; None tunes all weights.
            among: Parts of the names of the matrices that get adapters.
        """
        copied = copy_of(named, shares=False, text=text)
        self.base, self.named, self.rank = model, named, rank
        parts = {"network": cast(nn.Module, copied.network), **({"text": cast(nn.Module, copied.text)} if text else {})}
        if rank is None:
            self.parts = nn.ModuleDict({name: part.requires_grad_(True) for name, part in parts.items()})
            self.model = copied
            return
        self.adapters = {name: LowRank(part, rank, among=among) for name, part in parts.items()}
        self.parts = nn.ModuleDict(self.adapters)
        reader = cast(TextEncoder, _Reads(named.text, self.adapters["text"])) if text else copied.text
        self.model = replace(copied, network=self.adapters["network"], text=reader)

    def delta(self, method: str, settings: dict[str, Any]) -> Delta:
        """Return what tuning changed."""
        if self.rank is None:
            return model_delta(self.base, self.model, method=method, settings=settings)
        words = model_delta(self.base, self.named, method=method, settings=settings)
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        for part, adapter in self.adapters.items():
            prefix = "" if part == "network" else f"{part}."
            factors |= {prefix + name: pair for name, pair in adapter.factors().items()}
        return with_factors(words, factors)


@dataclass(frozen=True, eq=False)
class _Reads:
    """A text encoder with adapters."""

    text: Any
    adapter: LowRank

    def tokenize(self, texts: list[str], /) -> tuple[Tensor, Tensor | None]:
        found: tuple[Tensor, Tensor | None] = self.text.tokenize(texts)
        return found

    def __call__(self, ids: Tensor, mask: Tensor | None, /) -> Tensor:
        states: Tensor = self.adapter(ids, mask)
        return states

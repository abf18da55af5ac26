"""What Blended Diffusion is made of: the regions that it is asked to change, its last step and its ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.guidance import Model
from steerdiff.guidance.augment import fitted
from steerdiff.guidance.clean_clip import Region, Sight, seen_of
from steerdiff.guidance.distances import geodesic
from steerdiff.models.clip import MEAN, STD, Clip
from steerdiff.samplers import Move, Noise, Seeds, Step

from .inputs import fitted_mask

__all__ = ["PredictedEnd", "Ranking", "Texts", "candidate_seeds", "distances", "region_of", "union"]

#: One text for all images, one for each, or none.
Texts = str | Sequence[str] | None
#: What CLIP sees of a candidate: what it saw as a guide, or what the official code shows it.
Ranking = Literal["guidance", "official"]


@dataclass(frozen=True, eq=False)
class PredictedEnd:
    """A constraint: the run ends with the image that the last call of the denoiser predicted, not with the last step.

    Source: Avrahami et al. 2022, official code; the pull of the last step, which nothing follows, is left out.
    """

    image: Tensor | None = None  #: what stands where ``mask`` is 0, exactly; None leaves the prediction there too
    mask: Tensor | None = field(default=None, kw_only=True)  #: 1 where the prediction stays
    resets_history: ClassVar[bool] = False

    def __call__(self, step: Step, move: Move, noise: Noise) -> Tensor:
        """Return the state after ``move``: the predicted image if it is clean there."""
        if not move.there.clean or step.prediction is None:
            return step.x
        if self.image is None or self.mask is None:
            return step.prediction.x0
        return torch.where(self.mask > 0, step.prediction.x0, self.image)


def region_of(model: Model, clip: Clip, mask: Tensor | None, texts: Texts, images: int) -> Region:
    """Return what one part of ``images`` images should show; an empty text asks for nothing and weighs 0.

    Raises:
        UserError: A mask that does not fit or selects nothing, a text that CLIP cannot read, or a wrong number of them.
    """
    fitting = None if mask is None else fitted_mask(model, mask, images)
    if fitting is not None:
        rows = fitting.shape[0]
        empty = [str(row) for row in range(rows) if not bool(fitting[row].any())]
        where = f" of image {', '.join(empty)}" if rows > 1 else ""
        require(not empty, f"the mask{where} selects nothing; give one that is 1 where the image may change")
    each = [texts or ""] if texts is None or isinstance(texts, str) else list(texts)
    require(len(each) in (1, images), f"{len(each)} prompts were given for {images} images; give one, or one for each")
    said = [text for text in each if text]
    vectors = clip.text_features(said) if said else torch.zeros(0, 1)
    target = torch.zeros(len(each), vectors.shape[1], dtype=vectors.dtype, device=model.device)
    asks = torch.tensor([bool(text) for text in each], device=model.device)
    target[asks] = vectors.to(model.device)
    return Region(target=target, mask=fitting, weight=asks.to(target.dtype))


def union(regions: Sequence[Region], image: Tensor) -> Tensor:
    """Return 1 where any region may change images [B, C, H, W], [B, 1, H, W]."""
    mask = torch.zeros_like(image[:, :1])
    for region in regions:
        mask = torch.maximum(mask, torch.ones_like(mask) if region.mask is None else region.mask.to(mask))
    return mask


def candidate_seeds(seed: Seeds, image: Tensor, count: int) -> list[tuple[int, ...]]:
    """Return the seeds of each candidate, one for each image; the first candidate is drawn with ``seed`` itself."""
    noise = Noise(seed, like=image)
    return [noise.seeds, *(noise.fork(f"candidate {k}").seeds for k in range(1, count))]


def distances(
    clip: Clip, result: Tensor, regions: Sequence[Region], image: Tensor, sees: Sight, ranking: Ranking = "guidance"
) -> Tensor:
    """Return how far results are from what was asked, [B]: the regions' distances in CLIP, weighted and added.

    Args:
        clip: The judge.
        result: Images [B, 3, H, W] in [-1, 1].
        regions: What was asked for, and where.
        image: What was edited, [B, 3, H, W].
        sees: What guidance showed CLIP outside a region.
        ranking: "guidance" shows it the same, without augmentations. "official" shows it the region on black, and
            values in [0, 1] where it expects normalised ones, as the official code does.
    """
    known = get_args(Ranking)
    require(ranking in known, f"ranking is {ranking!r}; known are {', '.join(known)}")
    total = torch.zeros(len(result), device=result.device)
    for region in regions:
        if ranking == "guidance":
            shown = fitted(seen_of(result, region.mask, sees, image), clip.size)
        else:
            inside = (result + 1) / 2 * (1 if region.mask is None else region.mask.to(result))
            mean, std = (result.new_tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
            shown = 2 * (fitted(inside, clip.size) * std + mean) - 1  # which CLIP's own preparation turns into inside
        total = total + region.weight * geodesic(clip.image_features(shown), region.target)
    return total

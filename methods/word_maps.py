"""Where a model looks for each word of a prompt, while it draws an image or goes through a given one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerdiff.errors import UserError, require
from steerdiff.guidance import Model
from steerdiff.guidance.settings import solver_of
from steerdiff.guidance.word_edits import word_rows
from steerdiff.models.alignment import WordTokens
from steerdiff.models.control import Control, Taps
from steerdiff.samplers import Noise, integrate

from .null_text import climbed, descent

__all__ = ["WordMaps", "look_for"]


@dataclass(frozen=True, kw_only=True, eq=False)
class WordMaps:
    """An image and the attention to words, as means over steps, heads and the attentions on each grid.

    Source: Hertz et al. 2022, figure 4.
    """

    image: Tensor  #: [1, 3, H, W], about in [-1, 1]
    words: tuple[str, ...]  #: K words
    maps: Mapping[tuple[int, int], Tensor]  #: [K, h, w] in [0, 1] by height and width of the grid, the finest first

    def large(self, grid: tuple[int, int] | None = None) -> Tensor:
        """Return the maps at the size of the image [K, H, W], each divided by its largest value.

        Args:
            grid: Height and width of the maps; None takes the mean over all grids.
        """
        require(grid is None or grid in self.maps, f"grid is {grid}; there are {', '.join(map(str, self.maps))}")
        size = self.image.shape[-2:]
        chosen = self.maps.values() if grid is None else [self.maps[grid]]
        wide = torch.stack([torch.nn.functional.interpolate(one[None], size=size)[0] for one in chosen]).mean(0)
        return wide / wide.amax((1, 2), keepdim=True).clamp(min=torch.finfo(wide.dtype).tiny)

    def lit(self, grid: tuple[int, int] | None = None, dark: float = 0.15) -> Tensor:
        """Return the image once for each word [K, 3, H, W], bright where the model looks for it.

        Args:
            grid: As for `large`.
            dark: Brightness in [0, 1] of what it does not look at.
        """
        light = dark + (1 - dark) * self.large(grid)[:, None]
        return (self.image.clamp(-1, 1) + 1) * light.to(self.image) - 1


@torch.no_grad()
def look_for(
    model: Model,
    prompt: str,
    words: Sequence[str] = (),
    *,
    image: Tensor | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    progress: str | None = None,
) -> WordMaps:
    """Draw an image of ``prompt``, or invert a given one by DDIM, and note where the model looks.

    Args:
        model: A model with a text encoder.
        prompt: What the image shows.
        words: Words of the prompt, or several in a row; none given: each of them once, in order.
        image: A picture [1, 3, H, W] in [-1, 1]; None draws one.
        steps: Moves; None is the model's own number.
        guidance: Of a drawn image; None is the model's. A given one is inverted without.
        seed: Of a drawn image.
        progress: Label of a progress bar; None shows none.

    Raises:
        UserError: A word that is not in the prompt, or a model that reads none.
    """
    text = model.text
    if not isinstance(text, WordTokens):
        raise UserError(f"{model.name} reads no words to look for; use a model with a text encoder")
    chosen = tuple(words) or tuple(dict.fromkeys(span.word for span in text.spans(prompt)))
    require(len(chosen) > 0, "the prompt is empty; give one whose words can be looked for")
    require(image is None or len(image) == 1, "one image is looked at a time; give [1, 3, H, W]")
    cond = model.condition(prompt)
    length = 0 if cond.context is None else cond.context.shape[1]
    weights = torch.cat([word_rows(text, [prompt], [word], length) for word in chosen])[None]
    taps = Taps(weights=weights.to(model.device), max_cells=math.prod(model.size))
    control = Control(taps=taps)
    if image is None:
        denoise = model.denoiser(cond, negative="", scale=guidance, control=control)
        noise = Noise([seed], model.state_shape(1), model.device)
        solver, path = solver_of(model.sampling.solver), model.path(steps)
        image = model.decode(integrate(denoise, solver, path, noise(), noise=noise, progress=progress))
    else:
        down = descent(model, steps or model.sampling.steps, model.sampling.spacing)
        denoise = model.denoiser(cond, scale=1.0, clip="none", control=control)
        climbed(denoise, down, model.encode(image), progress=progress)
    grids = {_grid(sums.shape[-1], *model.state_shape(1)[2:]) for sums in taps.sums.values()}
    return WordMaps(
        image=image.to(model.device),
        words=chosen,
        maps={grid: taps.averaged(grid)[0] for grid in sorted(grids, reverse=True)},
    )


def _grid(cells: int, height: int, width: int) -> tuple[int, int]:
    """Return the sides of a grid that is so many times coarser than the state along both axes."""
    factor = round(math.sqrt(height * width / cells))
    return height // factor, width // factor

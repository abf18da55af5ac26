"""Where an edit has to end and where fresh noise helps: curves along an inversion, and the rule that reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.samplers import DDIM, Path, Record, integrate

from .model import Model
from .perceptual import PerceptualDistance
from .prompts import Prompt

__all__ = ["PhaseCurves", "phase_curves"]


@dataclass(frozen=True, kw_only=True)
class PhaseCurves:
    """How far the predicted image and the noisy one are from the image, by time, as means over images.

    Source: Kwon et al. 2023, sections 3.4 and 3.5 and Figure 5.
    """

    times: tuple[float, ...]  #: ascending, from the lowest level that was visited
    predicted: tuple[float, ...]  #: distance of P_t, the predicted clean image, from the image
    noisy: tuple[float, ...]  #: distance of x_t from the image
    distance: str  #: name of the distance
    images: int  #: how many images the means are over

    def t_edit(self, threshold: float, cosine: float = 1.0) -> float:
        """Return the smallest time whose P_t is at least ``threshold * cosine`` away: the edit ends there.

        Args:
            threshold: The distance for a target text that means the same as the source's.
            cosine: Of the two texts' vectors. The less alike they are, the longer the edit lasts.

        Raises:
            UserError: The curve does not reach that far.
        """
        return self._first(self.predicted, threshold * cosine, "P_t", "threshold_edit or give t_edit")

    def t_boost(self, threshold: float) -> float:
        """Return the smallest time whose x_t is at least ``threshold`` away: noise is added below it.

        Raises:
            UserError: The curve does not reach that far.
        """
        return self._first(self.noisy, threshold, "x_t", "threshold_boost or give t_boost")

    def _first(self, curve: tuple[float, ...], threshold: float, what: str, remedy: str) -> float:
        found = next((t for t, value in zip(self.times, curve, strict=True) if value >= threshold), None)
        require(
            found is not None,
            f"the {self.distance} of {what} from the image reaches {max(curve):.3g} and not {threshold:.3g}; "
            f"lower {remedy}",
        )
        return 0.0 if found is None else found


@torch.no_grad()
def phase_curves(
    model: Model,
    images: Tensor,
    distance: PerceptualDistance,
    *,
    steps: int | str = 1000,
    prompt: Prompt = None,
    batch: int = 16,
    progress: str | None = None,
) -> PhaseCurves:
    """Follow images up by DDIM inversion and measure how far ``P_t`` and ``x_t`` are from them; neither is clipped.

    (The official code files P_t under the time after the one it was computed at; here it is filed under its own.)

    Args:
        model: Any model.
        images: [B, C, H, W] in [-1, 1].
        distance: Of images; published thresholds are for LPIPS of AlexNet on photographs of 256 pixels.
        steps: Respaced times of the inversion; published are all 1000, of which 50 will do.
        prompt: What the images show: one text or one for each; None is the empty prompt.
        batch: Images computed together.
        progress: Label of progress bars, one a batch; None shows none.

    Raises:
        UserError: Images or prompts that the model cannot take.
    """
    path = Path.respaced(model.schedule, steps).inverted()
    condition = model.condition(prompt).expand(len(images))
    predicted, noisy = torch.zeros(len(path) + 1), torch.zeros(len(path) + 1)
    for first in range(0, len(images), batch):
        some = images[first : first + batch]
        x0 = model.encode(some)
        some = some.to(x0)
        denoise = model.denoiser(condition[first : first + batch], clip="none")

        def away(x: Tensor, some: Tensor = some) -> Tensor:
            return distance(model.decode(x), some).sum().cpu()

        def measure(record: Record) -> None:
            if record.step.prediction is not None:
                predicted[record.index] += away(record.step.prediction.x0)
            noisy[record.index + 1] += away(record.step.x)

        top = integrate(denoise, DDIM(), path, x0, callback=measure, progress=progress)
        predicted[-1] += away(denoise(top, path.end).x0)
    return PhaseCurves(
        times=tuple(level.t for level in path.levels),
        predicted=tuple((predicted / len(images)).tolist()),
        noisy=tuple((noisy / len(images)).tolist()),
        distance=distance.name,
        images=len(images),
    )

"""The asymmetric reverse process: the predicted image from a shifted bottleneck, the direction from the plain one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor

from steerdiff.models.control import Control, HShift
from steerdiff.samplers import ClipPolicy, Denoiser, Level, NetworkDenoiser, Prediction

from .classifier_free import ClassifierFree
from .model import Model
from .prompts import Prompt

__all__ = ["Asymmetric", "asymmetric"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Asymmetric:
    """A denoiser whose ``x0`` comes from the shifted bottleneck and whose ``eps`` from the plain one.

    With DDIM the step is ``sqrt(a_s) P_t(eps(h + dh)) + sqrt(1 - a_s - sigma^2) D_t(eps(h))``. Shifting both would
    cancel to first order; ``symmetric=True`` does it, for comparison. The network goes down once and up twice, in one
    call. Below ``t_edit`` the plain denoiser answers, bit for bit. Gradients flow to the shift.

    Make one with `asymmetric`. Source: Kwon et al. 2023, eq. 5 and theorem 1.
    """

    plain: Denoiser  #: the model's own denoiser
    forked: NetworkDenoiser  #: the same, over a network whose output has the plain channels, then the shifted ones
    t_edit: float = 0.0  #: the shift acts at times from here on
    symmetric: bool = False  #: also take ``eps`` from the shifted bottleneck

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict from ``x`` [B, C, H, W] at ``level``."""
        if level.t < self.t_edit:
            return self.plain(x, level)
        original, edited = self.both(x, level)
        return edited if self.symmetric else replace(original, x0=edited.x0)

    def both(self, x: Tensor, level: Level) -> tuple[Prediction, Prediction]:
        """Return the plain and the shifted prediction from ``x`` [B, C, H, W], whatever ``t_edit`` says."""
        halves: list[Tensor] = []

        def network(x: Tensor, t: Tensor) -> Tensor:
            halves.extend(self.forked.network(x, t).chunk(2, dim=1))
            return halves[0]

        original = replace(self.forked, network=network)(x, level)
        return original, replace(self.forked, network=lambda x, t: halves[1])(x, level)


def asymmetric(
    model: Model,
    shift: HShift,
    *,
    prompt: Prompt = None,
    negative: Prompt = "",
    guidance: float | None = 1.0,
    clip: ClipPolicy = "none",
    **fields: Any,
) -> Asymmetric:
    """Bind the conditioning and a shift of the bottleneck.

    Args:
        model: A model with a UNet.
        shift: ``shift(h [B, C, h, w], emb [B, D], t [B])``, what is added to the bottleneck.
        prompt: What the image shows, for a model with text; None is the empty prompt.
        negative: The other branch of classifier-free guidance, in which the bottleneck is shifted alike.
        guidance: Its strength; 1 is none, None the model's own.
        clip: Of both x0 predictions.
        fields: ``t_edit`` and ``symmetric`` of `Asymmetric`.

    Raises:
        UserError: A prompt that the model cannot take.
    """
    options: dict[str, Any] = {"negative": negative, "scale": guidance, "clip": clip}
    control = Control(h_shift=shift, keeps_plain=True)
    forked = cast(NetworkDenoiser, model.denoiser(prompt, **options, control=control))
    if isinstance(forked.network, ClassifierFree):  # the guided channels no longer come first: guide them all
        forked = replace(forked, network=replace(forked.network, guided_channels=None))
    return Asymmetric(plain=model.denoiser(prompt, **options), forked=forked, **fields)

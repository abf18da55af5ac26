"""Classifier guidance (ADM): the gradient of a classifier of noisy images pulls each step towards a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steerdiff.errors import require
from steerdiff.guidance import ClassifierGuidance, Model
from steerdiff.guidance.loading import load_cached
from steerdiff.guidance.noisy_classifier import Classes, targets_of
from steerdiff.guidance.prompts import Prompt
from steerdiff.guidance.scales import ScaleSchedule, check_schedule
from steerdiff.samplers import DDIM, DDPM, ClipPolicy, Denoiser, Noise, Path, Seeds, Solver, integrate

__all__ = ["PRESETS", "ClassifierGuided"]


@dataclass(frozen=True, kw_only=True)
class ClassifierGuided:
    """Sample with a pull towards a class: ``scale grad log p(y | x_t)`` moves each step.

    ``DDPM`` moves its mean by its variance times the gradient (Algorithm 1), ``DDIM`` and all other solvers move eps
    (Algorithm 2). A scale above 1 sharpens ``p(y | x)`` to its power: results look more like their class and less like
    each other. A class-conditional model is told the class too. Defaults are those of the published 256 pixel model.

    Source: Dhariwal & Nichol 2021, Algorithms 1 and 2. ``at="mean"`` is their derivation (section 4.1), which asks the
    classifier at the mean of the step; the algorithm and the official code ask at ``x_t``, as ``at="state"`` does. From
    pure noise, where a cosine schedule ends, that mean is an image without noise, and the classifier has never seen one
    at this time: let such a path start lower (``steps="ddim50"``).
    """

    scale: float = 1.0  #: strength, an exponent of p(y | x); 0 is plain sampling
    schedule: ScaleSchedule = "constant"  #: how the strength depends on the level; published is constant
    classifier: str = "emoji64-classifier"  #: reads the noisy images: the name of shipped weights, or a path
    at: Literal["state", "mean"] = "state"  #: where the classifier is asked, see above
    steps: int | str = 250  #: respaced times of a whole path; "ddim25" is guided-diffusion's choice of 25
    t0: float = 0.5  #: how far an image is noised before it is guided, in (0, 1]; without an image all is drawn
    solver: Solver = DDPM()  #: uses the learned variance if the network has one
    clip: ClipPolicy | None = None  #: of the unguided x0; None is the model's own way: images are clipped
    guidance: float | None = (
        None  #: classifier-free guidance with a prompt, of which the paper has none; None is the model's
    )

    def __post_init__(self) -> None:
        """Check what needs no model."""
        check_schedule(self.schedule)
        require(self.at in ("state", "mean"), f"at is {self.at!r}; known are 'state' and 'mean'")
        require(0 < self.t0 <= 1, f"t0 is {self.t0}; it must lie in (0, 1]")
        require(
            self.at == "state" or isinstance(self.solver, DDPM),
            f"at='mean' asks at the mean of a DDPM step, which {type(self.solver).__name__} has not; use at='state'",
        )

    @torch.no_grad()
    def __call__(
        self,
        model: Model,
        image: Tensor | None = None,
        *,
        y: Classes,
        prompt: Prompt = None,
        negative: Prompt = "",
        seed: Seeds = 0,
        progress: str | None = None,
    ) -> Tensor:
        """Draw one image for each class, or change each image towards a class.

        Args:
            model: Any model of pixels.
            image: [B, C, H, W] in [-1, 1], noised up to ``t0`` and denoised with the pull; None starts from noise.
            y: Class to pull towards, by number or by the classifier's name of it; one, or one for each image.
            prompt: What the result should show besides, for a model with text.
            negative: What it should not show.
            seed: One integer (image i uses ``seed + i``) or one for each image.
            progress: Label of a progress bar; None shows none.

        Returns:
            Images [B, C, H, W] in [-1, 1].

        Raises:
            UserError: A class that the classifier does not know, a classifier that sees images of another size or
                other noise, or an image or a prompt that the model cannot take.
        """
        classifier = load_cached(self.classifier, "classifier", model.device)
        targets = targets_of(classifier, y, model)
        own = targets if model.num_classes is not None else None
        cond, uncond = model.branches(prompt, negative, y=own)
        given = None if image is None else model.encode(image)
        rows = _rows(given, seed, len(targets), cond.rows)
        told = cond.expand(rows)
        other = told if uncond is cond else uncond.expand(rows)
        path = Path.respaced(model.schedule, self.steps)
        path = path if given is None else path.from_t0(self.t0)
        plainly = model.denoiser(told, negative=other, scale=self.guidance, clip=self.clip)
        noise = Noise(seed, [rows, model.channels, *model.size], model.device)
        start = noise() if given is None else model.schedule.q_sample(given, path.start, noise())
        denoise: Denoiser = ClassifierGuidance(
            denoise=plainly,
            classifier=classifier,
            y=targets,
            scale=self.scale,
            schedule=self.schedule,
            T=model.schedule.T,
            path=path if self.at == "mean" else None,
        )
        return model.decode(integrate(denoise, self.solver, path, start, noise=noise, progress=progress))


def _rows(image: Tensor | None, seed: Seeds, targets: int, prompts: int) -> int:
    """Return how many images are asked for; UserError where what is given does not go together."""
    seeds = len(seed) if isinstance(seed, Sequence) else 1
    rows = len(image) if image is not None else max(targets, prompts, seeds)
    require(targets in (1, rows), f"{targets} classes were given for {rows} images; give one, or one for each")
    return rows


#: The published scales by model (README of guided-diffusion; "few" are 25 steps of DDIM, with scales of the paper), and
#: what shows the class best on the shipped model, which has no labels.
PRESETS: dict[str, ClassifierGuided] = {
    "adm-256": ClassifierGuided(),
    "adm-128": ClassifierGuided(scale=0.5),
    "adm-256-uncond": ClassifierGuided(scale=10.0),
    "adm-512": ClassifierGuided(scale=4.0),
    "adm-128-few": ClassifierGuided(scale=1.25, steps="ddim25", solver=DDIM()),
    "adm-256-few": ClassifierGuided(scale=2.5, steps="ddim25", solver=DDIM()),
    "adm-512-few": ClassifierGuided(scale=9.0, steps="ddim25", solver=DDIM()),
    "emoji64": ClassifierGuided(scale=16.0, steps="ddim25", solver=DDIM()),
}

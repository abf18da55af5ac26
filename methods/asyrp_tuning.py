"""Asyrp's training: the shift of the bottleneck is updated at every step of two trajectories, one of them edited."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from steerdiff.errors import require
from steerdiff.guidance import Model
from steerdiff.guidance.asymmetric import asymmetric
from steerdiff.guidance.perceptual import PerceptualDistance
from steerdiff.guidance.phases import PhaseCurves, phase_curves
from steerdiff.models.checkpoint import load_into
from steerdiff.models.control import Control, Taps
from steerdiff.models.delta import Delta
from steerdiff.models.delta_h import DeltaHConfig, DeltaHForm, build_delta_h, delta_h_config
from steerdiff.samplers import DDIM, ClipPolicy, Level, Noise, Path, Prediction
from steerdiff.train.losses import Batch

from .edit_tuning import EditLoss, LatentPairs, images_of
from .finetuned import cached_tensors, digest, identity

__all__ = ["AsyrpTuning", "SourceImage", "cached_curves", "shift_config", "shift_of"]

#: What the direction of an edited image is measured from: P_t of the original trajectory, or the image itself.
SourceImage = Literal["predicted", "image"]


@dataclass(eq=False)
class AsyrpTuning:
    """One move of both trajectories, a loss on what they predict, an update; then the next move from where they are.

    Both start at the same latent. The edited one takes the asymmetric step of the shift as it is at this update, and
    its state is carried on without gradient. What is carried is saved with the run.

    Source: Kwon et al. 2023, eq. 7 and the official loop, with each image compared with its own source (there, all of a
    batch with its last one).
    """

    model: Model  #: frozen
    delta_h: nn.Module  #: the shift that is tuned
    path: Path  #: moves of the edit, downwards
    pairs: LatentPairs  #: what is tuned on; its ``updates`` are the moves
    loss: EditLoss  #: of P_t of the edited trajectory; its ``l1_weight`` has the texts' cosine in it
    source: SourceImage = "predicted"  #: what directions are measured from; "image" is the official code's
    clip: ClipPolicy = "none"  #: of both x0 predictions
    symmetric: bool = False  #: carry the edited trajectory on with both parts shifted, for comparison
    edited: Tensor = field(default_factory=lambda: torch.empty(0))  #: where the edited trajectory is
    original: Tensor = field(default_factory=lambda: torch.empty(0))  #: where the original one is

    def __post_init__(self) -> None:
        """Check that images stay for as many updates as there are moves."""
        require(
            self.pairs.updates == len(self.path),
            f"each image has {self.pairs.updates} updates and the path {len(self.path)} moves; they must agree",
        )

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of the move that is due, and what to report; both trajectories move on."""
        places = cast(Tensor, batch.labels).cpu()
        index = batch.random.indices[0] // self.pairs.batch_size % len(self.path)
        if index == 0:
            self.edited = self.original = self.pairs.latents[places].to(batch.images.device)
        here = self.path[index].here
        with torch.no_grad():
            before = self.pairs.told(self.model, places, self.clip)(self.original, here)
            seen = images_of(self.model, before.x0)
        told = None if self.pairs.captions is None else [self.pairs.captions[i] for i in places.tolist()]
        plain, shifted = asymmetric(self.model, self.delta_h, prompt=told, clip=self.clip).both(self.edited, here)
        if self.source == "predicted":
            features = self.loss.clip.image_features(seen)
        else:
            features = self.pairs.features[places].to(seen.device)
        loss, metrics = self.loss(images_of(self.model, shifted.x0), seen, features, batch.random)
        self.original = self._moved(self.original, before, index)
        after = shifted if self.symmetric else replace(plain, x0=shifted.x0)
        self.edited = self._moved(self.edited, after, index).detach()
        return loss.mean(), metrics

    def _moved(self, x: Tensor, prediction: Prediction, index: int) -> Tensor:
        def answer(x: Tensor, level: Level) -> Prediction:
            return prediction

        return DDIM().step(answer, x, self.path[index], None, Noise(0, like=x)).x

    def state_dict(self) -> dict[str, Tensor]:
        """Return where the trajectories are."""
        return {"edited": self.edited, "original": self.original}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from where the trajectories were."""
        self.edited, self.original = (state[name].to(self.model.device) for name in ("edited", "original"))


def shift_config(model: Model, path: Path, form: DeltaHForm, **fields: Any) -> DeltaHConfig:
    """Return the configuration of a shift for the bottleneck of a model and the moves of an edit.

    Other fields are those of `DeltaHConfig`.

    Raises:
        UserError: The model's network has no bottleneck.
    """
    plain = delta_h_config(model.network, **fields)
    if form != "direct":
        return replace(plain, form=form)
    taps = Taps(h=True)
    x = torch.zeros(model.state_shape(1), device=model.device)
    with torch.no_grad():
        model.denoiser(control=Control(taps=taps))(x, path.start)
    cells = tuple(cast(Tensor, taps.bottleneck).shape[2:])
    times = () if plain.ignores_time else tuple(move.here.t * model.time_scale for move in path)
    return replace(plain, form=form, cells=cells, times=times)


def cached_curves(
    model: Model, images: Tensor, captions: list[str] | None, distance: PerceptualDistance, steps: int
) -> PhaseCurves:
    """Return the curves that phases are read from, kept in the cache with the hashes of the model and the images.

    Arguments and errors are those of `phase_curves`; ``captions`` are its prompts.
    """

    def measure() -> dict[str, Tensor]:
        found = phase_curves(model, images, distance, steps=steps, prompt=captions)
        return {"curves": torch.tensor((found.times, found.predicted, found.noisy), dtype=torch.float64)}

    rows = cached_tensors(
        "phase-curves",
        model,
        measure,
        model=identity(model),
        schedule=model.schedule.to_dict(),
        steps=steps,
        images=digest(images),
        captions=captions,
        distance=distance.name,
        weights=distance.weights_hash,
    )["curves"].tolist()
    times, predicted, noisy = (tuple(row) for row in rows)
    return PhaseCurves(times=times, predicted=predicted, noisy=noisy, distance=distance.name, images=len(images))


def shift_of(model: Model, delta: Delta) -> nn.Module:
    """Return the shift that a delta holds, on the model's device, frozen.

    Raises:
        UserError: It does not fit the model's bottleneck, or the delta lacks tensors.
    """
    config = DeltaHConfig.from_dict(delta.settings["delta_h"], "the delta's shift")
    own = delta_h_config(model.network).channels
    require(own == config.channels, f"the delta shifts {config.channels} channels and the model has {own}; tune again")
    shift = build_delta_h(config)
    load_into(shift, delta.added(), "the delta")
    return shift.to(model.device).eval().requires_grad_(False)

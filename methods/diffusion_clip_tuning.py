"""The two ways in which DiffusionCLIP descends the loss of an edit, and who makes the last moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor

from steerdiff.errors import require
from steerdiff.guidance import Model
from steerdiff.guidance.mixed import MixedDenoiser
from steerdiff.samplers import DDIM, ClipPolicy, Denoiser, Noise, Path, trajectory
from steerdiff.train.finetune import recomputed
from steerdiff.train.losses import Batch

from .edit_tuning import EditLoss, LatentPairs, images_of

__all__ = ["EfficientTuning", "Finish", "QuickTuning"]


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

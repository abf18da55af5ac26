"""An exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["EMA"]


class EMA:
    """Averaged weights: ``average = decay_k * average + (1 - decay_k) * weight`` after optimiser step k.

    ``decay_k = min(decay, (1 + k) / (10 + k))``, so that the random start is forgotten soon.

    Args:
        model: The model that is trained; its weights are the first average.
        decay: Final decay in [0, 1); 0 averages nothing and takes no memory: the average is the weights themselves.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: _average(p.detach(), decay) for name, p in model.named_parameters()}
        self._model = model
        self._sources = [p.detach() for p in model.parameters()]

    def decay_at(self, step: int) -> float:
        """Return the decay after optimiser step ``step`` (from 0)."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Mix in the model's weights as they are after optimiser step ``step`` (from 0)."""
        if not self.decay:
            return
        torch._foreach_lerp_(list(self.parameters.values()), self._sources, 1 - self.decay_at(step))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged parameters, and the model's buffers as they are, under the model's own keys."""
        return {**self._model.state_dict(), **self.parameters}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over averages saved by ``state_dict``."""
        for name, average in self.parameters.items():
            average.copy_(state[name])

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """Give ``model`` the averaged weights for the length of a ``with`` block."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(self.parameters[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(own[name])


def _average(weight: Tensor, decay: float) -> Tensor:
    return weight.clone().float() if decay else weight

"""Images a second and memory against batch and resolution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .contest import Contest, Setting, Thunk, filled, missing, normal
from .sizes import SIZES, config, peer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["scaling"]


def scaling(setting: Setting) -> Iterator[Contest]:
    """Calls of the small network: batches on its own grid, and grids of one image."""
    from steerdiff.models import UNet

    net = filled(UNet(config("small")), setting)
    other = filled(peer("small"), setting) if missing("diffusers") is None else None
    side = SIZES["small"].state[-1]
    for batch in setting.batches:
        yield _contest("batch", (batch, side), (net, other), setting)
    for height in setting.sides:
        yield _contest("side", (1, height), (net, other), setting)


def _contest(along: str, shape: tuple[int, int], nets: tuple[Any, Any], setting: Setting) -> Contest:
    (batch, side), (net, other) = shape, nets
    channels, (tokens, dim) = SIZES["small"].state[0], SIZES["small"].context or (0, 0)
    x, t = normal((batch, channels, side, side), setting), normal((1,), setting).abs().expand(batch) * 500
    context = normal((batch, tokens, dim), setting)

    def theirs() -> Tensor:
        out: Tensor = other(x, t, context).sample
        return out

    entries: dict[str, Thunk] = {"ours": lambda: net(x, t, context)}
    facts: dict[str, Any] = {"shape": list(x.shape), "curve": along, "at": batch if along == "batch" else side}
    if other is not None:
        entries["diffusers"] = theirs
    else:
        facts["missing"] = {"diffusers": missing("diffusers")}
    return Contest(key=f"scaling, {along} {facts['at']}", entries=entries, facts=facts, work=batch, unit="image")

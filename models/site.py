"""Where an attention stands in a UNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Kind", "Site"]

Kind = Literal["self", "cross"]


@dataclass(frozen=True)
class Site:
    """One attention of a UNet: what it attends to and where it stands."""

    name: str  #: module path, e.g. "input_blocks.1.1.transformer_blocks.0.attn2"
    kind: Kind  #: "self" over the image's own cells, "cross" over the text
    place: Literal["down", "mid", "up"]  #: part of the UNet
    factor: int  #: downsampling factor of the grid it runs on

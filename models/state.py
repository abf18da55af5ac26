"""Fill a network from a state dict in memory, whichever project named its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from steerdiff.errors import UserError

from .autoencoder import Autoencoder
from .bert_text import BertText
from .checkpoint import load_into
from .class_context import ClassContext
from .clip_text import ClipText
from .encoder_unet import EncoderUNet
from .published.assembly import blank, keymap_of
from .published.layouts import Part, recognise
from .published.spec import PublishedModel
from .unet import UNet
from .weights import WeightFile, fill

__all__ = ["load_state"]

SOURCE = "the state dict"

#: What a published model calls each of our networks.
PARTS: dict[type[nn.Module], str] = {
    UNet: "unet",
    EncoderUNet: "classifier",
    Autoencoder: "autoencoder",
    ClipText: "text",
    BertText: "text",
    ClassContext: "text",
}


def load_state(network: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Fill ``network`` from a state dict in its own layout or a published one; say what does not fit.

    The parameters stay the same objects, in their dtype and on their device. Where the state dict is a whole CompVis
    file, the network's part of it is taken.

    Args:
        network: The network to fill.
        state_dict: Tensors by name.

    Raises:
        UserError: Keys are missing, left over or of another shape.
    """
    name = PARTS.get(type(network))
    if name is None:
        load_into(network, state_dict, SOURCE)
        return
    file = WeightFile.of(state_dict, SOURCE)
    part = _part(file, name)
    config: Any = network.config
    model = PublishedModel(family="latent", **{name: config})
    stored, first = blank(model, name), next(network.parameters())
    keymap = keymap_of(model, name, part, stored)
    fill(stored, part.view(file), keymap, source=SOURCE, dtype=first.dtype, device=first.device)
    network.load_state_dict(stored.state_dict())


def _part(file: WeightFile, name: str) -> Part:
    """Return where the part ``name`` lies in ``file``, and whose names it has there; ours where nothing tells."""
    try:
        return recognise(file).parts.get(name, Part(""))
    except UserError:
        return Part("")

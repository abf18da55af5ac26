"""A Prompt-to-Prompt step beside a plain one with the same batch, and beside the controller that stores all maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .contest import Contest, Ratio, Setting, Thunk, count, filled, normal
from .sizes import SIZES, config

if TYPE_CHECKING:
    from steerdiff.models.control import AttentionEdit

__all__ = ["EDITS", "edits", "word_swap"]

EDITS = (
    Ratio(of="ours", to="plain", time=1.15, memory=1.1),
    Ratio(of="ours, local blend", to="plain", time=1.15, memory=1.1),
    Ratio(of="official controller", to="plain"),
    Ratio(of="ours, local blend", to="official controller"),
)


def edits(setting: Setting) -> Iterator[Contest]:
    """The network's part of a guided step with a source, its edit, and both without their prompts: a batch of 4."""
    for name in setting.networks:
        if SIZES[name].context is not None:
            yield _contest(name, setting)


def word_swap(tokens: int, state_cells: int, setting: Setting) -> AttentionEdit:
    """Return the edit of row 1 by row 0: words 2 and 3 swapped, one blended in half, one re-weighted, maps injected."""
    import torch

    from steerdiff.models.control import AttentionEdit

    order = [0, 1, 3, 2, *range(4, tokens)]
    blend, equalizer = torch.ones(1, tokens), torch.ones(1, tokens)
    blend[0, 4], equalizer[0, 5] = 0.5, 2.0
    return AttentionEdit(
        source=(0,),
        target=(1,),
        mapper=torch.eye(tokens)[order][None].to(setting.device),
        blend=blend.to(setting.device),
        equalizer=equalizer.to(setting.device),
        self_tokens=state_cells // 16,
    )


def _contest(name: str, setting: Setting) -> Contest:
    import torch

    from steerdiff.models import UNet
    from steerdiff.models.control import Control, Taps

    from .peers import StoreAllMaps

    channels, height, width = SIZES[name].state
    tokens, dim = SIZES[name].context or (0, 0)
    net = filled(UNet(config(name)), setting)
    x, t = normal((4, channels, height, width), setting), normal((1,), setting).abs().expand(4) * 500
    context = normal((4, tokens, dim), setting)
    words = torch.eye(tokens)[[2]].expand(2, 1, tokens).to(setting.device)
    cells = (height // 4, width // 4)

    def edited() -> Any:
        return net(x, t, context, control=Control(edit=word_swap(tokens, height * width, setting)))

    def blended() -> Any:
        taps = Taps(weights=words, cells=cells)
        out = net(x, t, context, control=Control(edit=word_swap(tokens, height * width, setting), taps=taps))
        return out, taps.averaged()

    def official() -> Any:
        control = StoreAllMaps(edit=word_swap(tokens, height * width, setting), prompts=2)
        out = net(x, t, context, control=control)
        control.between_steps()
        return out, control.local_blend(words, cells[0] * cells[1])

    entries: dict[str, Thunk] = {
        "plain": lambda: net(x, t, context),
        "ours": edited,
        "ours, local blend": blended,
        "official controller": official,
    }
    facts = {"shape": list(x.shape), "parameters": {"ours": count(net)}}
    return Contest(key=f"Prompt-to-Prompt, {name}", entries=entries, ratios=EDITS, facts=facts, work=4, unit="image")

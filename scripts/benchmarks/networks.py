"""One call of a UNet, and one call with its gradients, beside other libraries at the same size."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .contest import Contest, Ratio, Setting, Thunk, count, filled, missing, no_bfloat16, normal
from .sizes import SIZES, config, peer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Inputs = tuple[Tensor, Tensor, Tensor | None]

__all__ = ["FORWARD", "TRAINING", "backward", "forward"]

FORWARD = (
    Ratio(of="ours", to="diffusers", time=1.0),
    Ratio(of="ours", to="attention written out", time=1.0),
    Ratio(of="ours, channels last", to="ours"),
    Ratio(of="ours, bfloat16", to="ours", time=1.0),
    Ratio(of="ours, bfloat16", to="diffusers, bfloat16", time=1.0),
)
TRAINING = (
    Ratio(of="ours", to="diffusers", time=1.0),
    Ratio(of="ours", to="attention written out", time=1.0),
    Ratio(of="ours, channels last", to="ours"),
)


def forward(setting: Setting) -> Iterator[Contest]:
    """One call without gradients, one image."""
    for name in setting.networks:
        yield _forward(name, setting)


def backward(setting: Setting) -> Iterator[Contest]:
    """One call and the gradients of all parameters, one image."""
    for name in setting.networks:
        yield _backward(name, setting)


def _forward(name: str, setting: Setting) -> Contest:
    import torch

    from steerdiff.models import UNet

    from .peers import WrittenOut

    inputs = _inputs(name, SIZES[name].state, setting)
    net = filled(UNet(config(name)), setting)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    ordered = _channels_last(inputs())
    x, t, context = inputs()
    entries: dict[str, Thunk] = {
        "ours": lambda: net(x, t, context),
        "ours, channels last": lambda: last(*ordered),
        "attention written out": lambda: net(x, t, context, control=WrittenOut()),
    }
    facts: dict[str, Any] = {"shape": list(x.shape), "parameters": {"ours": count(net)}, "missing": {}}
    absent, no_brain = missing("diffusers"), no_bfloat16(setting.device)
    other = filled(peer(name), setting) if absent is None else None
    if other is not None:
        entries["diffusers"] = lambda: _called(other, x, t, context)
        facts["parameters"]["diffusers"] = count(other)
    else:
        facts["missing"]["diffusers"] = absent
    for who, whole in (("ours", net), ("diffusers", other)):
        if whole is not None and no_brain is None:
            entries[f"{who}, bfloat16"] = _brain(who, whole, inputs(torch.bfloat16))
        else:
            facts["missing"][f"{who}, bfloat16"] = no_brain or absent
    return Contest(key=f"forward, {name}", entries=entries, ratios=FORWARD, facts=facts, unit="image")


def _brain(who: str, net: Any, inputs: Inputs) -> Thunk:
    """Return a call of the network in bfloat16."""
    import torch

    narrow = copy.deepcopy(net).to(torch.bfloat16)
    return (lambda: narrow(*inputs)) if who == "ours" else (lambda: _called(narrow, *inputs))


def _backward(name: str, setting: Setting) -> Contest:
    import torch

    from steerdiff.models import UNet

    from .peers import WrittenOut

    x, t, context = _inputs(name, SIZES[name].trained, setting)()
    net = filled(UNet(config(name)), setting, grad=True)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    ordered = _channels_last((x, t, context))
    entries: dict[str, Thunk] = {
        "ours": lambda: _trained(net, net(x, t, context)),
        "ours, channels last": lambda: _trained(last, last(*ordered)),
        "attention written out": lambda: _trained(net, net(x, t, context, control=WrittenOut())),
    }
    facts: dict[str, Any] = {"shape": list(x.shape), "parameters": {"ours": count(net)}}
    absent = missing("diffusers")
    if absent is None:
        other = filled(peer(name), setting, grad=True)
        entries["diffusers"] = lambda: _trained(other, _called(other, x, t, context))
        facts["parameters"]["diffusers"] = count(other)
    else:
        facts["missing"] = {"diffusers": absent}
    return Contest(
        key=f"forward and backward, {name}", entries=entries, ratios=TRAINING, facts=facts, unit="image", grad=True
    )


def _inputs(name: str, state: tuple[int, int, int], setting: Setting) -> Callable[..., Inputs]:
    """Return what makes x, t and the text states (or None), in the setting's floating type or in another."""

    def make(dtype: torch.dtype | None = None) -> Inputs:
        x, t = normal((1, *state), setting, dtype), normal((1,), setting, dtype).abs() * 500
        words = SIZES[name].context
        return x, t, None if words is None else normal((1, *words), setting, dtype)

    return make


def _channels_last(inputs: Inputs) -> Inputs:
    import torch

    x, t, context = inputs
    return x.to(memory_format=torch.channels_last), t, context


def _called(net: Any, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
    """Call a network of diffusers."""
    out: Tensor = (net(x, t) if context is None else net(x, t, context)).sample
    return out


def _trained(net: Any, out: Tensor) -> None:
    """Compute the gradients of all parameters and forget them, so that entries do not hold memory for each other."""
    out.square().mean().backward()  # type: ignore[no-untyped-call]
    net.zero_grad(set_to_none=True)

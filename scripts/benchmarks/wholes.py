"""Whole guided samples, from noise to the last state, beside diffusers'; both also compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .contest import Contest, Ratio, Setting, Thunk, count, filled, missing, normal, uncompiled
from .sizes import SIZES, config, peer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["WHOLES", "wholes"]

WHOLES = (
    Ratio(of="ours", to="diffusers", time=1.0),
    Ratio(of="ours, compiled", to="diffusers, compiled", time=1.0),
    Ratio(of="ours, compiled", to="ours"),
)
STEPS = 20
SCALE = 7.5


def wholes(setting: Setting) -> Iterator[Contest]:
    """One image by DPM-Solver++(2M) in 20 guided steps, both branches in one batch, of each network with text."""
    for name in setting.networks:
        if SIZES[name].context is not None:
            yield _contest(name, setting)


def _contest(name: str, setting: Setting) -> Contest:
    from steerdiff.models import UNet

    words, width = SIZES[name].context or (0, 0)
    x, context = normal((1, *SIZES[name].state), setting), normal((2, words, width), setting)
    net = filled(UNet(config(name)), setting)
    entries: dict[str, Thunk] = {}
    facts: dict[str, Any] = {"shape": list(x.shape), "parameters": {}, "missing": {}}
    absent, slow = missing("diffusers"), uncompiled(setting.device)
    other = filled(peer(name), setting) if absent is None else None
    for who, whole, make in (("ours", net, _ours), ("diffusers", other, _theirs)):
        if whole is None:
            facts["missing"] |= {who: absent, f"{who}, compiled": slow or absent}
            continue
        entries[who] = make(whole, x, context)
        facts["parameters"][who] = count(whole)
        if slow is None:
            entries[f"{who}, compiled"] = make(_compiled(whole, setting.device), x, context)
        else:
            facts["missing"][f"{who}, compiled"] = slow
    return Contest(key=f"whole sample, {name}", entries=entries, ratios=WHOLES, facts=facts, unit="image")


def _compiled(net: Any, device: torch.device) -> Callable[..., Any]:
    """Return the network compiled; on a GPU a copy in channels-last order, of the fastest kernels, in a CUDA graph.

    Projections to queries, keys and values become one in diffusers' network, as its guide to fast inference has it.
    """
    import torch

    mode = "default"
    if device.type == "cuda":
        net, mode = copy.deepcopy(net).to(memory_format=torch.channels_last), "max-autotune"
        if hasattr(net, "fuse_qkv_projections"):
            net.fuse_qkv_projections()
    run: Any = torch.compile(net, mode=mode, fullgraph=True)

    def call(*inputs: Any, **named: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return run(*inputs, **named)

    return call


def _ours(network: Callable[..., Tensor], x: Tensor, context: Tensor) -> Thunk:
    from steerdiff.guidance import ClassifierFree, Condition
    from steerdiff.samplers import DPMSolver2M, NetworkDenoiser, NoiseSchedule, Path, integrate

    cond, uncond = Condition(context=context[:1]), Condition(context=context[1:])
    guided = ClassifierFree(network=network, cond=cond, uncond=uncond, scale=SCALE)
    denoise = NetworkDenoiser(network=guided, dtype=x.dtype)
    path = Path.spaced(NoiseSchedule.scaled_linear(), STEPS)
    return lambda: integrate(denoise, DPMSolver2M(), path, x)


def _theirs(network: Callable[..., Any], x: Tensor, context: Tensor) -> Thunk:
    """Return the loop of diffusers' pipeline around its network and scheduler."""
    import torch
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    ordered = context.flip(0)  # it has the branch without the prompt first

    def run() -> Tensor:
        scheduler.set_timesteps(STEPS, device=x.device)
        state = x
        for t in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([state] * 2), t)
            uncond, cond = network(both, t, ordered, return_dict=False)[0].chunk(2)
            state = scheduler.step(uncond + SCALE * (cond - uncond), t, state, return_dict=False)[0]
        return state

    return run

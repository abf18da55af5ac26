"""What ``steerdiff bench`` times: each case is ours and, where they are installed, others doing the same."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["CASES", "Contest", "Thunk"]

#: Does the work once.
Thunk = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """The same work done by us and by others."""

    name: str  #: what is timed, with its sizes
    entries: dict[str, Thunk]  #: "ours" first, then the others by name
    facts: dict[str, Any] = field(default_factory=dict)  #: sizes, parameter counts, what is missing
    work: float = 1.0  #: images (or steps) of one call, for the rate
    unit: str = "call"  #: what ``work`` counts


def attention(device: torch.device, dtype: torch.dtype) -> Iterator[Contest]:
    """The attention op at the sizes of the shipped model and of Stable Diffusion, beside softmax written out."""
    import torch

    from steerdiff.models.attention import attend
    from steerdiff.models.control import Site

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(-1, -2) * float(q.shape[-1]) ** -0.5, dim=-1) @ v

    sizes = {
        "emoji64 self 8x8": (8, 4, 64, 64, 48),
        "emoji64 cross 16x16": (8, 4, 256, 24, 24),
        "sd15 self 64x64": (2, 8, 4096, 4096, 40),
        "sd15 cross 64x64": (2, 8, 4096, 77, 40),
    }
    for name, (b, heads, n, length, d) in sizes.items():
        if device.type == "cpu" and n * length > 2**22:
            continue
        q = _normal((b, heads, n, d), device, dtype)
        k, v = _normal((b, heads, length, d), device, dtype), _normal((b, heads, length, d), device, dtype)
        site = Site(name=name, kind="self" if n == length else "cross", place="down", factor=1)
        entries: dict[str, Thunk] = {
            "ours": partial(attend, q, k, v, None, site, None),
            "softmax written out": partial(plain, q, k, v),
        }
        yield Contest(name=f"attention, {name}", entries=entries, facts={"shape": [b, heads, n, length, d]})


def network(device: torch.device, dtype: torch.dtype) -> Iterator[Contest]:
    """One call of a UNet of Stable Diffusion's form, a fifth of its width, beside diffusers' of the same sizes."""
    from steerdiff.models import UNet, UNetConfig

    config = UNetConfig(
        in_channels=4,
        out_channels=4,
        model_channels=64,
        channel_mult=(1, 2, 4, 4),
        num_res_blocks=2,
        attention_at=(1, 2, 4),
        num_heads=8,
        context_dim=256,
    )
    net = UNet(config).to(device, dtype).eval().requires_grad_(False)
    x, t = _normal((2, 4, 32, 32), device, dtype), _normal((2,), device, dtype).abs() * 500
    context = _normal((2, 77, 256), device, dtype)
    entries: dict[str, Thunk] = {"ours": lambda: net(x, t, context)}
    facts: dict[str, Any] = {"parameters": {"ours": _count(net)}}
    if _installed("diffusers"):
        from diffusers import UNet2DConditionModel

        peer = UNet2DConditionModel(
            sample_size=32,
            block_out_channels=(64, 128, 256, 256),
            cross_attention_dim=256,
            attention_head_dim=8,
        )
        peer = peer.to(device, dtype).eval().requires_grad_(False)
        entries["diffusers"] = lambda: peer(x, t, context).sample
        facts["parameters"]["diffusers"] = _count(peer)
    else:
        facts["missing"] = "diffusers; pip install 'steerdiff[bench]'"
    yield Contest(name="UNet call, SD form, 64 wide, 2 x 32 x 32", entries=entries, facts=facts)


def loop(device: torch.device, dtype: torch.dtype) -> Iterator[Contest]:
    """What 50 steps of DDIM cost besides the network, with a network that does nothing."""
    import torch

    from steerdiff.samplers import DDIM, NetworkDenoiser, Noise, NoiseSchedule, Path, integrate

    steps, shape = 50, (4, 4, 64, 64)
    schedule = NoiseSchedule.scaled_linear()
    x = _normal(shape, device, torch.float32)
    out = torch.zeros_like(x)
    denoise = NetworkDenoiser(network=lambda x, t: out, parameterization="eps")
    path = Path.spaced(schedule, steps)

    def ours() -> Tensor:
        return integrate(denoise, DDIM(), path, x, noise=Noise(0, like=x))

    entries: dict[str, Thunk] = {"ours": ours}
    facts: dict[str, Any] = {"shape": list(shape)}
    if _installed("diffusers"):
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
        scheduler.set_timesteps(steps, device=device)

        def theirs() -> Tensor:
            state = x
            for t in scheduler.timesteps:
                state = scheduler.step(out, t, state).prev_sample
            return state

        entries["diffusers"] = theirs
    else:
        facts["missing"] = "diffusers; pip install 'steerdiff[bench]'"
    yield Contest(name="loop of 50 DDIM steps without a network", entries=entries, facts=facts, work=50, unit="step")


def sampling(device: torch.device, dtype: torch.dtype) -> Iterator[Contest]:
    """Images a second of the shipped model, 25 steps with guidance."""
    from steerdiff.errors import UserError
    from steerdiff.guidance.loading import load_model

    try:
        model = load_model("emoji64", device=device, dtype=dtype)
    except UserError:  # a checkout without the shipped weights
        return
    n = 8 if device.type == "cpu" else 64
    prompts = ["a flat apple on a blue background"] * n

    def ours() -> Tensor:
        return model.sample(prompts, steps=25, guidance=3.0, seed=0, batch=n)

    facts = {"batch": n, "steps": 25, "sha256": model.weights_hash}
    yield Contest(name=f"samples of emoji64, batch {n}", entries={"ours": ours}, facts=facts, work=n, unit="image")


#: Groups of cases by name; each yields contests for a device and a floating type.
CASES: dict[str, Callable[[torch.device, torch.dtype], Iterator[Contest]]] = {
    "attention": attention,
    "network": network,
    "loop": loop,
    "sampling": sampling,
}


def _normal(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None

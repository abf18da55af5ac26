"""The attention op alone, and whole samples of the shipped model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from .contest import Contest, Ratio, Setting, Thunk, normal

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ATTENTION", "SHAPES", "attention", "sampling"]

ATTENTION = (Ratio(of="ours", to="written out", time=1.0),)
#: Rows, heads, cells, keys and the size of a head, by name.
SHAPES: dict[str, tuple[int, int, int, int, int]] = {
    "emoji64 self 8x8": (8, 4, 64, 64, 48),
    "emoji64 cross 16x16": (8, 4, 256, 24, 24),
    "sd15 self 64x64": (2, 8, 4096, 4096, 40),
    "sd15 cross 64x64": (2, 8, 4096, 77, 40),
    "adm-64 self 32x32, with gradients": (1, 6, 1024, 1024, 64),
    "adm-64 self 16x16, with gradients": (1, 9, 256, 256, 64),
}
_OF_NETWORKS = {"sd15": "sd-1.5", "adm-64": "adm-64"}  # shapes that are timed where their network is


def attention(setting: Setting) -> Iterator[Contest]:
    """The attention op at sizes of the shipped model and of the networks that are timed, beside whole maps."""
    from steerdiff.models.attention import attend
    from steerdiff.models.control import Site

    from .peers import written_out_maps

    def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return written_out_maps(q, k, None) @ v

    for name, (rows, heads, cells, keys, d) in SHAPES.items():
        if any(name.startswith(start) and size not in setting.networks for start, size in _OF_NETWORKS.items()):
            continue
        grad = "gradients" in name
        q = normal((rows, heads, cells, d), setting).requires_grad_(grad)
        k, v = (normal((rows, heads, keys, d), setting).requires_grad_(grad) for _ in range(2))
        site = Site(name=name, kind="self" if cells == keys else "cross", place="down", factor=1)
        entries: dict[str, Thunk] = {
            "ours": partial(attend, q, k, v, None, site, None),
            "written out": partial(written_out, q, k, v),
        }
        if grad:
            entries = {who: partial(_gradients, call, (q, k, v)) for who, call in entries.items()}
        facts = {"shape": list(SHAPES[name])}
        yield Contest(key=f"attention, {name}", entries=entries, ratios=ATTENTION, facts=facts, grad=grad)


def _gradients(call: Thunk, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the gradients of the mean square of what ``call`` computes from ``inputs``."""
    import torch

    return torch.autograd.grad(call().square().mean(), inputs)


def sampling(setting: Setting) -> Iterator[Contest]:
    """Images a second of the shipped model, 25 steps with guidance."""
    from steerdiff.errors import UserError
    from steerdiff.guidance.loading import load_model

    try:
        model = load_model("emoji64", device=setting.device, dtype=setting.dtype)
    except UserError:  # a checkout without the shipped weights
        return
    n = 8 if setting.device.type == "cpu" else 64
    prompts = ["a flat apple on a blue background"] * n

    def ours() -> Tensor:
        return model.sample(prompts, steps=25, guidance=3.0, seed=0, batch=n)

    facts = {"batch": n, "steps": 25, "sha256": model.weights_hash}
    yield Contest(key=f"samples of emoji64, batch {n}", entries={"ours": ours}, facts=facts, work=n, unit="image")

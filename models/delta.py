"""Deltas: what fine-tuning changed in a model's weights, or added to them, as a small file that names its base."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from steerdiff.errors import UserError, require

from .checkpoint import read_header, read_safetensors, save_safetensors

__all__ = ["Delta", "apply_delta", "compressed", "load_delta", "make_delta", "save_delta"]

KIND = "delta"
Form = Literal["difference", "low-rank", "added"]
_PARTS = {"difference": ("",), "low-rank": (".left", ".right"), "added": ("",)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Delta:
    """What tuning did to the weights of one base model."""

    base: str  #: identity of the base's weights, such as ``Model.weights_hash``
    method: str  #: command name of the method that tuned
    settings: Mapping[str, Any] = field(default_factory=dict)  #: what it was tuned with, JSON-able
    tensors: Mapping[str, Tensor] = field(default_factory=dict)  #: as stored: float16, of largest size 1
    forms: Mapping[str, Form] = field(
        default_factory=dict
    )  #: of each weight: tuned minus base; the same as two factors; or a weight that the base has not
    scales: Mapping[str, float] = field(default_factory=dict)  #: factor on each weight's tensors
    error: float = 0.0  #: what storing lost of all changes together, relative (2-norms): by rounding and by rank
    rank: int | None = None  #: of the low-rank forms

    def change(self, name: str) -> Tensor:
        """Return what is to be added to weight ``name``, float32; of an added one, the weight itself."""
        parts = [self.tensors[name + part].float() for part in _PARTS[self.forms[name]]]
        if self.forms[name] == "low-rank":
            left, right = parts
            return self.scales[name] * (left @ right)
        return self.scales[name] * parts[0]

    def added(self) -> dict[str, Tensor]:
        """Return the weights that the base has not, float32 by name."""
        return {name: self.change(name) for name, form in self.forms.items() if form == "added"}


def make_delta(
    base_weights: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    *,
    base: str,
    method: str,
    settings: Mapping[str, Any] | None = None,
    rank: int | None = None,
) -> Delta:
    """Compare tuned weights with those they started from; what did not change is left out.

    Args:
        base_weights: The weights before, by name; without those that tuning added (all of a network beside the model).
        tuned: The weights after.
        base: Identity of the base's weights.
        method: Command name of the method.
        settings: What it was tuned with, JSON-able.
        rank: Store the change of each matrix (of a convolution: rows by output channel) as two factors of this rank,
            by SVD, where that is smaller; None stores it whole.

    Raises:
        UserError: A rank below 1, or a weight of another shape than before.
    """

    def changes() -> Iterator[tuple[str, Tensor, bool]]:
        for name, value in tuned.items():
            change, added = value.detach().double().cpu(), name not in base_weights
            if not added:
                same = base_weights[name].shape == value.shape
                require(same, f"{name} was {list(base_weights[name].shape)} and is {list(value.shape)} after tuning")
                change = change - base_weights[name].detach().double().cpu()
            yield name, change, added

    empty = Delta(base=base, method=method, settings=dict(settings or {}))
    return _packed(empty, changes(), rank)


def compressed(delta: Delta, rank: int) -> Delta:
    """Return a delta whose matrices are two factors of ``rank`` where that is smaller, with the error it then has.

    Raises:
        UserError: A rank below 1.
    """
    changes = ((name, delta.change(name).double(), form == "added") for name, form in delta.forms.items())
    packed = _packed(delta, changes, rank)
    return replace(packed, error=math.hypot(packed.error, delta.error))


def _packed(like: Delta, changes: Iterable[tuple[str, Tensor, bool]], rank: int | None) -> Delta:
    """Return a delta of (name, change in float64, whether it is a weight that the base has not)."""
    require(rank is None or rank >= 1, f"rank is {rank}; it must be at least 1, or none for the whole change")
    tensors: dict[str, Tensor] = {}
    forms: dict[str, Form] = {}
    scales: dict[str, float] = {}
    lost, total = 0.0, 0.0
    for name, change, added in changes:
        if not added and not change.any():
            continue
        forms[name], parts, scales[name] = _stored(change, rank, added=added)
        tensors |= {name + suffix: part for suffix, part in zip(_PARTS[forms[name]], parts, strict=True)}
        kept = parts[0].double() if len(parts) == 1 else parts[0].double() @ parts[1].double()
        lost += float((change - scales[name] * kept.reshape(change.shape)).square().sum())
        total += float(change.square().sum())
    error = math.sqrt(lost / total) if total else 0.0
    return replace(like, tensors=tensors, forms=forms, scales=scales, error=error, rank=rank)


def _stored(change: Tensor, rank: int | None, *, added: bool) -> tuple[Form, list[Tensor], float]:
    """Return the form, the tensors in float16 and their factor, of one change in float64."""
    if rank is not None and change.ndim >= 2 and not added:
        rows = change.flatten(1)
        if rank * sum(rows.shape) < rows.numel():
            u, s, v = torch.linalg.svd(rows, full_matrices=False)
            root = s[:rank].sqrt()
            left, right = u[:, :rank] * root, root[:, None] * v[:rank]
            sizes = float(left.abs().max()), float(right.abs().max())
            return "low-rank", [(left / sizes[0]).half(), (right / sizes[1]).half()], sizes[0] * sizes[1]
    scale = float(change.abs().max()) or 1.0
    return "added" if added else "difference", [(change / scale).half()], scale


def apply_delta(module: nn.Module, delta: Delta, base: str) -> None:
    """Add the changes to ``module``, in place and in its own type; weights that the base has not are left to others.

    Args:
        module: The network with the base's weights.
        delta: What tuning changed.
        base: Identity of the module's weights.

    Raises:
        UserError: The delta is of other weights, or names some that the module has not, or has in another shape.
    """
    check_base(delta, base)
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    changes = [name for name, form in delta.forms.items() if form != "added"]
    unknown = [name for name in changes if name not in own]
    require(not unknown, f"the delta changes {', '.join(unknown[:3])}, which the network has not; fetch it again")
    with torch.no_grad():
        for name in changes:
            change, target = delta.change(name), own[name]
            fits = change.numel() == target.numel()
            require(fits, f"the delta's {name} does not have the network's shape {list(target.shape)}; fetch it again")
            target.copy_((target.float() + change.reshape(target.shape).to(target.device)).to(target.dtype))


def check_base(delta: Delta, base: str) -> None:
    """Raise UserError if ``delta`` was made from other weights than those with identity ``base``."""
    require(
        delta.base == base,
        f"the delta was tuned from weights {delta.base[:12]} and this model has {base[:12]}; load the model it was "
        "tuned from, or tune again",
    )


def save_delta(path: str | os.PathLike[str], delta: Delta) -> Path:
    """Write a delta; the old file stays whole until the new one is. Returns the path.

    Raises:
        UserError: The folder is missing or not writable, or the disk is full.
    """
    header = {
        "kind": KIND,
        "base": delta.base,
        "method": delta.method,
        "settings": dict(delta.settings),
        "forms": dict(delta.forms),
        "scales": dict(delta.scales),
        "error": delta.error,
        "rank": delta.rank,
    }
    save_safetensors(path, delta.tensors, header)
    return Path(path)


def load_delta(path: str | os.PathLike[str]) -> Delta:
    """Read what `save_delta` wrote.

    Raises:
        UserError: The file is missing, damaged, or holds something else.
    """
    header = read_header(path)
    kind = header.get("kind")
    require(kind == KIND, f"{path} holds a model of kind '{kind}' and no delta; give what steerdiff finetune wrote")
    tensors = read_safetensors(path)
    try:
        delta = Delta(tensors=tensors, **{name: value for name, value in header.items() if name not in _OTHER})
    except TypeError as error:
        raise UserError(f"{path} has a damaged header ({error}); tune again") from error
    parts = {name + part for name, form in delta.forms.items() for part in _PARTS.get(form, ("?",))}
    whole = parts == set(tensors) and set(delta.forms) == set(delta.scales)
    require(whole, f"{path} does not hold the tensors that its header names; tune again")
    return delta


_OTHER = ("kind", "format")

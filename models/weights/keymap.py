"""How tensors under published names become ours and back, and filling a network from a file by such a map."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from steerdiff.errors import require

from .reader import WeightFile

__all__ = ["KeyMap", "Origin", "check_fit", "fill", "identity", "published_tensors", "read_ours"]

#: "same": as it is. The others lay the published tensors one below the other along dimension 0 (mostly there is one):
#: "concat" of equal rank, "from_conv" of 1x1 convolutions [O, I, 1, 1], "from_linear" of linear maps [O, I], to be
#: a weight of another rank. "transpose": [I, O].
Op = Literal["same", "concat", "from_conv", "from_linear", "transpose"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Origin:
    """The published tensors that one of ours is made of, and how. Every op loses nothing and has an inverse."""

    names: tuple[str, ...]  #: published names, in order
    op: Op = "same"  #: how they become ours

    def shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """Return the shapes that the published tensors have when ours has ``shape``."""
        rows = shape[0] // len(self.names) if shape else 0
        if self.op == "same":
            return (shape,)
        if self.op == "transpose":
            return (shape[::-1],)
        tail = {"concat": shape[1:], "from_conv": (*shape[1:2], 1, 1), "from_linear": shape[1:2]}[self.op]
        return tuple((rows, *tail) for _ in self.names)

    def forward(self, parts: Sequence[Tensor], shape: Shape) -> Tensor:
        """Return our tensor of ``shape`` made of the published ``parts``, without a copy where there is one part."""
        if self.op == "same":
            return parts[0]
        if self.op == "transpose":
            return parts[0].T.contiguous()
        whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        return whole.reshape(shape)

    def backward(self, ours: Tensor) -> tuple[Tensor, ...]:
        """Return the published tensors that ours is made of, in the order of ``names``."""
        if self.op == "same":
            return (ours,)
        if self.op == "transpose":
            return (ours.T.contiguous(),)
        pairs = zip(ours.chunk(len(self.names)), self.shapes(tuple(ours.shape)), strict=True)
        return tuple(part.reshape(shape) for part, shape in pairs)


#: The origin of each of our tensors, by our name.
KeyMap = Mapping[str, Origin]


def identity(keys: Iterable[str], prefix: str = "") -> dict[str, Origin]:
    """Return the map of a layout whose names are ours after ``prefix``."""
    return {key: Origin((prefix + key,)) for key in keys}


def fill(
    module: nn.Module,
    file: WeightFile,
    keymap: KeyMap | None = None,
    *,
    source: str,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> None:
    """Give ``module``, built on the meta device, its weights from ``file``, one tensor at a time.

    Nothing is read before every name and shape is known to fit.

    Args:
        module: The network; its parameters and buffers are replaced.
        file: What is to be used up: the caller has left out what may be ignored.
        keymap: Where each of our tensors comes from; None where the names are ours.
        source: What to call the file in errors.
        dtype: Of floating-point tensors; others keep their own.
        device: Where the weights go.

    Raises:
        UserError: Tensors are missing, left over, of another shape or type; the message names a few of each.
    """
    own = module.state_dict(keep_vars=True)
    keymap = identity(own) if keymap is None else keymap
    check_fit(own, file, keymap, source=source)
    for key, old in own.items():
        tensor = read_ours(file, keymap[key], tuple(old.shape))
        tensor = tensor.to(device, dtype if old.is_floating_point() else old.dtype)
        owner, _, leaf = key.rpartition(".")
        trained = isinstance(old, nn.Parameter)
        setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor, old.requires_grad) if trained else tensor)


def read_ours(file: WeightFile, origin: Origin, shape: Shape) -> Tensor:
    """Read the tensors of ``origin`` from ``file`` and return ours, of ``shape``, in the dtype of the file."""
    return origin.forward([file.read(name) for name in origin.names], shape)


def published_tensors(tensors: Mapping[str, Tensor], keymap: KeyMap) -> Iterator[tuple[str, Tensor]]:
    """Yield the published tensors that our ``tensors`` are made of, by name: the inverse of reading by ``keymap``.

    Args:
        tensors: Ours by name; each is asked for once, so that a lazy mapping never holds more than one.
        keymap: The origin of each of ours.
    """
    for key, origin in keymap.items():
        yield from zip(origin.names, origin.backward(tensors[key]), strict=True)


def check_fit(own: Mapping[str, Tensor], file: WeightFile, keymap: KeyMap, *, source: str) -> None:
    """Check names, shapes and kinds of number, as `fill` does before it reads anything.

    Args:
        own: The state dict of the network, which may be without memory.
        file: What is to be used up.
        keymap: Where each of our tensors comes from.
        source: What to call the file in errors.

    Raises:
        UserError: Tensors are missing, left over, of another shape or type; the message names a few of each.
    """
    used = {name for key in own if key in keymap for name in keymap[key].names}
    missing = [key for key in own if key not in keymap] + [name for name in used if name not in file.entries]
    left_over = [name for name in file.entries if name not in used]
    shapes, kinds = [], []
    for key, tensor in own.items():
        origin = keymap.get(key)
        if origin is None:
            continue
        for name, expected in zip(origin.names, origin.shapes(tuple(tensor.shape)), strict=True):
            entry = file.entries.get(name)
            if entry is not None and tuple(entry.shape) != expected:
                shapes.append(f"{name} is {list(entry.shape)}, expected {list(expected)}")
            elif entry is not None and tensor.is_floating_point() != entry.dtype.is_floating_point:
                kinds.append(f"{name} is {str(entry.dtype).removeprefix('torch.')}")
    found = (
        ("missing", sorted(missing)),
        ("left over", left_over),
        ("of another shape", shapes),
        ("of another type", kinds),
    )
    problems = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in found
        if names
    ]
    require(not problems, f"{source} does not fit this architecture: {'; '.join(problems)}")

"""Files of weights made on the spot, good and bad, for the tests of the readers."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

__all__ = ["SAVERS", "Tree", "archive", "pickled", "safetensors_file", "stream", "tensor_pickle", "torchscript"]

Saver = Callable[[Mapping[str, Tensor], Path], None]


class Leaf(nn.Module):
    """Parameters, buffers, a plain tensor attribute (no weight), and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.gain = nn.Parameter(torch.arange(4, dtype=torch.float16))
        self.register_buffer("steps", torch.tensor(7))
        self.mask = torch.ones(2, 2)
        self.width = 3

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) @ self.mask + self.gain.sum() + self.steps


class Tree(nn.Module):
    """Modules in modules, as CLIP's archive has them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Leaf(), nn.Linear(2, 3), Leaf())
        self.scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x) * self.scale


class Holder(nn.Module):
    """Any tensors as parameters and buffers, for TorchScript."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return x


def torchscript(module: nn.Module, path: Path, example: Tensor | None = None) -> None:
    """Save ``module`` as a TorchScript archive, traced where there is an example."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.script(module) if example is None else torch.jit.trace(module, example)
        made.save(str(path))


SAVERS: dict[str, Saver] = {
    "safetensors": lambda tensors, path: save_file({k: v.contiguous() for k, v in tensors.items()}, path),
    "archive": lambda tensors, path: torch.save(dict(tensors), path),
    "stream": lambda tensors, path: torch.save(dict(tensors), path, _use_new_zipfile_serialization=False),
    "torchscript": lambda tensors, path: torchscript(Holder(tensors), path),
}


def pickled(body: bytes) -> bytes:
    """A pickle of protocol 2 with this body."""
    return b"\x80\x02" + body + b"."


def stream(data: bytes, keys: list[str] | None = None, numbers: bytes = b"") -> bytes:
    """A file of PyTorch before 1.6 whose objects are the pickle ``data``."""
    start = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    head = b"".join(pickle.dumps(item, 2) for item in start)
    return head + data + pickle.dumps(keys or [], 2) + numbers


def archive(path: Path, data: bytes, entries: Mapping[str, bytes] | None = None, **options: Any) -> Path:
    """A zip archive such as torch.save writes, with this data.pkl and entries beside it."""
    with zipfile.ZipFile(path, "w", options.get("method", zipfile.ZIP_STORED)) as file:
        for name, content in {"data.pkl": data, **(entries or {})}.items():
            file.writestr(f"w/{name}", content)
    return path


def tensor_pickle(
    shape: tuple[int, ...], stride: tuple[int, ...], *, offset: int = 0, numel: int = 4, names: int = 1, key: str = "0"
) -> bytes:
    """A data.pkl of {"n0": tensor, ...}, all views of the float32 storage ``key``, with any claims about it."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def number(value: int) -> bytes:
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(numel) + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(shape) + numbers(stride)
    tensor += b"\x89" + hooks + b"tR"
    return pickled(b"}(" + b"".join(text(f"n{i}") + tensor for i in range(names)) + b"u")


def safetensors_file(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with any header, and any claim of its length."""
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path

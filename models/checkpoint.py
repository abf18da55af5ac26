"""The library's own weights format: safetensors with the model's configuration in the header. No code is ever run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from steerdiff.errors import UserError, require

from .weights.keymap import check_fit, identity
from .weights.reader import WeightFile
from .weights.safetensors_file import open_safetensors

__all__ = ["FORMAT", "file_hash", "hash_of", "load_into", "read_header", "read_safetensors", "save_safetensors"]

FORMAT = 1


def save_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write ``tensors`` and the JSON-able ``header`` to ``path``: the old file stays whole until the new one is.

    Raises:
        UserError: The folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    text = json.dumps({"format": FORMAT, **header}, sort_keys=True)
    data = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    try:
        save_file(data, temporary, metadata={"steerdiff": text})
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)  # safetensors makes it readable by its owner only
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written ({error}); check that its folder exists and has space") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the configuration stored in the header of ``path``.

    Raises:
        UserError: The file is missing, is not safetensors, or was not written by this library.
    """
    text = open_safetensors(Path(path)).metadata.get("steerdiff")
    if text is None:
        raise UserError(f"{path} holds no steerdiff header; it was written by another program")
    try:
        header = json.loads(text)
        version = header["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} has a damaged steerdiff header ({error}); fetch the file again") from error
    require(version == FORMAT, f"{path} has format {version}; this version of steerdiff reads format {FORMAT}")
    return dict(header)


def read_safetensors(path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Return all tensors of ``path`` by name, on ``device``, in the dtype they are stored in.

    Raises:
        UserError: The file is missing, truncated or not safetensors.
    """
    file = open_safetensors(Path(path))
    return {name: file.read(name).to(device) for name in file.entries}


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Fill ``module`` from ``tensors``; every key and shape must fit.

    Args:
        module: The module to fill, in its own dtype and on its own device.
        tensors: Tensors by name.
        source: Where they come from, for the error.

    Raises:
        UserError: Keys are missing, left over, of another shape or type; the message names a few of each.
    """
    own = module.state_dict()
    check_fit(own, WeightFile.of(tensors, source), identity(own), source=source)
    module.load_state_dict(dict(tensors))


def file_hash(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def hash_of(files: Sequence[Path]) -> str | None:
    """SHA-256 of a file, or of the hashes of several in their order; None without one."""
    if not files:
        return None
    hashes = [file_hash(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

"""What the methods that tune first share: a cache of what they tuned and computed, and models with a delta."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from steerdiff.errors import UserError, require, warn
from steerdiff.guidance import Model
from steerdiff.guidance.loading import locate
from steerdiff.guidance.prompts import TextEncoder
from steerdiff.io import cache_folder, ensure_writable
from steerdiff.models.checkpoint import read_header, read_safetensors, save_safetensors
from steerdiff.models.clip import Clip
from steerdiff.models.delta import Delta, apply_delta, check_base, load_delta, make_delta, save_delta
from steerdiff.models.new_words import new_rows, with_words
from steerdiff.models.text import WordEncoder
from steerdiff.train.data import Dataset
from steerdiff.train.finetune import FinetuneConfig, finetune
from steerdiff.train.loop import LossFn

__all__ = [
    "cache_key",
    "cached_delta",
    "cached_tensors",
    "copy_of",
    "descend",
    "digest",
    "given_delta",
    "identity",
    "model_delta",
    "unstated",
    "with_delta",
]

T = TypeVar("T")

_TEXT = "text."  # before the names of a text encoder's weights in a delta
_WORDS = "text.words."  # before the words that a delta adds


def cache_key(**parts: Any) -> str:
    """Return a hash of JSON-able parts, 24 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def digest(*tensors: Tensor) -> str:
    """Return the SHA-256 of tensors: their shapes, types and values."""
    found = hashlib.sha256()
    for tensor in tensors:
        value = tensor.detach().cpu().contiguous()
        found.update(f"{list(value.shape)} {value.dtype}".encode())
        found.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def identity(model: Model | Clip) -> str:
    """Return what tells the weights of a model or a CLIP from others: the hash of its files, else of its numbers.

    Raises:
        UserError: The network is a formula and has no weights.
    """
    network = model.network
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{model.name} is a formula without weights that could be tuned; use degree 0, or another model"
        )
    known = model.weights_hash
    return digest(*network.state_dict().values()) if known is None else known


def unstated(model: Model) -> dict[str, str]:
    """Return what tells a model from others of the same files, JSON-able; nothing where the files' header says it all.

    Published weights do not say whether they predict noise or v, or at which levels: that is told when they are loaded,
    and what was computed by a wrong guess must not be found again after a right one.
    """
    try:
        header = read_header(model.files[0]) if len(model.files) == 1 else {}
    except UserError:
        header = {}
    if header.get("parameterization") == model.parameterization:
        return {}
    levels = hashlib.sha256(model.schedule.alpha_bars.tobytes()).hexdigest()
    return {"network": cache_key(levels=levels, predicts=model.parameterization, time_scale=model.time_scale)}


def cached_delta(method: str, model: Model, settings: Mapping[str, Any], tune: Callable[[Path], Delta]) -> Delta:
    """Return the delta that was tuned with these settings before, or tune now and keep it.

    Processes that ask for the same delta at once wait for the one that tunes. A tuning that was stopped is gone on
    with; a file that is damaged is remade with a warning.

    Args:
        method: Command name of the method.
        model: What is tuned.
        settings: All else that decides the result, JSON-able.
        tune: Tunes in a folder, in which it finds what an earlier try left, and returns the delta.
    """
    base = identity(model)
    name = f"{method}-{cache_key(method=method, base=base, settings={**settings, **unstated(model)})}"
    folder = ensure_writable(cache_folder() / "deltas")
    path = folder / f"{name}.safetensors"
    with _alone(path):
        if (found := _read(path, lambda: load_delta(path))) is not None and found.base == base:
            return found
        work = cache_folder() / "tuning" / name
        save_delta(path, tune(work))
        shutil.rmtree(work, ignore_errors=True)
        return load_delta(path)  # as later calls will: storing rounds


def cached_tensors(
    kind: str, model: Model, make: Callable[[], Mapping[str, Tensor]], /, **parts: Any
) -> dict[str, Tensor]:
    """Return tensors that were computed before from the same ``parts``, or compute and keep them.

    Args:
        kind: What they are; a folder of the cache.
        model: What they are computed with; what its files leave open counts with the parts, see `unstated`.
        make: Computes them.
        parts: All else that decides them, JSON-able: hashes of model and images, schedule, steps.
    """
    parts |= unstated(model)
    folder = ensure_writable(cache_folder() / kind)
    path = folder / f"{cache_key(kind=kind, **parts)}.safetensors"

    def stored() -> dict[str, Tensor]:
        require(read_header(path).get("kind") == kind, f"{path} holds something else")
        return read_safetensors(path)

    with _alone(path):
        if (found := _read(path, stored)) is not None:
            return found
        save_safetensors(path, make(), {"kind": kind, "parts": parts})
        return read_safetensors(path)


def given_delta(source: str | os.PathLike[str], method: str, base: str) -> Delta:
    """Return the delta of a file or of a shipped name.

    Raises:
        UserError: There is no such file, or it is no delta of ``method`` and of the weights with identity ``base``.
    """
    found = load_delta(locate(source))
    require(found.method == method, f"{source} was tuned by {found.method}; give a delta of {method}")
    check_base(found, base)
    return found


def descend(config: FinetuneConfig, module: nn.Module, loss: LossFn, dataset: Dataset, **options: Any) -> None:
    """Tune those parameters of ``module`` that require gradients, to the end; ``options`` are those of `finetune`.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint was written, with which the run goes on.
    """
    with torch.inference_mode(False), torch.enable_grad():
        result = finetune(config, module, loss, dataset, **options)
    if not result.completed:
        raise KeyboardInterrupt(f"tuning stopped after {result.step} steps; resume goes on from there")


def copy_of(model: Model, *, shares: bool, text: bool = False) -> Model:
    """Return the model with a copy of its network that carries no hooks: what tuning calls is nobody else's business.

    Args:
        model: Any model with weights.
        shares: The copy has the very same weights and takes no memory; otherwise it has its own, in float32 at least.
        text: Copy the text encoder as well.
    """
    network = model.network
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{model.name} is a formula without weights that could be tuned; use degree 0, or another model"
        )
    copied = replace(model, network=_copied(network, shares))
    encoder = _module(model.text) if text else None
    return copied if encoder is None else replace(copied, text=cast(TextEncoder, _copied(encoder, shares)))


def _copied(module: nn.Module, shares: bool) -> nn.Module:
    kept = (*module.parameters(), *module.buffers())
    copied = copy.deepcopy(module, {id(tensor): tensor for tensor in kept} if shares else {})
    for part in copied.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    types = {parameter.dtype for parameter in module.parameters()}
    is_small = any(torch.finfo(kind).bits < 32 for kind in types)
    return copied.float() if is_small and not shares else copied


def model_delta(
    base: Model, tuned: Model, *, method: str, settings: Mapping[str, Any] | None = None, rank: int | None = None
) -> Delta:
    """Return what tuning changed in a model: its network, its text encoder, and the words that it was given.

    Args:
        base: The model before, without new words.
        tuned: The same after.
        method: Command name of the method.
        settings: What it was tuned with, JSON-able.
        rank: As `steerdiff.models.delta.make_delta`.
    """
    before, after = _weights(base), _weights(tuned)
    words = {_WORDS + word: row for word, row in new_rows(_module(base.text), _module(tuned.text)).items()}
    for name, value in before.items():  # rows of new words stand behind those of the others
        if words and name == f"{_TEXT}embedding.weight":
            after[name] = after[name][: len(value)]
    return make_delta(before, {**after, **words}, base=identity(base), method=method, settings=settings, rank=rank)


def with_delta(model: Model, delta: Delta) -> Model:
    """Return the model with a delta's changes in a copy of its network, and of its text encoder if it is changed.

    Words that the delta adds are known to the result. It no longer counts as the file's model, so that a delta cannot
    be put on it once more.

    Raises:
        UserError: The delta is of another model, or adds a word that the model knows already.
    """
    base = identity(model)
    of_text = {name for name in delta.forms if name.startswith(_TEXT)}
    network = cast(nn.Module, copy.deepcopy(model.network))
    apply_delta(network, replace(delta, forms={k: v for k, v in delta.forms.items() if k not in of_text}), base)
    if not of_text:
        return replace(model, network=network, files=())
    own = _module(model.text)
    require(own is not None, f"the delta changes a text encoder, which {model.name} has not; fetch it again")
    text = copy.deepcopy(cast(nn.Module, own))
    renamed = {name: name.removeprefix(_TEXT) for name in of_text}
    apply_delta(text, _renamed(delta, renamed), base)
    rows = {name.removeprefix(_WORDS): row for name, row in delta.added().items() if name.startswith(_WORDS)}
    if rows:
        require(isinstance(text, WordEncoder), f"the delta adds words, which {model.name} needs not; fetch it again")
        text = with_words(cast(WordEncoder, text), rows)
    return replace(model, network=network, text=cast(TextEncoder, text), files=())


def _renamed(delta: Delta, names: Mapping[str, str]) -> Delta:
    """Return the part of a delta with these weights, by their new names."""
    tensors = {
        new + part: delta.tensors[old + part]
        for old, new in names.items()
        for part in ("", ".left", ".right")
        if old + part in delta.tensors
    }
    forms = {new: delta.forms[old] for old, new in names.items()}
    return replace(delta, tensors=tensors, forms=forms, scales={new: delta.scales[old] for old, new in names.items()})


def _weights(model: Model) -> dict[str, Tensor]:
    """Return the weights of the network by name, and those of the text encoder with ``text.`` before theirs."""
    text = _module(model.text)
    own = {} if text is None else {_TEXT + name: value for name, value in text.state_dict().items()}
    return {**cast(nn.Module, model.network).state_dict(), **own}


def _module(part: Any) -> nn.Module | None:
    return part if isinstance(part, nn.Module) else None


def _read(path: Path, load: Callable[[], T]) -> T | None:
    """Return what a file of the cache holds; None if it is not there, and with a warning if it is damaged."""
    if not path.is_file():
        return None
    try:
        return load()
    except UserError as error:
        warn(f"a file of the cache is damaged and is made again: {error}")
        return None


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time make ``path``, where the system has locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

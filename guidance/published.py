"""Published weights as models: the parts filled from the file, with what their authors sample them with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from steerdiff.errors import UserError, require
from steerdiff.models.bert_text import BertText
from steerdiff.models.class_conditioned import ClassConditioned
from steerdiff.models.class_context import ClassContext
from steerdiff.models.clip import Clip
from steerdiff.models.published import PRESETS, PublishedModel
from steerdiff.models.published.assembly import parts, preset_name, reads_averaged, weight_files
from steerdiff.models.published.configs import published_model
from steerdiff.models.published.layouts import recognise
from steerdiff.models.tokenizers import WordPiece, read_vocab
from steerdiff.models.unet import UNet
from steerdiff.models.weights import KeyMap, WeightFile, fill
from steerdiff.samplers import DDIM, NoiseSchedule, Solver

from .extra_inputs import ExtraInput
from .model import Model
from .noisy_classifier import NoisyClassifier
from .settings import Sampling

__all__ = ["Place", "read_published"]

#: How each family is sampled where no preset says it: ADM's and ermongroup's scripts, and CompVis'.
_FAMILIES: dict[str, dict[str, Any]] = {
    "adm": {"solver": "ddpm", "steps": 250, "spacing": "respaced"},
    "ddpm": {"solver": "ddpm", "steps": 1000, "spacing": "respaced"},
    "latent": {"solver": "ddim", "steps": 50, "guidance": 7.5},
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where weights go."""

    device: str | torch.device = "cpu"  #: device of all parts
    dtype: torch.dtype = torch.float32  #: floating type of the weights, whatever they are stored in

    def of(self, part: str) -> dict[str, Any]:
        """Return device and dtype of a part; a first stage stays in float32 where the rest is in float16."""
        keeps_range = part == "autoencoder" and self.dtype == torch.float16
        return {"device": self.device, "dtype": torch.float32 if keeps_range else self.dtype}


def read_published(file: WeightFile, config: Any, place: Place, *, ema: bool | None = None) -> Any:
    """Return the model of a published file or folder.

    Args:
        file: The file, or the folder opened as one.
        config: What the file does not say (see `published_model`).
        place: Where the weights go.
        ema: Whether to read averaged weights; None is what the authors sample with, where the file has both.

    Raises:
        UserError: The layout is unknown, something is left open, or the tensors do not fit.
    """
    layout = recognise(file)
    model = published_model(config, file, layout)
    found = parts(model, file, layout, ema=reads_averaged(config, file, layout, ema))
    return _built(model, found, place, preset_name(config, file), file.path)


def _built(
    model: PublishedModel,
    found: Mapping[str, tuple[nn.Module, KeyMap, WeightFile]],
    place: Place,
    preset: str | None,
    path: Path,
) -> Any:
    modules = {}
    for name, (module, keymap, view) in found.items():
        fill(module, view, keymap, source=f"the {name} of '{path}'", **place.of(name))
        modules[name] = module.eval().requires_grad_(False)
    record: dict[str, Any] = {"name": preset or path.stem, "files": weight_files(path)}
    if model.clip is not None:
        return Clip(network=modules["clip"], config=model.clip, **record)
    if model.classifier is not None:
        shape = model.classifier
        classes, size = shape.trunk.out_channels, shape.image_size
        return NoisyClassifier(network=modules["classifier"], num_classes=classes, image_size=size, **record)
    return _model(model, modules, path, sampling=_sampling(model, preset), **record)


def _model(model: PublishedModel, modules: Mapping[str, nn.Module], path: Path, **more: Any) -> Model:
    unet = model.unet
    if unet is None:
        raise UserError(f"'{path}' holds no UNet; give the weights of a diffusion model")
    text, stage = modules.get("text"), modules.get("autoencoder")
    whole = "give the whole folder or file"
    require(unet.context_dim is None or text is not None, f"'{path}' holds no text encoder; {whole}")
    require(model.family != "latent" or stage is not None, f"'{path}' holds no first stage; {whole}")
    label_context = text if isinstance(text, ClassContext) else None
    if isinstance(text, BertText):
        vocabulary = (path if path.is_dir() else path.parent) / "vocab.txt"
        text.word_pieces = WordPiece(read_vocab(vocabulary)) if vocabulary.is_file() else None
    return Model(
        network=modules["unet"]
        if label_context is None
        else ClassConditioned(cast(UNet, modules["unet"]), label_context).eval(),
        text=cast(Any, text) if label_context is None else None,
        autoencoder=cast(Any, stage),
        schedule=NoiseSchedule.from_dict(model.schedule),
        parameterization=model.parameterization,
        learns_variance=model.learns_variance,
        image_size=model.image_size,
        channels=unet.out_channels // 2 if model.learns_variance else unet.out_channels,
        num_classes=unet.num_classes if label_context is None else model.null_class,
        null_class=model.null_class,
        extra=ExtraInput(kind=model.inputs, low_res_size=model.low_res_size),
        time_scale=model.time_scale,
        **more,
    )


def _sampling(model: PublishedModel, preset: str | None) -> Sampling:
    """Return what the authors of a preset sample with, or of its family; steps as a number where they are one."""
    values = {**_FAMILIES.get(model.family, {}), **(PRESETS[preset].sampling if preset else {})}
    known = ("steps", "solver", "spacing", "guidance", "classifier_scale")
    chosen: dict[str, Any] = {name: values[name] for name in known if name in values}
    if model.family == "latent":
        chosen.setdefault("spacing", "compvis")
    if isinstance(chosen.get("steps"), str) and chosen["steps"].isdigit():
        chosen["steps"] = int(chosen["steps"])
    solver: str | Solver = chosen["solver"]
    if solver == "ddim" and values.get("eta"):
        chosen["solver"] = DDIM(eta=values["eta"])
    return Sampling(**chosen, clip="clip" if model.clip_x0 else "none")

"""A small network that names what a scene shows: layout, objects, styles, background. It measures the shipped model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from steerdiff.errors import UserError, require
from steerdiff.models.checkpoint import load_into, read_header, read_safetensors, save_safetensors

from .both_splits import augment, check_blemishes
from .scenes import CANVAS, COLOURS, OBJECTS, STYLES, Description, EmojiScenes, Scene

__all__ = [
    "ATTRIBUTES",
    "LAYOUTS",
    "NOTHING",
    "Recogniser",
    "RecogniserConfig",
    "Sighting",
    "accuracy",
    "load_recogniser",
    "reading_order",
    "save_recogniser",
    "train_recogniser",
]

LAYOUTS = ("single", "horizontal", "vertical")
NOTHING = "nothing"
ATTRIBUTES = ("layout", "object", "style", "colour")
_NAMES = (*OBJECTS, NOTHING)
_KIND = "recogniser"
_WEIGHTS = "recogniser.safetensors"
_VOCABULARY = {"objects": list(OBJECTS), "styles": list(STYLES), "colours": list(COLOURS)}


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """What one image shows, in reading order: the left or the upper object first."""

    layout: str  #: a name of ``LAYOUTS``
    things: tuple[tuple[str, str], ...]  #: (style, object) of one or two things; the object may be ``NOTHING``
    colour: str  #: background colour


def reading_order(description: Description) -> Sighting:
    """Return what an image that follows a caption shows."""
    relation = description.relation
    layout = "single" if relation is None else "horizontal" if relation in ("left of", "right of") else "vertical"
    things = description.things[::-1] if relation in ("right of", "below") else description.things
    return Sighting(layout=layout, things=things, colour=description.colour)


class Recogniser(nn.Module):
    """Convolutions, then one attention map an object: where the layout puts it and where the features are telling.

    Both objects share their classifier. The weights of the two maps, for each layout and place of the 8 x 8 grid, are
    learned; the layout is the softmax of its own head, so that everything is trained at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _block(3, 32, 5, stride=2),
            _block(32, 64, 3, stride=2),
            _block(64, 64, 3),
            _block(64, 128, 3, stride=2),
            _block(128, 128, 3),
        )
        self.layout = nn.Linear(128 * 16, len(LAYOUTS))
        self.colour = nn.Linear(128 * 16, len(COLOURS))
        self.place = nn.Parameter(torch.zeros(len(LAYOUTS), 2, 64))
        self.telling = nn.Linear(128, 2)
        self.object = nn.Linear(128, len(_NAMES))
        self.style = nn.Linear(128, len(STYLES))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return logits: layout [B, 3], object [B, 2, 49], style [B, 2, 3], colour [B, 8].

        Args:
            images: [B, 3, 64, 64] in [-1, 1].

        Raises:
            UserError: The images have another shape.
        """
        require(
            images.ndim == 4 and tuple(images.shape[1:]) == (3, CANVAS, CANVAS),
            f"images are {list(images.shape)}; the recogniser reads [B, 3, {CANVAS}, {CANVAS}]",
        )
        h = self.features(images)
        coarse = functional.avg_pool2d(h, 2).flatten(1)
        layout = self.layout(coarse)
        h = h.flatten(2).transpose(1, 2)  # [B, 64, 128]
        place = torch.einsum("bl,lkp->bpk", layout.softmax(1), self.place)
        seen = ((self.telling(h) + place).softmax(1).transpose(1, 2)) @ h  # [B, 2, 128]
        return {"layout": layout, "object": self.object(seen), "style": self.style(seen), "colour": self.colour(coarse)}

    @torch.no_grad()
    def read(self, images: Tensor, batch: int = 128) -> list[Sighting]:
        """Return what each of the images [B, 3, 64, 64] in [-1, 1] shows, by the largest logits."""
        sightings = []
        training = self.training
        self.eval()
        for start in range(0, len(images), batch):
            part = images[start : start + batch].to(self.place)
            best = {name: logits.argmax(-1).tolist() for name, logits in self(part).items()}
            sightings += [_sighting(best, i) for i in range(len(part))]
        self.train(training)
        return sightings


def _sighting(best: dict[str, Any], i: int) -> Sighting:
    layout = LAYOUTS[best["layout"][i]]
    things = [(STYLES[style], _NAMES[name]) for style, name in zip(best["style"][i], best["object"][i], strict=True)]
    shown = things[:1] if layout == "single" else things
    return Sighting(layout=layout, things=tuple(shown), colour=tuple(COLOURS)[best["colour"][i]])


def _block(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True))


@dataclass(frozen=True, kw_only=True)
class RecogniserConfig:
    """How the recogniser is trained; a few minutes on one quiet CPU core."""

    steps: int = 1500  #: optimiser steps
    batch_size: int = 64  #: scenes a step
    learning_rate: float = 2e-3  #: highest rate of AdamW; rises over a tenth of the steps, then falls as a cosine
    weight_decay: float = 0.01  #: decoupled, per unit of learning rate
    pairs: float = 0.5  #: share of scenes with two objects
    held_out: float = 0.125  #: share of scenes from held-out combinations, as frequent as if nothing were held out
    jitter: int = 2  #: scenes are moved by up to this many pixels each way
    blur: float = 1.0  #: up to this share of a 3 x 3 binomial blur is mixed in
    noise: float = 0.1  #: highest standard deviation of Gaussian noise, in image units
    tint: float = 0.08  #: highest change of each channel's gain and offset
    seed: int = 0  #: decides scenes, weights and augmentation

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"steps is {self.steps}; it must be at least 1")
        require(self.batch_size >= 2, f"batch_size is {self.batch_size}; it must be at least 2")
        check_blemishes(self)
        require(0 <= self.held_out <= 1, f"held_out is {self.held_out}; it is a share between 0 and 1")
        require(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}; it must be at least 0")


def train_recogniser(config: RecogniserConfig | None = None, *, progress: str | None = None) -> Recogniser:
    """Train a recogniser on scenes of both splits, on the CPU.

    Args:
        config: How to train; None takes the published values.
        progress: Label of a progress bar; None is silent.

    Returns:
        The recogniser, in evaluation mode.
    """
    config = config or RecogniserConfig()
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        recogniser = Recogniser()
    optimizer = torch.optim.AdamW(recogniser.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, config.steps, pct_start=0.1)
    bar = tqdm(range(config.steps), desc=progress, disable=progress is None, unit="step")
    for step in bar:
        scenes = _training_scenes(config, step)
        images = augment(EmojiScenes().render_all(scenes), config, generator)
        loss = _loss(recogniser(images), scenes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if progress is not None and step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return recogniser.eval()


def _training_scenes(config: RecogniserConfig, step: int) -> list[Scene]:
    n = round(config.batch_size * config.held_out)
    unseen = EmojiScenes(config.seed, "held_out", config.pairs).scenes(range(step * n, step * n + n))
    n = config.batch_size - n
    return EmojiScenes(config.seed, "train", config.pairs).scenes(range(step * n, step * n + n)) + unseen


def _loss(logits: dict[str, Tensor], scenes: Sequence[Scene]) -> Tensor:
    truth = [reading_order(scene.description) for scene in scenes]
    absent = [(NOTHING, NOTHING)]
    things = [list(sight.things) + absent * (2 - len(sight.things)) for sight in truth]
    names = [[_NAMES.index(name) for _, name in pair] for pair in things]
    styles = [[-100 if style == NOTHING else STYLES.index(style) for style, _ in pair] for pair in things]  # ignored
    colours = [tuple(COLOURS).index(sight.colour) for sight in truth]
    layouts = [LAYOUTS.index(sight.layout) for sight in truth]
    targets = {"layout": layouts, "object": names, "style": styles, "colour": colours}
    losses = [
        functional.cross_entropy(logits[key].flatten(0, -2), torch.tensor(values).flatten())
        for key, values in targets.items()
    ]
    return torch.stack(losses).sum()


def accuracy(recogniser: Recogniser, scenes: EmojiScenes, n: int) -> dict[str, float]:
    """Return the share of right answers for each of ``ATTRIBUTES``, over the first ``n`` scenes of a set.

    An object counts as right where its own style may be wrong, and the other way round; both are counted by object.
    """
    right = dict.fromkeys(ATTRIBUTES, 0)
    things = 0
    for start in range(0, n, 256):
        numbers = range(start, min(start + 256, n))
        seen = recogniser.read(scenes.batch(numbers)[0])
        for sight, scene in zip(seen, scenes.scenes(numbers), strict=True):
            truth = reading_order(scene.description)
            things += len(truth.things)
            right["layout"] += sight.layout == truth.layout
            right["colour"] += sight.colour == truth.colour
            for (style, name), (true_style, true_name) in zip(sight.things, truth.things, strict=False):
                right["style"] += style == true_style
                right["object"] += name == true_name
    return {name: count / (things if name in ("object", "style") else n) for name, count in right.items()}


def save_recogniser(recogniser: Recogniser, path: str | os.PathLike[str], config: RecogniserConfig) -> None:
    """Write the weights in half precision, with the names they stand for and how they were trained.

    Raises:
        UserError: The file cannot be written.
    """
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in recogniser.state_dict().items()
    }
    save_safetensors(path, halves, {"kind": _KIND, **_VOCABULARY, "training": asdict(config)})


def load_recogniser(path: str | os.PathLike[str] | None = None) -> Recogniser:
    """Return the recogniser of a file, or the shipped one, in float32 and evaluation mode.

    Raises:
        UserError: The file is missing or damaged, is no recogniser, or was trained on other names.
    """
    if path is None:
        with as_file(files("steerdiff.assets").joinpath("weights", _WEIGHTS)) as shipped:
            require(shipped.is_file(), "no recogniser is shipped here; train one and give its path")
            return load_recogniser(shipped)
    header = read_header(path)
    require(header.get("kind") == _KIND, f"{path} holds weights of kind {header.get('kind')!r}, not a recogniser")
    if any(header.get(key) != names for key, names in _VOCABULARY.items()):
        raise UserError(f"{path} was trained on other objects, styles or colours; train it again")
    recogniser = Recogniser()
    load_into(recogniser, read_safetensors(path), str(path))
    return recogniser.eval()

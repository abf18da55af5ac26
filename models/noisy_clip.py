"""CLIP's image tower for noisy images: it is told the time of the noise."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from steerdiff.errors import require

from .clip import build_clip, clip_size, normalised
from .clip_towers import ClipFeatures, Pair, conditioned_widths, is_resnet, tower_features
from .layers import time_embedding
from .published.spec import ClipConfig

__all__ = ["ClipFeatures", "NoisyCLIP", "NoisyClipConfig", "TimeAffine", "TimeToken", "build_noisy_clip", "from_clip"]


@dataclass(frozen=True, kw_only=True)
class NoisyClipConfig:
    """How an image tower of CLIP is told the time.

    Source: Liu et al. 2023, "More Control for Free! Image Synthesis with Semantic Diffusion Guidance", section 3.2
    ("affine"); Nichol et al. 2022, GLIDE, section 4.3 ("token"), both as their code has it.
    """

    #: affine: a scale and a shift after each normalisation; token: a learned class token for each time (vision
    #: transformers only)
    time: Literal["affine", "token"] = "affine"
    #: plain: at first the network is the clean CLIP, at every time; published: PyTorch's own initial values, which are
    #: small but not zero (SDG's code), and random tokens (GLIDE)
    init: Literal["plain", "published"] = "plain"
    #: replace: a token for each time instead of the class token (GLIDE); add: to it
    token: Literal["replace", "add"] = "replace"
    #: resized: a position grid of another size is the clean one, interpolated; fresh: drawn anew (SDG's code)
    positions: Literal["resized", "fresh"] = "resized"
    #: frozen: BatchNorms keep the clean CLIP's statistics, also in training; train: they follow the noisy images in
    #: training (SDG's code)
    norm: Literal["frozen", "train"] = "frozen"
    frequencies: int = 128  #: channels of the sinusoids of the time
    hidden: int = 512  #: width of the two layers behind them
    T: int = 1000  #: times are in [0, T)

    def __post_init__(self) -> None:
        """Raise UserError for values that are not allowed."""
        choices = {
            "time": ("affine", "token"),
            "init": ("plain", "published"),
            "token": ("replace", "add"),
            "positions": ("resized", "fresh"),
            "norm": ("frozen", "train"),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            require(value in allowed, f"{name} is {value!r}; choose {' or '.join(allowed)}")
        for name in ("frequencies", "hidden", "T"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(self.frequencies % 2 == 0, f"frequencies is {self.frequencies}; it must be even")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dataclasses.asdict(self)


class TimeAffine(nn.Module):
    """Scale and shift of every normalisation of a tower, from the time.

    Sinusoids, two layers with ReLUs, and one wide layer whose output is cut, in the order of the computation, into a
    scale and a shift for each normalisation.
    """

    def __init__(self, widths: list[int], config: NoisyClipConfig) -> None:
        super().__init__()
        self.widths, self.frequencies = widths, config.frequencies
        self.embed = nn.Sequential(
            nn.Linear(config.frequencies, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.hidden), nn.ReLU()
        )
        self.out = nn.Linear(config.hidden, 2 * sum(widths))
        if config.init == "plain":
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, t: Tensor) -> list[Pair]:
        """Return (scale, shift), each [B, C], for each normalisation; ``t`` [B] is a time, whole or not."""
        waves = time_embedding(t, self.frequencies).to(self.out.weight.dtype)
        parts = self.out(self.embed(waves)).split([width for width in self.widths for _ in range(2)], dim=-1)
        return list(zip(parts[::2], parts[1::2], strict=True))


class TimeToken(nn.Module):
    """A learned table with one class token for each whole time; between them it is linear."""

    def __init__(self, class_token: Tensor, config: NoisyClipConfig) -> None:
        super().__init__()
        table = torch.zeros(config.T, *class_token.shape, dtype=class_token.dtype, device=class_token.device)
        self.table = nn.Parameter(table)
        self.adds = config.token == "add"
        if config.init == "published":
            nn.init.normal_(self.table, std=0.01)
        elif not self.adds:
            with torch.no_grad():
                self.table.copy_(class_token)

    def forward(self, t: Tensor, class_token: Tensor) -> Tensor:
        """Return the class tokens [B, width] of times ``t`` [B]."""
        last = len(self.table) - 1
        t = t.to(torch.float32).clamp(0, last)
        low = t.floor().long()
        token = torch.lerp(
            self.table[low], self.table[(low + 1).clamp(max=last)], (t - low).to(self.table.dtype)[:, None]
        )
        return class_token + token if self.adds else token


class NoisyCLIP(nn.Module):
    """CLIP's image tower told the time: ``forward(x, t)`` gives its features of noisy images.

    Args:
        visual: open_clip's image tower, a ResNet or a plain vision transformer.
        config: How it is told the time.
    """

    def __init__(self, visual: nn.Module, config: NoisyClipConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or NoisyClipConfig()
        self.visual = visual
        tower: Any = visual
        require(
            config.time == "affine" or not is_resnet(visual),
            "time is 'token', but a ResNet has no class token; choose 'affine'",
        )
        self.time: TimeAffine | TimeToken = (
            TimeAffine(conditioned_widths(visual), config)
            if config.time == "affine"
            else TimeToken(tower.class_embedding.detach(), config)
        )

    @property
    def size(self) -> int:
        """Height and width of the images in pixels."""
        return clip_size(self)

    def train(self, mode: bool = True) -> NoisyCLIP:
        """Go to training or evaluation; frozen BatchNorms stay in evaluation."""
        super().train(mode)
        if self.config.norm == "frozen":
            for module in self.visual.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, x: Tensor, t: Tensor) -> ClipFeatures:
        """Return the features of noisy images; gradients flow to ``x``.

        Args:
            x: [B, 3, size, size]: ``sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise``, of images x0 in [-1, 1].
            t: [B], times in [0, T).

        Raises:
            UserError: The images have another shape.
        """
        shape = (3, self.size, self.size)
        require(
            x.ndim == 4 and tuple(x.shape[1:]) == shape,
            f"x is {list(x.shape)}; this noisy CLIP sees [B, 3, {self.size}, {self.size}] and resizes nothing",
        )
        t = t.expand(len(x))
        seen, tower = normalised(x), self.visual
        if isinstance(self.time, TimeAffine):
            return tower_features(tower, seen, pairs=self.time(t))
        return tower_features(tower, seen, token=self.time(t, tower.class_embedding))


def build_noisy_clip(clip: ClipConfig, config: NoisyClipConfig | None = None) -> NoisyCLIP:
    """Return a noisy CLIP with the image tower of a configuration, whose text part does not matter; in eval mode."""
    text = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
    visual = build_clip(dataclasses.replace(clip, text_cfg=text)).visual
    return NoisyCLIP(visual, config).eval()


def from_clip(network: Any, config: NoisyClipConfig | None = None, *, size: int | None = None) -> NoisyCLIP:
    """Return a noisy CLIP that starts from the weights of a clean one, in eval mode, its weights free to train.

    Args:
        network: open_clip's ``CLIP``; it is not changed.
        config: How the tower is told the time.
        size: Height and width of the noisy images in pixels; None: those of the clean CLIP.

    Raises:
        UserError: The tower's grid does not fit ``size``.
    """
    config = config or NoisyClipConfig()
    visual = copy.deepcopy(network.visual).requires_grad_(True).float()
    _fit(visual, clip_size(network) if size is None else size, config)
    return NoisyCLIP(visual, config).eval()


def _fit(visual: Any, size: int, config: NoisyClipConfig) -> None:
    """Give a tower the position grid of ``size`` pixels."""
    resnet = is_resnet(visual)
    holder = visual.attnpool if resnet else visual
    cell = 32 if resnet else visual.patch_size[0]
    require(size % cell == 0 and size > 0, f"size is {size}; this image tower needs a multiple of {cell} pixels")
    old: Tensor = holder.positional_embedding.detach()
    side = size // cell
    if config.positions == "fresh":
        fresh = nn.Parameter(old.new_empty(side * side + 1, old.shape[1]))
        holder.positional_embedding = nn.init.normal_(fresh, std=old.shape[1] ** -0.5)
    elif len(old) != side * side + 1:
        holder.positional_embedding = nn.Parameter(_resized(old, side))
    visual.image_size = size if resnet else (size, size)
    if not resnet:
        visual.grid_size = (side, side)


def _resized(old: Tensor, side: int) -> Tensor:
    """Return a position table [1 + side^2, C]: the grid of the old one bicubically, its first row as it is."""
    first, grid = old[:1], old[1:]
    length = round(len(grid) ** 0.5)
    grid = grid.T.reshape(1, -1, length, length)
    grid = functional.interpolate(grid, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, grid.flatten(2)[0].T])

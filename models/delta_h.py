"""The small networks of Asyrp, which say how to shift a UNet's bottleneck (h-space) for one attribute."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from steerdiff.errors import require

from .config import UNetConfig, config_from_dict
from .norm import Layers, zeroed

__all__ = ["DeltaH", "DeltaHConfig", "DeltaHForm", "DirectDeltaH", "MixedDeltaH", "build_delta_h", "delta_h_config"]

#: "ddpm" and "adm" are the networks of the official code; "direct" is one tensor for each time, without a network.
DeltaHForm = Literal["ddpm", "adm", "direct"]
_SPREAD = 0.2  # standard deviation of the direct tensors at the start


@dataclass(frozen=True, kw_only=True)
class DeltaHConfig:
    """What a shift of the bottleneck is made of."""

    channels: int  #: C of the bottleneck
    time_channels: int  #: D of the UNet's time embedding
    form: DeltaHForm = "ddpm"  #: see `DeltaHForm`
    ignores_time: bool = False  #: leave the time out (the official ``ignore_timesteps``); "direct": one tensor for all
    gain: float = 1.0  #: factor on the shift, for a bottleneck whose numbers are large; published is 1
    cells: tuple[int, ...] = ()  #: "direct": height and width of the bottleneck
    times: tuple[float, ...] = ()  #: "direct": the times, as the network is told them, that have a tensor each

    def __post_init__(self) -> None:
        """Turn lists (from JSON) into tuples and check that the fields go together."""
        for name in ("cells", "times"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        require(
            self.form in get_args(DeltaHForm), f"form is {self.form!r}; known are {', '.join(get_args(DeltaHForm))}"
        )
        whole = self.channels >= 32 and self.channels % 32 == 0
        require(whole, f"the bottleneck has {self.channels} channels; group normalisation needs a multiple of 32")
        if self.form == "direct":
            fits = len(self.cells) == 2 and (self.ignores_time or len(self.times) > 0)
            require(fits, "form 'direct' has a tensor for each time: give cells, and times or ignores_time")

    @classmethod
    def from_dict(cls, values: dict[str, Any], what: str = "the shift of the bottleneck") -> DeltaHConfig:
        """Return the configuration that ``to_dict`` gave; UserError names ``what`` for an unknown field."""
        config: DeltaHConfig = config_from_dict(cls, values, what)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)


class DeltaH(nn.Module):
    """``f_t(h, t)``: a 1x1 convolution, the time, a group norm, SiLU and a 1x1 convolution.

    The form "adm" has a group norm and SiLU before the first convolution too, as ADM's blocks do. Convolutions start at
    PyTorch's random values, so that the shift is not 0 at the start.

    Source: Kwon et al. 2023, section 4.1 and appendix; the forms are those of the official code.
    """

    def __init__(self, config: DeltaHConfig) -> None:
        super().__init__()
        self.config = config
        channels, eps = config.channels, 1e-6 if config.form == "ddpm" else 1e-5
        first: list[nn.Module] = [] if config.form == "ddpm" else [nn.GroupNorm(32, channels, eps=eps), nn.SiLU()]
        self.before = Layers(*first, nn.Conv2d(channels, channels, 1))
        self.time = None if config.ignores_time else nn.Sequential(nn.SiLU(), nn.Linear(config.time_channels, channels))
        self.after = Layers(nn.GroupNorm(32, channels, eps=eps), nn.SiLU(), nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor, emb: Tensor, t: Tensor) -> Tensor:
        """Return the shift [B, C, h, w], float32 or wider, of a bottleneck ``h`` [B, C, h, w].

        Args:
            h: Output of the middle block.
            emb: The UNet's time embedding [B, D].
            t: Its time [B]; not used, ``emb`` says it.
        """
        dtype = next(self.parameters()).dtype
        x: Tensor = self.before(h.to(dtype))
        if self.time is not None:
            x = x + self.time(emb.to(dtype))[:, :, None, None]
        shift: Tensor = self.after(x)
        return self.config.gain * shift


class DirectDeltaH(nn.Module):
    """A shift that is the same for all images: one tensor [C, h, w] for each time, or one for all times.

    It is added, as in the paper. (In the official code its descendant is rescaled and interpolated with h in a way
    that leaves h as it is, so that nothing can be learned.)

    Source: Kwon et al. 2023, section 3.3 and eq. 6, before ``f_t`` is brought in.
    """

    def __init__(self, config: DeltaHConfig) -> None:
        super().__init__()
        self.config = config
        count = 1 if config.ignores_time else len(config.times)
        self.shifts = nn.Parameter(torch.empty(count, config.channels, *config.cells))
        self.register_buffer("times", torch.tensor(config.times or (0.0,), dtype=torch.float32), persistent=False)
        nn.init.normal_(self.shifts, std=_SPREAD)

    def forward(self, h: Tensor, emb: Tensor, t: Tensor) -> Tensor:
        """Return the shifts [B, C, h, w] of the times nearest to ``t`` [B]; ``h`` and ``emb`` are not looked at."""
        if self.config.ignores_time:
            return self.config.gain * self.shifts.expand(h.shape[0], -1, -1, -1)
        times: Any = self.times
        nearest = (t.to(times)[:, None] - times).abs().argmin(dim=1)
        return self.config.gain * self.shifts[nearest]


class MixedDeltaH(nn.Module):
    """``sum_i weight_i f_i(h, t)``: several attributes at once, all of which read the same bottleneck.

    Source: Kwon et al. 2023, section 5.2, where the weights are coefficients over the root of their number.

    Args:
        parts: The shifts.
        weights: Factor of each; negative ones turn an attribute round.
    """

    def __init__(self, parts: list[nn.Module], weights: list[float]) -> None:
        super().__init__()
        require(len(parts) == len(weights) > 0, f"{len(parts)} shifts have {len(weights)} weights; give one for each")
        self.parts = nn.ModuleList(parts)
        self.weights = tuple(weights)

    def forward(self, h: Tensor, emb: Tensor, t: Tensor) -> Tensor:
        """Return the sum of the shifts [B, C, h, w] of a bottleneck ``h`` [B, C, h, w]."""
        shifts = [weight * part(h, emb, t) for part, weight in zip(self.parts, self.weights, strict=True)]
        return torch.stack(shifts).sum(0) if len(shifts) > 1 else shifts[0]


def delta_h_config(network: Any, form: DeltaHForm = "ddpm", **fields: Any) -> DeltaHConfig:
    """Return the configuration of a shift for the bottleneck of ``network``.

    Args:
        network: A UNet, or what wraps one and has its ``config``.
        form: See `DeltaHForm`.
        fields: Other fields of `DeltaHConfig`.

    Raises:
        UserError: It is no UNet: it has no bottleneck to shift.
    """
    config = getattr(network, "config", None)
    require(
        isinstance(config, UNetConfig),
        f"the model's network is a {type(network).__name__} without a bottleneck to shift; give a model with a UNet",
    )
    width = int(config.channel_mult[-1] * config.model_channels)  # type: ignore[union-attr]
    return DeltaHConfig(channels=width, time_channels=config.time_channels, form=form, **fields)  # type: ignore[union-attr]


def build_delta_h(config: DeltaHConfig, *, seed: int = 0, zero: bool = False) -> DeltaH | DirectDeltaH:
    """Return a shift at its start, on the CPU; the caller's random state stays as it is.

    Args:
        config: What it is made of.
        seed: Decides the starting values.
        zero: Start with a shift of 0 and not, as published, with random layers.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = DirectDeltaH(config) if config.form == "direct" else DeltaH(config)
    if zero:
        zeroed(module if isinstance(module, DirectDeltaH) else module.after[-1])
    return module

"""Noise schedules: how much of the image is left at each training time, and the levels that paths are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from steerdiff.errors import UserError, require

__all__ = ["CLEAN", "FloatArray", "Level", "NoiseSchedule"]

FloatArray = npt.NDArray[np.float64]
_SAME_TIME = 1e-9  # an inverse this close to a table entry means the entry
_LARGEST_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: the cosine's last beta would be 1


@dataclass(frozen=True)
class Level:
    """A noise level: ``x = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps``. Moves of a path lead from one to another."""

    t: float  #: training time that the network is told, in [0, T); -1 is the clean image
    alpha_bar: float  #: share of the image's variance that is left, in [0, 1]

    def __post_init__(self) -> None:
        require(0 <= self.alpha_bar <= 1, f"alpha_bar is {self.alpha_bar}; a level needs a value in [0, 1]")

    @property
    def clean(self) -> bool:
        """Whether the image is free of noise here."""
        return self.alpha_bar == 1

    @property
    def sigma(self) -> float:
        """Noise over signal, ``sqrt((1 - alpha_bar) / alpha_bar)`` (Karras et al. 2022); infinite for pure noise."""
        return math.sqrt((1 - self.alpha_bar) / self.alpha_bar) if self.alpha_bar else math.inf

    @property
    def log_snr(self) -> float:
        """``log(alpha_bar / (1 - alpha_bar))``; infinite for the clean image, minus infinity for pure noise."""
        if self.clean:
            return math.inf
        return math.log(self.alpha_bar) - math.log1p(-self.alpha_bar) if self.alpha_bar else -math.inf


CLEAN = Level(-1.0, 1.0)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A variance schedule over training times ``0..T-1``, kept in float64; equal and hashable by value.

    ``alpha_bars[t]`` is the product of ``1 - betas`` up to and with ``t``. Time 0 is the least noisy trained level,
    not the clean image: that is time -1, where ``alpha_bar`` is 1. Make one with :meth:`linear`, :meth:`scaled_linear`,
    :meth:`cosine` or :meth:`from_betas`.
    """

    betas: FloatArray = field(repr=False)  #: variance added by each training step, in (0, 1), the last up to 1, [T]
    recipe: Mapping[str, Any] = field(default_factory=dict)  #: name and arguments it was made from
    alpha_bars: FloatArray = field(init=False, repr=False)  #: cumulative products of ``1 - betas``, [T]

    def __post_init__(self) -> None:
        betas = np.array(self.betas, dtype=np.float64)
        require(
            betas.ndim == 1 and betas.size > 0, f"betas have the shape {list(betas.shape)}; give a list [T], T >= 1"
        )
        require(
            bool(np.all((betas > 0) & (betas < 1) | (np.arange(1, betas.size + 1) == betas.size) & (betas == 1))),
            f"betas reach from {betas.min():.6g} to {betas.max():.6g}; each must lie strictly between 0 and 1 "
            "(the last may be 1)",
        )
        alpha_bars = np.cumprod(1 - betas)
        underflows = alpha_bars[-1] == 0 and (betas[-1] < 1 or not alpha_bars[:-1].all())
        require(not underflows, "betas leave alpha_bar at exactly 0 in float64; use smaller or fewer betas")
        betas.flags.writeable = alpha_bars.flags.writeable = False
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "alpha_bars", alpha_bars)

    @classmethod
    def linear(cls, T: int = 1000, start: float | None = None, end: float | None = None) -> NoiseSchedule:
        """Betas on a straight line. Source: Ho et al. 2020; scaled to ``T`` as in Nichol & Dhariwal 2021.

        Args:
            T: Number of training times.
            start: First beta; None is ``1e-4 * 1000 / T``.
            end: Last beta; None is ``0.02 * 1000 / T``.

        Raises:
            UserError: ``T`` below 1, or a beta outside (0, 1).
        """
        _check_times(T)
        first = 1000 / T * 1e-4 if start is None else start
        last = 1000 / T * 0.02 if end is None else end
        return cls(np.linspace(first, last, T), {"name": "linear", "T": T, "start": start, "end": end})

    @classmethod
    def scaled_linear(cls, T: int = 1000, start: float = 0.00085, end: float = 0.012) -> NoiseSchedule:
        """Square roots of the betas on a straight line. Source: latent diffusion (Rombach et al. 2022), its defaults.

        Raises:
            UserError: ``T`` below 1, or a beta outside (0, 1).
        """
        _check_times(T)
        require(start > 0 and end > 0, f"start is {start} and end is {end}; both betas must be positive")
        betas = np.linspace(math.sqrt(start), math.sqrt(end), T) ** 2
        return cls(betas, {"name": "scaled_linear", "T": T, "start": start, "end": end})

    @classmethod
    def cosine(cls, T: int = 1000, shift: float = 1.0) -> NoiseSchedule:
        """Squared cosine of time, each beta at most 0.999.

        Source: Nichol & Dhariwal 2021, eq. 17; the shift is Hoogeboom et al. 2023 (simple diffusion), eq. 5: for
        images of side ``d`` they take ``shift = 64 / d``, so that larger images get more noise.

        Args:
            T: Number of training times.
            shift: The log-SNR of the curve moves by ``2 log(shift)``: below 1 is noisier at every time; 1 is the
                classical schedule, exactly.

        Raises:
            UserError: ``T`` below 1, or ``shift`` not a positive number.
        """
        _check_times(T)
        require(0 < shift < math.inf, f"shift is {shift}; it must be a positive number, 1 for the classical cosine")

        def kept(i: int) -> float:
            share = math.cos((i / T + 0.008) / 1.008 * math.pi / 2) ** 2
            return share if shift == 1 else shift**2 * share / (shift**2 * share + 1 - share)

        betas = [min(1 - kept(i + 1) / kept(i), _LARGEST_BETA) for i in range(T)]
        return cls(np.array(betas), {"name": "cosine", "T": T, "shift": shift})

    @classmethod
    def from_betas(cls, betas: Sequence[float] | FloatArray) -> NoiseSchedule:
        """A schedule from its own betas [T], each strictly between 0 and 1; UserError otherwise."""
        return cls(np.asarray(betas, dtype=np.float64))

    def zero_terminal_snr(self) -> NoiseSchedule:
        """The schedule moved so that its last time is pure noise, alpha_bar 0, and its first stays as it is.

        ``sqrt(alpha_bar)`` is shifted and stretched. Networks that predict ``v`` or ``x0`` can be asked there, those
        that predict noise cannot. Source: Lin et al. 2024 (Common diffusion noise schedules are flawed), Algorithm 1.

        Raises:
            UserError: A schedule with a single time.
        """
        require(self.T >= 2, "a schedule with 1 training time has no last time to rescale; use at least 2")
        roots = np.sqrt(self.alpha_bars)
        alpha_bars = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
        betas = 1 - alpha_bars / np.append(1.0, alpha_bars[:-1])
        return type(self)(betas, {"name": "zero_terminal_snr", "of": self.to_dict()})

    def to_dict(self) -> dict[str, Any]:
        """Name and arguments as JSON can hold them; ``from_dict`` gives an equal schedule."""
        return dict(self.recipe) if self.recipe else {"name": "betas", "betas": self.betas.tolist()}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> NoiseSchedule:
        """The schedule that ``to_dict`` described; UserError for an unknown name or argument."""
        makers: dict[str, Callable[..., NoiseSchedule]] = {
            "linear": NoiseSchedule.linear,
            "scaled_linear": NoiseSchedule.scaled_linear,
            "cosine": NoiseSchedule.cosine,
            "betas": NoiseSchedule.from_betas,
            "zero_terminal_snr": lambda of: NoiseSchedule.from_dict(of).zero_terminal_snr(),
        }
        arguments = dict(data)
        name = arguments.pop("name", None)
        require(name in makers, f"schedule name is {name!r}; known names are {', '.join(makers)}")
        try:
            return makers[str(name)](**arguments)
        except TypeError as error:
            raise UserError(f"schedule {name!r} does not take the arguments {sorted(arguments)}: {error}") from error

    def respaced(self, times: Sequence[int]) -> NoiseSchedule:
        """The shorter process over the kept ``times`` (ascending): ``beta' = 1 - alpha_bar[i] / alpha_bar[previous]``.

        Its time ``i`` is the ``i``-th kept time. Source: Nichol & Dhariwal 2021, eq. 19.

        Raises:
            UserError: ``times`` empty, not strictly ascending, or outside ``[0, T)``.
        """
        kept = list(times)
        ascending = bool(kept) and all(a < b for a, b in zip(kept, kept[1:], strict=False))
        require(
            ascending and kept[0] >= 0 and kept[-1] < self.T,
            f"kept times {kept} are not ascending integers in [0, {self.T}); take them from samplers.respaced_times",
        )
        alpha_bars = self.alpha_bars[kept]
        return NoiseSchedule.from_betas(1 - alpha_bars / np.append(1.0, alpha_bars[:-1]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoiseSchedule) and np.array_equal(self.betas, other.betas)

    def __hash__(self) -> int:
        return hash(self.betas.tobytes())

    @property
    def T(self) -> int:
        """Number of training times."""
        return int(self.betas.size)

    def alpha_bar(self, t: float) -> float:
        """``alpha_bar`` at a real time in [-1, T-1]: the table at integers, 1 at -1, ``log alpha_bar`` linear between.

        Towards an alpha_bar of 0, whose logarithm is infinite, it is alpha_bar itself that is linear.

        Raises:
            UserError: ``t`` outside [-1, T-1].
        """
        require(-1 <= t <= self.T - 1, f"t is {t}; this schedule knows times from -1 (clean) to {self.T - 1}")
        below = math.floor(t)
        if below == t:
            return 1.0 if t == -1 else float(self.alpha_bars[below])
        low, high = self.alpha_bar(below), self.alpha_bar(below + 1)
        if high == 0:
            return low * (below + 1 - t)
        return math.exp(math.log(low) + (t - below) * (math.log(high) - math.log(low)))

    def level(self, t: float) -> Level:
        """The level at a real time ``t`` in [-1, T-1]; UserError outside."""
        return Level(float(t), self.alpha_bar(t))

    def t_of_alpha_bar(self, alpha_bar: float) -> float:
        """The real time in [-1, T-1] at which ``alpha_bar`` is left; inverse of :meth:`alpha_bar`.

        Raises:
            UserError: Less is asked to be left than the last level has, or more than 1.
        """
        least = float(self.alpha_bars[-1])
        slack = 1e-9 * least  # sigma and log-SNR round on their way back
        require(
            least - slack <= alpha_bar <= 1,
            f"alpha_bar is {alpha_bar:.6g} (sigma {_sigma(alpha_bar):.6g}); this schedule holds alpha_bar from "
            f"{least:.6g} to 1 (sigma from 0 to {_sigma(least):.6g})",
        )
        kept = np.append(1.0, self.alpha_bars)
        if least == 0 and alpha_bar < kept[-2]:
            t = self.T - 1 - alpha_bar / float(kept[-2])
        else:
            logs = -np.log(kept[kept > 0])
            t = float(np.interp(-math.log(max(alpha_bar, least)), logs, np.arange(-1.0, logs.size - 1)))
        return float(round(t)) if abs(t - round(t)) < _SAME_TIME else t

    def t_of_sigma(self, sigma: float) -> float:
        """The real time with noise-to-signal ratio ``sigma`` (Karras); UserError if the schedule does not reach it."""
        require(sigma >= 0, f"sigma is {sigma}; it must not be negative")
        return self.t_of_alpha_bar(1 / (1 + sigma**2))

    def t_of_log_snr(self, log_snr: float) -> float:
        """The real time with ``log(alpha_bar / (1 - alpha_bar)) = log_snr``; UserError if it is not reached."""
        return self.t_of_alpha_bar(1 / (1 + math.exp(-log_snr)) if log_snr > -700 else 0.0)

    def tensor(
        self, values: FloatArray, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """A float64 table [T] as a tensor, rounded once and at the end."""
        return torch.from_numpy(np.array(values, dtype=np.float64)).to(device=device, dtype=dtype)

    def gather(self, values: FloatArray, t: Tensor, like: Tensor) -> Tensor:
        """``values[t]`` for times ``t`` [B] (int64), shaped [B, 1, 1, 1] to meet ``like`` [B, C, H, W]."""
        table = self.tensor(values, device=t.device, dtype=torch.promote_types(like.dtype, torch.float32))
        return table[t].reshape(-1, *[1] * (like.ndim - 1))

    def q_sample(self, x0: Tensor, t: Tensor | Level, eps: Tensor) -> Tensor:
        """Noise clean images: ``sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps`` (Ho et al. 2020, eq. 4).

        Args:
            x0: Images [B, C, H, W] in [-1, 1].
            t: Times [B] (int64), one per image, or one level for all; the clean level returns ``x0`` exactly.
            eps: Standard normal noise of the shape of ``x0``.
        """
        if isinstance(t, Level):
            return math.sqrt(t.alpha_bar) * x0 + math.sqrt(1 - t.alpha_bar) * eps
        kept, added = np.sqrt(self.alpha_bars), np.sqrt(1 - self.alpha_bars)
        return self.gather(kept, t, x0) * x0 + self.gather(added, t, x0) * eps


def _sigma(alpha_bar: float) -> float:
    return Level(0.0, alpha_bar).sigma if 0 <= alpha_bar <= 1 else math.nan


def _check_times(count: int) -> None:
    require(count >= 1, f"T is {count}; a schedule needs at least 1 training time")

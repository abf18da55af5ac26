"""Which times and levels other libraries visit, as presets: the path of each, level by level.

Stable Diffusion's results depend on where the list of times begins, by how much it is shifted, and whether the last
step leads to the clean image or to the least noisy trained level. These presets are the choices of CompVis' and
diffusers' samplers; whole runs are tested against numbers of the original code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from steerdiff.errors import require

from .path import Move, Path
from .respacing import karras_sigmas, spaced_times
from .schedule import CLEAN, FloatArray, Level, NoiseSchedule

__all__ = ["CONVENTIONS", "CompVis", "Convention", "DiffusersInverse", "DiffusersSigmas", "DiffusersTimes"]

Convention = Callable[[NoiseSchedule, int], Path]
"""``convention(schedule, steps) -> Path``."""

Spacing = Literal["leading", "trailing", "linspace"]
Final = Literal["zero", "sigma_min"]
Grid = Literal["euler", "dpm++"]


def _check_spacing(spacing: str, offset: int) -> None:
    require(spacing in get_args(Spacing), f"spacing is {spacing!r}; known are {', '.join(get_args(Spacing))}")
    require(offset >= 0, f"offset is {offset}; it must be at least 0, and is 1 for Stable Diffusion")


@dataclass(frozen=True, kw_only=True)
class CompVis:
    """DDIM and PLMS of CompVis and Stability: every ``T // steps``-th time plus 1, down to alpha_bar[0].

    More moves than ``steps`` where it does not divide T (30 gives 31 of 1000), and an error where the list leaves the
    trained times (300 of 1000), as there. Source: latent diffusion, ``make_ddim_timesteps`` with ``uniform``.
    """

    def __call__(self, schedule: NoiseSchedule, steps: int) -> Path:
        """Return the path; UserError for ``steps`` outside 1..T, or that lead past the last trained time."""
        return Path.spaced(schedule, steps, "uniform_ddim", 1, schedule.level(0))


@dataclass(frozen=True, kw_only=True)
class DiffusersTimes:
    """DDIM, PNDM and DDPM of diffusers: whole times, and the next level always ``T // steps`` times below.

    With ``linspace``, and where ``steps`` does not divide T with ``trailing``, that level is not the next time of the
    list: the image is then taken to be at another level than it reached. The path has ``gaps`` there.
    """

    spacing: Spacing = "leading"  #: ``timestep_spacing``
    offset: int = 0  #: ``steps_offset``, added to the times of ``leading``; Stable Diffusion has 1
    alpha_one: bool = True  #: ``set_alpha_to_one``: below time 0 lies the clean image, else the level of time 0

    def __post_init__(self) -> None:
        _check_spacing(self.spacing, self.offset)

    def __call__(self, schedule: NoiseSchedule, steps: int) -> Path:
        """Return the path; UserError for ``steps`` outside 1..T, or that lead past the last trained time."""
        offset = self.offset if self.spacing == "leading" else 0
        times = spaced_times(schedule.T, steps, self.spacing, offset)[::-1]
        lower = [t - schedule.T // steps for t in times]
        final = CLEAN if self.alpha_one else schedule.level(0)
        theres = [schedule.level(t) if t >= 0 else final for t in lower]
        heres = [schedule.level(t) for t in times]
        if theres[:-1] == heres[1:]:
            return Path.from_levels([*heres, theres[-1]], T=schedule.T, schedule=schedule)
        moves = [Move(here=here, there=there, schedule=schedule) for here, there in zip(heres, theres, strict=True)]
        return Path.from_moves(moves, T=schedule.T, gaps=True)


@dataclass(frozen=True, kw_only=True)
class DiffusersInverse:
    """DDIM inversion of diffusers: up through the same times, where the network is told the time of the next level.

    The image starts at alpha_bar[0]; a network cannot be asked at the clean level, which is where diffusers starts with
    ``set_alpha_to_one``. Ends at the level where ``DiffusersTimes`` with the same offset begins.
    """

    offset: int = 1  #: ``steps_offset``; Stable Diffusion has 1

    def __post_init__(self) -> None:
        _check_spacing("leading", self.offset)

    def __call__(self, schedule: NoiseSchedule, steps: int) -> Path:
        """Return the path, of kind ``invert``; UserError for ``steps`` outside 1..T, or that lead out of range."""
        times = spaced_times(schedule.T, steps, "leading", self.offset)
        reached = [schedule.alpha_bar(max(t - schedule.T // steps, 0)) for t in times]
        levels = [Level(float(t), alpha_bar) for t, alpha_bar in zip(times, reached, strict=True)]
        return Path.from_levels([*levels, schedule.level(times[-1])], T=schedule.T, kind="invert", schedule=schedule)


@dataclass(frozen=True, kw_only=True)
class DiffusersSigmas:
    """The samplers of diffusers that work in sigma: their times, and sigmas interpolated in the table.

    Sigma, not its logarithm, is linear between whole times, and the network is told the real time of a Karras sigma
    (``grid="euler"``) or the whole time nearest to it (``grid="dpm++"``). Used by Euler, Euler ancestral, Heun and LMS
    (``euler``), and by the DPM-Solvers and UniPC (``dpm++``), whose list has one point more, at time 0, that is left
    out.
    """

    grid: Grid = "euler"  #: which family of samplers
    spacing: Spacing = "linspace"  #: ``timestep_spacing``
    offset: int = 0  #: ``steps_offset``, added to the times of ``leading``
    karras: bool = False  #: ``use_karras_sigmas``: spaced by Karras et al. 2022 with rho 7 instead
    final: Final = "zero"  #: ``final_sigmas_type``: the last level, the clean image or that of time 0

    def __post_init__(self) -> None:
        _check_spacing(self.spacing, self.offset)
        require(self.grid in get_args(Grid), f"grid is {self.grid!r}; known are {', '.join(get_args(Grid))}")
        require(self.final in get_args(Final), f"final is {self.final!r}; known are {', '.join(get_args(Final))}")

    def __call__(self, schedule: NoiseSchedule, steps: int) -> Path:
        """Return the path; UserError for ``steps`` outside 1..T, or that lead past the last trained time."""
        require(
            schedule.alpha_bars[-1] > 0, "a schedule that ends in pure noise has no largest sigma; use DDIM's times"
        )
        table = np.sqrt((1 - schedule.alpha_bars) / schedule.alpha_bars)
        times = self._times(schedule.T, steps)
        sigmas = np.interp(times, np.arange(schedule.T), table)
        if self.karras:
            high, low = (sigmas[0], sigmas[-1]) if self.grid == "euler" else (table[-1], table[0])
            sigmas = karras_sigmas(steps, low, high) if steps > 1 else np.array([high])
            times = np.interp(np.log(sigmas), np.log(table), np.arange(schedule.T))
            times = np.round(times) if self.grid == "dpm++" else times
        levels = [Level(float(t), float(1 / (1 + sigma**2))) for t, sigma in zip(times, sigmas, strict=True)]
        final = CLEAN if self.final == "zero" else schedule.level(0)
        return Path.from_levels([*levels, final], T=schedule.T, schedule=schedule)

    def _times(self, T: int, steps: int) -> FloatArray:
        """Times, falling, before any Karras spacing."""
        require(1 <= steps <= T, f"steps is {steps}; it must be from 1 to T = {T}, the number of trained times")
        extra = self.grid == "dpm++"
        if self.spacing == "linspace":
            times = np.linspace(0, T - 1, steps + extra)[::-1] if steps + extra > 1 else np.array([T - 1.0])
            times = np.round(times)[:-1] if extra else times
        elif self.spacing == "leading":
            times = (np.arange(steps + extra) * float(T // (steps + extra)))[::-1][:steps] + self.offset
        else:
            times = np.round(np.arange(T, 0, -T / steps))[:steps] - 1
        require(
            times.max() < T,
            f"offset is {self.offset}: the times would reach {times.max():g}, outside [0, {T}); use fewer steps",
        )
        return np.asarray(times, dtype=np.float64)


CONVENTIONS: dict[str, Convention] = {
    "compvis": CompVis(),
    "diffusers-ddim": DiffusersTimes(offset=1, alpha_one=False),
    "diffusers-ddim-alpha-one": DiffusersTimes(offset=1),
    "diffusers-ddim-default": DiffusersTimes(),
    "diffusers-ddim-trailing": DiffusersTimes(spacing="trailing"),
    "diffusers-ddim-linspace": DiffusersTimes(spacing="linspace"),
    "diffusers-ddim-inverse": DiffusersInverse(),
    "diffusers-pndm": DiffusersTimes(offset=1, alpha_one=False),
    "diffusers-euler": DiffusersSigmas(),
    "diffusers-euler-karras": DiffusersSigmas(karras=True),
    "diffusers-euler-trailing": DiffusersSigmas(spacing="trailing"),
    "diffusers-dpm++": DiffusersSigmas(grid="dpm++"),
    "diffusers-dpm++-karras": DiffusersSigmas(grid="dpm++", karras=True),
    "diffusers-dpm++-trailing": DiffusersSigmas(grid="dpm++", spacing="trailing"),
}
"""Paths of other libraries by name, with the settings that Stable Diffusion is published with, or the one named."""

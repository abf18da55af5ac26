"""Noise schedules, predictions, paths, solvers, and the loop that runs them."""

from steerdiff.samplers.ddim import DDIM
from steerdiff.samplers.ddpm import DDPM, VarianceKind, model_variance, posterior_mean
from steerdiff.samplers.dpm_solver import DPMSolver2M
from steerdiff.samplers.loop import Callback, Interrupted, NonFiniteError, Record, Recorder, integrate, trajectory
from steerdiff.samplers.noise import Noise, Seeds, resolve_seeds
from steerdiff.samplers.path import Move, MoveKind, Path
from steerdiff.samplers.prediction import (
    ClipPolicy,
    Denoiser,
    Network,
    NetworkDenoiser,
    Parameterization,
    Prediction,
)
from steerdiff.samplers.respacing import (
    SIGMA_SPACINGS,
    SigmaSpacing,
    TimeSpacing,
    exponential_sigmas,
    karras_sigmas,
    polyexponential_sigmas,
    respaced_times,
    spaced_times,
    vp_sigmas,
)
from steerdiff.samplers.schedule import CLEAN, Level, NoiseSchedule
from steerdiff.samplers.solvers import Constraint, Solver, Step, renoise
from steerdiff.samplers.time_travel import jump_times

SOLVERS: dict[str, type[Solver]] = {"ddpm": DDPM, "ddim": DDIM, "dpm++2m": DPMSolver2M}
"""Solvers by the names that the command line uses."""

__all__ = [
    "CLEAN",
    "DDIM",
    "DDPM",
    "SIGMA_SPACINGS",
    "SOLVERS",
    "Callback",
    "ClipPolicy",
    "Constraint",
    "DPMSolver2M",
    "Denoiser",
    "Interrupted",
    "Level",
    "Move",
    "MoveKind",
    "Network",
    "NetworkDenoiser",
    "Noise",
    "NoiseSchedule",
    "NonFiniteError",
    "Parameterization",
    "Path",
    "Prediction",
    "Record",
    "Recorder",
    "Seeds",
    "SigmaSpacing",
    "Solver",
    "Step",
    "TimeSpacing",
    "VarianceKind",
    "exponential_sigmas",
    "integrate",
    "jump_times",
    "karras_sigmas",
    "model_variance",
    "polyexponential_sigmas",
    "posterior_mean",
    "renoise",
    "resolve_seeds",
    "respaced_times",
    "spaced_times",
    "trajectory",
    "vp_sigmas",
]

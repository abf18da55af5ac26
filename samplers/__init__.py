"""Noise schedules, predictions, paths, solvers, and the loop that runs them."""

from .constraints import FilteredReference, KnownRegion
from .ddim import DDIM
from .ddpm import DDPM, VarianceKind, model_variance, posterior_mean
from .dpm_solver import DPMSolver2M
from .euler_maruyama import EulerMaruyama
from .loop import Callback, Interrupted, NonFiniteError, Record, Recorder, integrate, trajectory
from .noise import Noise, Seeds, resolve_seeds
from .ode import Euler, Heun
from .path import Move, MoveKind, Path
from .prediction import (
    ClipPolicy,
    Denoiser,
    Network,
    NetworkDenoiser,
    Parameterization,
    Prediction,
)
from .respacing import (
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
from .schedule import CLEAN, Level, NoiseSchedule
from .sde import SDE, VESDE, VPSDE, ScoreDenoiser, SubVPSDE, sde_level, sde_path, sde_scale
from .solvers import Constraint, Solver, Step, renoise
from .time_travel import jump_times
from .variational import (
    PosteriorTables,
    discretised_log_likelihood,
    normal_kl,
    posterior_tables,
    prior_bits,
    vlb_terms,
)

SOLVERS: dict[str, type[Solver]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "euler": Euler,
    "heun": Heun,
    "dpm++2m": DPMSolver2M,
    "euler-maruyama": EulerMaruyama,
}
"""Solvers by the names that the command line uses."""

__all__ = [
    "CLEAN",
    "DDIM",
    "DDPM",
    "SDE",
    "SIGMA_SPACINGS",
    "SOLVERS",
    "VESDE",
    "VPSDE",
    "Callback",
    "ClipPolicy",
    "Constraint",
    "DPMSolver2M",
    "Denoiser",
    "Euler",
    "FilteredReference",
    "KnownRegion",
    "EulerMaruyama",
    "Heun",
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
    "PosteriorTables",
    "Prediction",
    "Record",
    "Recorder",
    "ScoreDenoiser",
    "Seeds",
    "SigmaSpacing",
    "Solver",
    "Step",
    "SubVPSDE",
    "TimeSpacing",
    "VarianceKind",
    "discretised_log_likelihood",
    "exponential_sigmas",
    "integrate",
    "jump_times",
    "karras_sigmas",
    "model_variance",
    "normal_kl",
    "polyexponential_sigmas",
    "posterior_mean",
    "posterior_tables",
    "prior_bits",
    "renoise",
    "resolve_seeds",
    "respaced_times",
    "sde_level",
    "sde_path",
    "sde_scale",
    "spaced_times",
    "trajectory",
    "vlb_terms",
    "vp_sigmas",
]

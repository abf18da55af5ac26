"""Noise schedules, predictions, paths, solvers, and the loop that runs them."""

from .ancestral import DPM2Ancestral, EulerAncestral
from .constraints import FilteredReference, KnownRegion
from .conventions import CONVENTIONS, CompVis, Convention, DiffusersInverse, DiffusersSigmas, DiffusersTimes
from .ddim import DDIM
from .ddpm import DDPM, VarianceKind, model_variance, posterior_mean
from .dpm_solver import DPMSolver2M, DPMSolver2S, DPMSolver3M
from .dpm_solver_sde import DPMSolver2MSDE, DPMSolver3MSDE, DPMSolverSDE
from .likelihood import Likelihood, Trace, dequantised, log_likelihood
from .linear_multistep import LMS, PLMS
from .loop import Callback, Interrupted, NonFiniteError, Record, Recorder, integrate, trajectory
from .noise import Noise, Seeds, resolve_seeds
from .ode import DPM2, Euler, Heun
from .path import Move, MoveKind, Path
from .prediction import (
    ClipPolicy,
    Denoiser,
    Network,
    NetworkDenoiser,
    Parameterization,
    Prediction,
)
from .predictor_corrector import PredictorCorrector
from .probability_flow import RK45
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
from .reverse_sde import Ancestral, EulerMaruyama, NoPredictor, ReverseDiffusion
from .rows import RowDenoiser, predict_rows
from .runge_kutta import Tolerance
from .schedule import CLEAN, Level, NoiseSchedule
from .sde import SDE, VESDE, VPSDE, ScoreDenoiser, SubVPSDE, sde_level, sde_path, sde_scale, sde_time
from .solvers import Constraint, Solver, Step, renoise
from .stored import StoredTrajectory
from .time_travel import jump_times
from .unipc import UniPC
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
    "dpm2": DPM2,
    "dpm++2m": DPMSolver2M,
    "dpm++3m": DPMSolver3M,
    "dpm++2s": DPMSolver2S,
    "unipc": UniPC,
    "lms": LMS,
    "plms": PLMS,
    "euler-ancestral": EulerAncestral,
    "dpm2-ancestral": DPM2Ancestral,
    "dpm++sde": DPMSolverSDE,
    "dpm++2m-sde": DPMSolver2MSDE,
    "dpm++3m-sde": DPMSolver3MSDE,
    "euler-maruyama": EulerMaruyama,
    "reverse-diffusion": ReverseDiffusion,
    "predictor-corrector": PredictorCorrector,
    "rk45": RK45,
}
"""Solvers by the names that the command line uses."""

__all__ = [
    "CLEAN",
    "CONVENTIONS",
    "DDIM",
    "DDPM",
    "DPM2",
    "LMS",
    "PLMS",
    "SDE",
    "SIGMA_SPACINGS",
    "SOLVERS",
    "VESDE",
    "VPSDE",
    "Callback",
    "ClipPolicy",
    "CompVis",
    "Constraint",
    "Convention",
    "DPM2Ancestral",
    "DPMSolver2M",
    "DPMSolver2MSDE",
    "DPMSolver2S",
    "DPMSolver3M",
    "DPMSolver3MSDE",
    "DPMSolverSDE",
    "Denoiser",
    "DiffusersInverse",
    "DiffusersSigmas",
    "DiffusersTimes",
    "Euler",
    "EulerAncestral",
    "FilteredReference",
    "KnownRegion",
    "EulerMaruyama",
    "Ancestral",
    "Tolerance",
    "RK45",
    "log_likelihood",
    "dequantised",
    "Trace",
    "Likelihood",
    "NoPredictor",
    "PredictorCorrector",
    "ReverseDiffusion",
    "sde_time",
    "predict_rows",
    "RowDenoiser",
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
    "StoredTrajectory",
    "SubVPSDE",
    "TimeSpacing",
    "UniPC",
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

"""What the steps cost besides the network: 50 of them with a network that does nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .contest import Contest, Ratio, Setting, Thunk, missing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["BATCHES", "LOOP", "loop"]

BATCHES = (1, 16)  #: images at once
STEPS = 50  #: of each run
LOOP = (
    Ratio(of="ours", to="diffusers", time=0.5),
    Ratio(of="ours", to="k-diffusion", time=0.5),
)

_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def loop(setting: Setting) -> Iterator[Contest]:
    """DDIM and DPM-Solver++(2M) on a latent of 4 x 64 x 64, in float32 as all of them keep it."""
    for batch in BATCHES:
        yield _contest("DDIM", batch, setting)
        yield _contest("DPM-Solver++(2M)", batch, setting)


def _contest(solver: str, batch: int, setting: Setting) -> Contest:
    import torch

    x = torch.randn((batch, 4, 64, 64), generator=torch.Generator().manual_seed(0)).to(setting.device)
    eps = torch.zeros_like(x)
    entries: dict[str, Thunk] = {"ours": _ours(solver, x, eps)}
    absent: dict[str, str] = {}
    for name, library, make in (("diffusers", "diffusers", _diffusers), ("k-diffusion", "k_diffusion", _k_diffusion)):
        reason = missing(library)
        if reason is None:
            entries[name] = make(solver, x, eps)
        else:
            absent[name] = reason
    facts = {"shape": list(x.shape), **({"missing": absent} if absent else {})}
    return Contest(
        key=f"loop, {solver}, batch {batch}", entries=entries, ratios=LOOP, facts=facts, work=STEPS, unit="step"
    )


def _ours(solver: str, x: Tensor, eps: Tensor) -> Thunk:
    from steerdiff.samplers import DDIM, DPMSolver2M, NetworkDenoiser, NoiseSchedule, Path, integrate

    # a new tensor each time, as a network's: one and the same would be added up with that of the step before
    denoise = NetworkDenoiser(network=lambda x, t: eps.view_as(eps), parameterization="eps")
    path = Path.spaced(NoiseSchedule.scaled_linear(), STEPS)
    method = DDIM() if solver == "DDIM" else DPMSolver2M()
    return lambda: integrate(denoise, method, path, x)


def _diffusers(solver: str, x: Tensor, eps: Tensor) -> Thunk:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    if solver == "DDIM":
        scheduler = DDIMScheduler(**_BETAS, clip_sample=False)
    else:
        scheduler = DPMSolverMultistepScheduler(**_BETAS)

    def run() -> Tensor:
        scheduler.set_timesteps(STEPS, device=x.device)  # also forgets the history of the run before
        state = x
        for t in scheduler.timesteps:
            state = scheduler.step(eps, t, scheduler.scale_model_input(state, t)).prev_sample
        return state

    return run


def _k_diffusion(solver: str, x: Tensor, eps: Tensor) -> Thunk:
    """Return its sampler; Euler without churn is DDIM in its levels."""
    from k_diffusion import external, sampling

    model = external.CompVisDenoiser(_Constant(eps)).to(x.device)
    sigmas = model.get_sigmas(STEPS)
    sampler = sampling.sample_euler if solver == "DDIM" else sampling.sample_dpmpp_2m
    return lambda: sampler(model, x, sigmas, disable=True)


def _alphas_cumprod() -> torch.Tensor:
    import torch

    betas = torch.linspace(_BETAS["beta_start"] ** 0.5, _BETAS["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


class _Constant:
    """A network that does nothing, in CompVis' form."""

    def __init__(self, eps: Tensor) -> None:
        self.eps, self.alphas_cumprod = eps, _alphas_cumprod()

    def apply_model(self, x: Tensor, t: Tensor) -> Tensor:
        return self.eps

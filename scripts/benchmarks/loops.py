"""What the steps cost besides the network: 50 of them with a network that does nothing."""

from __future__ import annotations

import math
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
    Ratio(of="arithmetic alone", to="ours"),
    Ratio(of="arithmetic alone", to="diffusers"),
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
    entries: dict[str, Thunk] = {"ours": _ours(solver, x, eps), "arithmetic alone": _arithmetic(solver, x, eps)}
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

    denoise = NetworkDenoiser(network=lambda x, t: eps, parameterization="eps")
    path = Path.spaced(NoiseSchedule.scaled_linear(), STEPS)
    method = DDIM() if solver == "DDIM" else DPMSolver2M()
    return lambda: integrate(denoise, method, path, x)


def _arithmetic(solver: str, x: Tensor, eps: Tensor) -> Thunk:
    """Return the operations on images of our steps, in our order, with all memory and all factors at hand."""
    import torch

    from steerdiff.samplers import NoiseSchedule, Path
    from steerdiff.samplers.exponential import Leap

    one, slope = torch.ones((), device=x.device), torch.empty_like(x)
    states, values = ([torch.empty_like(x) for _ in range(2)] for _ in range(2))
    path = Path.spaced(NoiseSchedule.scaled_linear(), STEPS)
    leaps = [Leap.between(move.here, move.there) for move in path]
    times = [move.here.log_snr / 2 for move in path]

    def run() -> Tensor:
        state = x
        for i, (move, leap) in enumerate(zip(path, leaps, strict=True)):
            a, b, there, x0 = move.here.alpha_bar, move.there.alpha_bar, states[i % 2], values[i % 2]
            torch.addcmul(state, eps, one, value=-math.sqrt(1 - a), out=x0).div_(math.sqrt(a))
            if solver == "DDIM":
                torch.mul(x0, math.sqrt(b), out=there).addcmul_(eps, one, value=math.sqrt(1 - b))
            elif i == 0 or not math.isfinite(leap.h):
                torch.mul(state, leap.kept, out=there).addcmul_(x0, one, value=leap.gained)
            else:
                torch.sub(x0, values[1 - i % 2], out=slope).div_(2 * (times[i] - times[i - 1]) / leap.h).add_(x0)
                torch.mul(state, leap.kept, out=there).addcmul_(slope, one, value=leap.gained)
            state = there
        return state

    return run


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

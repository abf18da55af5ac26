"""The solvers written down a second time, straight from their papers, in sigma and with unscaled images.

Plain on purpose: weights are integrals of polynomials found by quadrature, and nothing is shared with the library. A
run is ``run(denoise, y, sigmas, draw)`` with ``denoise(y, sigma) -> x0``; it returns the images after each step, the
last of which goes to sigma 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from scipy.integrate import quad
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
Run = Callable[[Denoise, Tensor, Sequence[float], Callable[[], Tensor]], list[Tensor]]
Points = list[tuple[float, Tensor]]


def integral(points: Points, weight: Callable[[float], float], a: float, b: float) -> Tensor:
    """Integral from ``a`` to ``b`` of ``weight`` times the polynomial through the points."""
    parts = []
    for i, (own, value) in enumerate(points):
        others = [place for j, (place, _) in enumerate(points) if j != i]
        share = quad(_weighted(own, others, weight), a, b, epsabs=1e-14, epsrel=1e-12)[0]
        parts.append(share * value)
    return functools.reduce(lambda one, other: one + other, parts)


def _weighted(own: float, others: list[float], weight: Callable[[float], float]) -> Callable[[float], float]:
    return lambda s: weight(s) * math.prod((s - other) / (own - other) for other in others)


def lam(sigma: float) -> float:
    """Half log-SNR."""
    return -math.log(sigma)


def exact(y: Tensor, points: Points, sigma: float, there: float, eta: float = 0.0) -> Tensor:
    """Mean of the SDE (the ODE for ``eta = 0``) for an x0 that is the polynomial in lambda through the points."""
    end, rate = lam(there), 1 + eta
    pull = integral(points, lambda s: rate * math.exp(-rate * (end - s)), lam(sigma), end)
    return math.exp(-rate * (end - lam(sigma))) * y + pull


def slope(denoise: Denoise, y: Tensor, sigma: float) -> Tensor:
    return (y - denoise(y, sigma)) / sigma


def ancestral(sigma: float, there: float, eta: float) -> tuple[float, float]:
    up = min(there, eta * math.sqrt(there**2 * (sigma**2 - there**2) / sigma**2))
    return math.sqrt(there**2 - up**2), up


def stepwise(step: Callable[..., Tensor]) -> Run:
    """A run of steps without memory; the last is Euler's to the clean image."""

    def run(denoise: Denoise, y: Tensor, sigmas: Sequence[float], draw: Callable[[], Tensor]) -> list[Tensor]:
        rows = []
        for sigma, there in zip(sigmas[:-2], sigmas[1:-1], strict=True):
            y = step(denoise, y, sigma, there, draw)
            rows.append(y)
        return [*rows, denoise(y, sigmas[-2])]

    return run


def euler_ancestral(denoise: Denoise, y: Tensor, sigma: float, there: float, draw: Callable[[], Tensor]) -> Tensor:
    down, up = ancestral(sigma, there, 1.0)
    return y + (down - sigma) * slope(denoise, y, sigma) + up * draw()


def heun(denoise: Denoise, y: Tensor, sigma: float, there: float, draw: Callable[[], Tensor]) -> Tensor:
    first = slope(denoise, y, sigma)
    second = slope(denoise, y + (there - sigma) * first, there)
    return y + (there - sigma) * (first + second) / 2


def dpm2(denoise: Denoise, y: Tensor, sigma: float, there: float, draw: Callable[[], Tensor]) -> Tensor:
    middle = math.sqrt(sigma * there)
    inside = y + (middle - sigma) * slope(denoise, y, sigma)
    return y + (there - sigma) * slope(denoise, inside, middle)


def two_s(denoise: Denoise, y: Tensor, sigma: float, there: float, draw: Callable[[], Tensor]) -> Tensor:
    down, up = ancestral(sigma, there, 1.0)
    middle = math.sqrt(sigma * down)
    inside = exact(y, [(0.0, denoise(y, sigma))], sigma, middle)
    return exact(y, [(0.0, denoise(inside, middle))], sigma, down) + up * draw()


def two_s_heun(denoise: Denoise, y: Tensor, sigma: float, there: float, draw: Callable[[], Tensor]) -> Tensor:
    middle, x0 = math.sqrt(sigma * there), denoise(y, sigma)
    inside = exact(y, [(0.0, x0)], sigma, middle)
    return exact(y, [(lam(sigma), x0), (lam(middle), denoise(inside, middle))], sigma, there)


def sde(denoise: Denoise, y: Tensor, sigma: float, there: float, draw: Callable[[], Tensor]) -> Tensor:
    middle = math.sqrt(sigma * there)
    down, up = ancestral(sigma, middle, 1.0)
    inside = exact(y, [(0.0, denoise(y, sigma))], sigma, down) + up * draw()
    down, up = ancestral(sigma, there, 1.0)
    return exact(y, [(0.0, denoise(inside, middle))], sigma, down) + up * draw()


def multistep(memory: int, eta: float, midpoint: bool) -> Run:
    """DPM-Solver++(2M) and (3M) and their SDE forms; the published 3M takes half of the second difference."""

    def mean(y: Tensor, points: Points, sigma: float, there: float) -> Tensor:
        flat, line = exact(y, points[:1], sigma, there, eta), exact(y, points[:2], sigma, there, eta)
        if len(points) == 3:
            curve = exact(y, points, sigma, there, eta)
            h = lam(there) - lam(sigma)
            (a, f), (b, g), (c, k) = points
            bend = ((f - g) / (a - b) - (g - k) / (b - c)) / (a - c)  # half the second derivative
            tilt = (a - b) * bend  # the slope at the step's start is that much above the difference
            leaning = exact(y, [(a, f), (a - h, f - h * ((f - g) / (a - b) + tilt))], sigma, there, eta)
            return (leaning + curve) / 2
        if len(points) == 2 and midpoint:
            gained = 1 - math.exp(-(1 + eta) * (lam(there) - lam(sigma)))
            (a, f), (b, g) = points
            return flat + gained / 2 * (lam(there) - lam(sigma)) * (f - g) / (a - b)
        return line if len(points) == 2 else flat

    def run(denoise: Denoise, y: Tensor, sigmas: Sequence[float], draw: Callable[[], Tensor]) -> list[Tensor]:
        points: Points = []
        rows = []
        for sigma, there in zip(sigmas[:-2], sigmas[1:-1], strict=True):
            points = [(lam(sigma), denoise(y, sigma)), *points][:memory]
            y = mean(y, points, sigma, there)
            spread = there * math.sqrt(1 - math.exp(-2 * eta * (lam(there) - lam(sigma))))
            y = y + spread * draw() if eta else y
            rows.append(y)
        return [*rows, denoise(y, sigmas[-2])]

    return run


def lms(denoise: Denoise, y: Tensor, sigmas: Sequence[float], draw: Callable[[], Tensor]) -> list[Tensor]:
    points: Points = []
    rows = []
    for sigma, there in zip(sigmas[:-1], sigmas[1:], strict=True):
        points = [(sigma, slope(denoise, y, sigma)), *points][:4]
        y = y + integral(points, lambda s: 1.0, sigma, there)
        rows.append(y)
    return rows


def plms(denoise: Denoise, y: Tensor, sigmas: Sequence[float], draw: Callable[[], Tensor]) -> list[Tensor]:
    """Adams and Bashforth's mean of the slopes, as if the steps were even: in steps, at 0, -1, -2 and -3."""
    values: list[Tensor] = []
    rows = []
    for sigma, there in zip(sigmas[:-1], sigmas[1:], strict=True):
        values = [slope(denoise, y, sigma), *values][:4]
        mean = integral([(-float(i), value) for i, value in enumerate(values)], lambda s: 1.0, 0.0, 1.0)
        if len(values) == 1:
            mean = (mean + slope(denoise, y + (there - sigma) * mean, there)) / 2
        y = y + (there - sigma) * mean
        rows.append(y)
    return rows


def unipc(
    bh: Callable[[float], float], denoise: Denoise, y: Tensor, sigmas: Sequence[float], draw: object
) -> list[Tensor]:
    """Order 3, the polynomial through the values, again with that at the step's end; B(h) for a single slope."""
    points: Points = []
    rows: list[Tensor] = []
    start, order, last = y, 0, sigmas[0]
    for i, (sigma, there) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        new = (lam(sigma), denoise(y, sigma))
        if order == 1:
            y = exact(start, points[:1], last, sigma) + bh(lam(sigma) - lam(last)) / 2 * (new[1] - points[0][1])
        elif order:
            y = exact(start, [*points[:order], new], last, sigma)
        points, start, last = [new, *points], y, sigma
        order = min(3, len(points), len(sigmas) - 1 - i)
        if there == 0:
            rows.append(new[1])
            break
        if order == 2:
            (a, f), (b, g) = points[:2]
            h = lam(there) - lam(sigma)
            y = exact(y, points[:1], sigma, there) + bh(h) / 2 * h * (f - g) / (a - b)
        else:
            y = exact(y, points[:order], sigma, there)
        rows.append(y)
    return rows


RUNS: dict[str, Run] = {
    "euler-ancestral": stepwise(euler_ancestral),
    "heun": stepwise(heun),
    "dpm2": stepwise(dpm2),
    "dpm++2s:eta=1.0": stepwise(two_s),
    "dpm++2s:variant=heun": stepwise(two_s_heun),
    "dpm++sde": stepwise(sde),
    "dpm++2m": multistep(2, 0.0, midpoint=True),
    "dpm++2m:variant=heun": multistep(2, 0.0, midpoint=False),
    "dpm++3m": multistep(3, 0.0, midpoint=True),
    "dpm++2m-sde": multistep(2, 1.0, midpoint=True),
    "dpm++2m-sde:eta=0.4,variant=heun": multistep(2, 0.4, midpoint=False),
    "dpm++3m-sde": multistep(3, 1.0, midpoint=False),
    "lms": lms,
    "plms": plms,
    "unipc:order=3": functools.partial(unipc, lambda h: 1 - math.exp(-h)),
    "unipc:order=3,b=bh1": functools.partial(unipc, lambda h: h),
}

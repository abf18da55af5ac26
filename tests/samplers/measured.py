"""The tables of docs/solvers.md: errors on the mixture of Gaussians, row by row. Run it to print them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from steerdiff.samplers import integrate
from steerdiff.scripts.solver_text import solver_from_text

from .mixture import ONE, even_path

STEPS = (40, 80, 160, 320)
ROWS = (
    "ddim",
    "euler",
    "heun",
    "dpm2",
    "dpm++2s",
    "dpm++2m",
    "dpm++2m:variant=heun",
    "dpm++2m:predicted=eps",
    "dpm++3m",
    "unipc",
    "unipc:b=bh1",
    "unipc:order=3",
    "lms:order=2",
    "lms",
    "plms",
)


def forward_errors(name: str, steps: Sequence[int] = STEPS) -> list[float]:
    """Mean error of sampling from t = 999 to t = 0, for each number of steps."""
    x, solver = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64).reshape(1, 1, 1, -1), solver_from_text(name)
    exact = ONE.flow(x, even_path(2).start, even_path(2).end)
    return [float((integrate(ONE, solver, even_path(n), x) - exact).abs().mean()) for n in steps]


def return_errors(name: str, steps: Sequence[int] = STEPS) -> list[float]:
    """Mean error of going up and coming back."""
    y, solver = torch.linspace(-1.0, 1.0, 41, dtype=torch.float64).reshape(1, 1, 1, -1), solver_from_text(name)
    paths = [even_path(n) for n in steps]
    trips = [integrate(ONE, solver, path, integrate(ONE, solver, path.inverted(), y)) for path in paths]
    return [float((trip - y).abs().mean()) for trip in trips]


def row(name: str, errors: list[float]) -> str:
    return f"| `{name}` | " + " | ".join(f"{error:.1e}".replace("e-0", "e-") for error in errors) + " |"


if __name__ == "__main__":
    for measure in (forward_errors, return_errors):
        print("\n".join(row(name, measure(name)) for name in ROWS), end="\n\n")

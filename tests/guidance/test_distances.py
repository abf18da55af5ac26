"""Distances on the sphere and out of range: closed forms, and gradients at both ends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.guidance.distances import geodesic, range_loss

U = functional.normalize(torch.linspace(-1, 2, 6, dtype=torch.float64), dim=0)
ACROSS = functional.normalize(torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=torch.float64) - U[0] * U, dim=0)


def turned(angle: float) -> Tensor:
    """The unit vector at ``angle`` from U."""
    return math.cos(angle) * U + math.sin(angle) * ACROSS


@pytest.mark.parametrize("angle", [0.0, 1e-7, 0.3, math.pi / 2, 2.5, math.pi - 1e-7, math.pi])
def test_the_distance_is_half_the_squared_angle(angle: float) -> None:
    assert float(geodesic(turned(angle), U)) == pytest.approx(angle**2 / 2, rel=1e-7, abs=1e-14)


@pytest.mark.parametrize("angle", [0.3, 1.2, 2.9])
def test_it_is_the_formula_of_the_official_code(angle: float) -> None:
    v = turned(angle)
    official = 2 * torch.asin((v - U).norm() / 2) ** 2
    torch.testing.assert_close(geodesic(v, U), official)


@pytest.mark.parametrize("angle", [0.3, 1.2, 2.9])
def test_its_gradient_along_the_sphere_is_the_angle(angle: float) -> None:
    free = (3 * turned(angle)).requires_grad_()
    geodesic(functional.normalize(free, dim=0), U).backward()
    assert free.grad is not None
    assert float(free.grad.norm()) == pytest.approx(angle / 3, rel=1e-9)  # a vector of length 3 turns 3 times as slowly


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("away", [0.0, 1e-30, 1e-6, 1e-3])
def test_its_gradient_is_finite_near_equal_and_opposite_vectors(dtype: torch.dtype, sign: int, away: float) -> None:
    free = (sign * U + away * ACROSS).to(dtype).requires_grad_()
    distance = geodesic(functional.normalize(free, dim=0), U.to(dtype))
    assert distance.dtype == torch.float32
    distance.backward()
    assert free.grad is not None and free.grad.isfinite().all() and float(free.grad.float().norm()) <= math.pi + 0.1
    if away == 0 and sign == 1 and dtype == torch.float32:
        assert not free.grad.abs().max() > 1e-3


def test_vectors_broadcast_and_rows_do_not_mix() -> None:
    rows = torch.stack([turned(a) for a in (0.1, 1.0, 2.0)])
    expected = torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64).square() / 2
    torch.testing.assert_close(geodesic(rows, U[None]), expected)
    torch.testing.assert_close(geodesic(rows[:, None], rows[None])[0, 1], torch.tensor(0.9**2 / 2).double())


def test_the_range_loss_is_the_mean_square_of_what_is_outside() -> None:
    x0 = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    x0[0, 0, 0, 0], x0[0, 1, 0, 0], x0[1] = 1.5, -3.0, 1.0
    torch.testing.assert_close(range_loss(x0), torch.tensor([(0.25 + 4.0) / 12, 0.0], dtype=torch.float64))

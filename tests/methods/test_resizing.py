"""The low-pass of ILVR as a linear map, and the constraint made of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from steerdiff import UserError
from steerdiff.methods import LowPass
from steerdiff.samplers import CLEAN, Level, Move, Noise, Step
from steerdiff.samplers.constraints import FilteredReference

from ..guidance.toys import pictures

BOTH_KERNELS = pytest.mark.parametrize("kernel", ["cubic", "lanczos3", "box"])
EVERY_FACTOR = pytest.mark.parametrize("factor", [2, 4, 8, 16, 32])


def axis(phi: LowPass) -> tuple[Tensor, Tensor]:
    """The matrices of one axis, D [n / N, n] and U [n, n / N]."""
    return phi.down_rows, phi.up_rows


def low_pass(factor: int, kernel: str = "cubic", size: int = 64) -> LowPass:
    return LowPass.of(factor, torch.zeros(1, 1, size, size, dtype=torch.float64), kernel)


@BOTH_KERNELS
@EVERY_FACTOR
def test_constants_and_the_mean_pass_unchanged(factor: int, kernel: str) -> None:
    phi = low_pass(factor, kernel)
    down, up = axis(phi)
    ones = torch.ones(64, dtype=torch.float64)
    torch.testing.assert_close((up @ down) @ ones, ones)
    if kernel != "lanczos3":  # its weights are normalised by row, and only nearly sum to one by column
        torch.testing.assert_close(ones @ (up @ down), ones)
        x = pictures(1, 64).double()
        torch.testing.assert_close(phi(x).mean((2, 3)), x.mean((2, 3)))


@EVERY_FACTOR
def test_the_bicubic_low_pass_is_symmetric_with_a_spectrum_in_zero_to_one(factor: int) -> None:
    down, up = axis(low_pass(factor, size=512))
    phi = up @ down
    torch.testing.assert_close(phi, phi.T, rtol=0, atol=1e-12)
    values = torch.linalg.eigvalsh(phi)
    assert float(values.min()) > -1e-12 and float(values.max()) < 1 + 1e-12
    shortfall = torch.linalg.matrix_norm(phi - phi @ phi, 2)
    assert 0.24 < float(shortfall) <= 0.25 + 1e-12  # not idempotent, x - x^2 is at most 1/4
    kept = torch.linalg.eigvals(down @ up).real
    assert 0.45 < float(kept.min()) < 0.55 and float(kept.max()) < 1 + 1e-9


@EVERY_FACTOR
def test_the_box_low_pass_is_a_projection(factor: int) -> None:
    phi = low_pass(factor, "box")
    x = pictures(1, 64).double()
    torch.testing.assert_close(phi(phi(x)), phi(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(phi.down(x), torch.nn.functional.avg_pool2d(x, factor))


@BOTH_KERNELS
def test_a_factor_of_one_is_the_identity(kernel: str) -> None:
    x = pictures(1, 8)
    torch.testing.assert_close(LowPass.of(1, x, kernel)(x), x)


def test_height_and_width_may_differ_and_factors_need_not_be_powers_of_two() -> None:
    x = torch.zeros(2, 3, 12, 18)
    phi = LowPass.of(3, x)
    assert phi.down(x).shape == (2, 3, 4, 6) and phi(x).shape == x.shape


@pytest.mark.parametrize(("factor", "allowed"), [(64, r"\[1, 2, 4, 8, 16, 32\]"), (3, r"\[1, 2, 4"), (128, r"\[1, 2")])
def test_a_factor_that_does_not_fit_lists_those_that_do(factor: int, allowed: str) -> None:
    with pytest.raises(UserError, match=rf"downsample is {factor}; images of 64 pixels can be reduced by {allowed}"):
        low_pass(factor)
    with pytest.raises(UserError, match="downsample is 0; it must be at least 1"):
        low_pass(0)


def swapped(kernel: str, seed: int, factor: int = 4) -> tuple[Tensor, Tensor, Tensor, LowPass]:
    """A state before the swap, the noised reference it met, the state after, and the filter; all in float64."""
    x, y = pictures(1, 16, seed).double(), pictures(1, 16, seed + 1).double()
    phi, there = LowPass.of(factor, x, kernel), Level(30.0, 0.7)
    constraint = FilteredReference(y, low_pass=phi)
    after = constraint(Step(x), Move(here=Level(40.0, 0.6), there=there), Noise(3, like=x))
    noised = there.alpha_bar**0.5 * y + (1 - there.alpha_bar) ** 0.5 * Noise(3, like=x).fork("reference")()
    return x, noised, after, phi


@given(seed=st.integers(0, 1000), kernel=st.sampled_from(["cubic", "lanczos3", "box"]))
def test_after_a_swap_the_difference_to_the_reference_is_what_the_filter_stops(seed: int, kernel: str) -> None:
    before, noised, after, phi = swapped(kernel, seed)
    difference = before - noised
    torch.testing.assert_close(after - noised, difference - phi(difference), rtol=0, atol=1e-12)


@given(seed=st.integers(0, 1000))
def test_a_box_swap_makes_low_passes_equal_and_a_bicubic_one_nearly(seed: int) -> None:
    _, noised, after, phi = swapped("box", seed)
    torch.testing.assert_close(phi(after), phi(noised), rtol=0, atol=1e-12)
    before, noised, after, phi = swapped("cubic", seed)
    assert float((phi(after) - phi(noised)).norm()) <= 0.25 * float((before - noised).norm())
    torch.testing.assert_close(after.mean((2, 3)), noised.mean((2, 3)), rtol=0, atol=1e-12)


def test_the_reference_is_noised_to_the_level_asked_for_and_not_at_all_at_the_clean_one() -> None:
    x, y, noise = pictures(1, 16, 0), pictures(1, 16, 1), Noise(0, like=pictures(1, 16))
    move = Move(here=Level(0.0, 0.9), there=CLEAN)

    def phi(image: Tensor) -> Tensor:
        return image

    torch.testing.assert_close(FilteredReference(y, low_pass=phi)(Step(x), move, noise), y)
    above = FilteredReference(y, low_pass=phi, at="here")(Step(x), move, noise)
    assert 0.2 < float((above - 0.9**0.5 * y).std()) < 0.45  # sqrt(0.1) = 0.32
    untouched = FilteredReference(y, low_pass=phi, moves=0)(Step(x), move, noise)
    assert torch.equal(untouched, x)
    torch.testing.assert_close(FilteredReference(y, low_pass=phi, moves=0, final=True)(Step(x), move, noise), y)

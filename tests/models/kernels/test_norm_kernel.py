"""The fused group normalisation, emulated from the kernels' own source, against float64."""

import ctypes
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from . import norm_host
from .emulation import NO_COMPILER
from .norm_host import Case, backward, forward

if NO_COMPILER:
    pytest.skip(NO_COMPILER, allow_module_level=True)


TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # the last two: one rounding


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> ctypes.CDLL:
    return norm_host.compiled(tmp_path_factory.mktemp("kernels"))


def exact(case: Case, x: Tensor) -> Tensor:
    """What the kernels approximate, in the dtype of ``x`` (as ``case.x``)."""
    h = x.transpose(1, 2) if case.channels_last else x
    grouped = h.reshape(len(x), case.groups, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    normal = (centred / (centred.square().mean(-1, keepdim=True) + case.eps).sqrt()).reshape(h.shape)
    h = normal * case.weight.to(x)[:, None] + case.bias.to(x)[:, None]
    if case.scale is not None:
        h = h * (1 + case.scale.to(x)[..., None])
    if case.shift is not None:
        h = h + case.shift.to(x)[..., None]
    h = functional.silu(h) if case.act else h
    return h.transpose(1, 2) if case.channels_last else h


@st.composite
def cases(draw) -> Case:
    """Small calls of any shape, dtype and layout: cells and channels that fill a load, a tile, or neither."""
    dtype, channels_last = draw(st.sampled_from(list(norm_host.DTYPES))), draw(st.booleans())
    groups, size = draw(st.sampled_from([1, 2, 3, 32])), draw(st.integers(1, 5))
    rows, channels = draw(st.integers(1, 3)), groups * size
    cells = draw(st.one_of(st.integers(1, 70), st.sampled_from([512, 516, 1031])))
    assume(size * cells >= 8)  # of fewer numbers the variance can be near 0, and rounding then looms large
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x = normal(rows, cells, channels) if channels_last else normal(rows, channels, cells)
    x = ((x + draw(st.sampled_from([0.0, 2.0]))) * draw(st.sampled_from([0.1, 1.0, 10.0]))).to(dtype)
    film = (0.3 * normal(rows, 2 * channels + 3)).to(dtype)  # as the network has it: both parts of one projection
    parameters = draw(st.sampled_from([dtype, torch.float32]))
    return Case(
        x,
        (1 + 0.3 * normal(channels)).to(parameters),
        normal(channels).to(parameters),
        groups,
        scale=film[:, :channels] if draw(st.booleans()) else None,
        shift=film[:, channels : 2 * channels] if draw(st.booleans()) else None,
        channels_last=channels_last,
        act=draw(st.booleans()),
    )


def check_forward(kernels: ctypes.CDLL, case: Case) -> None:
    y, mean, rstd = forward(kernels, case)
    expected = exact(case, case.x.double())
    tolerance = TOLERANCES[case.x.dtype]
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    grouped = case.x.double().transpose(1, 2) if case.channels_last else case.x.double()
    grouped = grouped.reshape(len(case.x), case.groups, -1)
    torch.testing.assert_close(mean.double(), grouped.mean(-1), rtol=1e-5, atol=1e-5)
    exact_rstd = (grouped.var(-1, correction=0) + case.eps).rsqrt()
    torch.testing.assert_close(rstd.double(), exact_rstd, rtol=1e-5, atol=1e-5)
    for again, first in zip(forward(kernels, case, backwards=True), (y, mean, rstd), strict=True):
        assert torch.equal(again, first), "the order of warps matters"


@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_forward_is_right(kernels, case):
    check_forward(kernels, case)


@pytest.mark.parametrize("channels_last", [False, True])
def test_pointers_need_no_alignment(kernels, channels_last):
    torch.manual_seed(0)
    shape = (2, 1600, 16) if channels_last else (2, 16, 1600)  # of several chunks
    aligned = Case(torch.randn(shape), torch.randn(16), torch.randn(16), 4, channels_last=channels_last)
    moved = replace(aligned, x=torch.cat([torch.zeros(1), aligned.x.flatten()])[1:].view(shape))
    check_forward(kernels, aligned)
    check_forward(kernels, moved)
    dy = torch.randn(shape)
    for name, expected in backward(kernels, aligned, dy).items():
        torch.testing.assert_close(backward(kernels, moved, dy)[name], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", norm_host.ALL_GRADIENTS)
def test_a_gradient_alone_is_the_same(kernels, name):
    torch.manual_seed(0)
    film = torch.randn(2, 8)
    case = Case(torch.randn(2, 4, 40), torch.randn(4), torch.randn(4), 2, scale=film[:, :4], shift=film[:, 4:])
    dy = torch.randn(2, 4, 40)
    alone = backward(kernels, case, dy, wanted=(name,))
    assert list(alone) == [name]
    assert torch.equal(alone[name], backward(kernels, case, dy)[name])


def test_a_group_of_one_number_is_its_bias(kernels):
    bias = torch.randn(4)
    y = forward(kernels, Case(torch.randn(1, 4, 1), torch.randn(4), bias, 4, act=False))[0]
    assert torch.equal(y[0, :, 0], bias)


def exact_gradients(case: Case, dy: Tensor) -> dict[str, Tensor]:
    """What ``backward`` approximates, by autograd through ``exact`` in float64."""
    film = torch.zeros(2, len(case.x), len(case.weight))
    given = {"x": case.x, "weight": case.weight, "bias": case.bias}
    given |= {"scale": film[0] if case.scale is None else case.scale}
    given |= {"shift": film[1] if case.shift is None else case.shift}
    leaves = {name: tensor.double().requires_grad_() for name, tensor in given.items()}
    y = exact(replace(case, **leaves), leaves["x"])
    gradients = torch.autograd.grad(y, list(leaves.values()), dy.double())
    return dict(zip(norm_host.ALL_GRADIENTS, gradients, strict=True))


@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_backward_is_right(kernels, case):
    generator = torch.Generator().manual_seed(2**33)  # never that of x: where dy is like x, dx is 0 but for rounding
    dy = torch.randn(case.x.shape, generator=generator).to(case.x.dtype)
    gradients, again = backward(kernels, case, dy), backward(kernels, case, dy, backwards=True)
    for name, expected in exact_gradients(case, dy).items():
        assert torch.equal(again[name], gradients[name]), f"the order of warps matters to {name}"
        tolerance = TOLERANCES[gradients[name].dtype]
        size = expected.abs().max().item()
        if name != "dx":  # a sum of random numbers, that may happen to be near 0
            size = max(size, (dy.numel() / expected.numel()) ** 0.5)
        torch.testing.assert_close(gradients[name].double(), expected, rtol=tolerance, atol=tolerance * size)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shift", [1e3, -3e4])
def test_a_large_mean_costs_no_variance(kernels, shift, channels_last):
    torch.manual_seed(0)
    x = torch.randn((1, 3000, 8) if channels_last else (1, 8, 3000)) + shift
    case = Case(x, torch.ones(8), torch.zeros(8), 2, channels_last=channels_last, act=False)
    torch.testing.assert_close(forward(kernels, case)[0].double(), exact(case, x.double()), rtol=0, atol=2e-3)


def test_the_result_may_overwrite_its_input(kernels):
    torch.manual_seed(0)
    case = Case(torch.randn(2, 4, 600), torch.randn(4), torch.randn(4), 2)
    expected = forward(kernels, case)[0]
    assert torch.equal(forward(kernels, case, y=case.x)[0], expected)


def test_far_from_zero_silu_is_the_identity_or_zero(kernels):
    case = Case(torch.randn(1, 4, 16), torch.zeros(4), torch.tensor([-1e4, -100.0, 100.0, 1e4]), 1)
    y = forward(kernels, case)[0]
    assert torch.equal(y, torch.tensor([0.0, 0.0, 100.0, 1e4])[None, :, None].expand_as(y))


@pytest.mark.parametrize("change", [{"rows": 0}, {"channels": 5}, {"cells": 0}, {"groups": 0}])
def test_what_it_cannot_take_is_refused(kernels, change):
    args = Case(torch.randn(1, 4, 16), torch.ones(4), torch.ones(4), 2).args()
    for name, value in change.items():
        setattr(args, name, value)
    assert kernels.norm_forward(ctypes.byref(args), False) == 1
    assert kernels.norm_backward(ctypes.byref(args), False) == 1

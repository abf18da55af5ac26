"""The kernels on a CUDA device: against the plain functions in float64, with autocast, compilation and CUDA graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from steerdiff.models import AttentionEdit, Control, Site, Taps, UNet, UNetConfig, kernels
from steerdiff.models.kernels import build, reference

pytestmark = pytest.mark.gpu

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ERROR = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # relative to the largest result
CROSS = Site("attn2", "cross", "mid", 1)


@pytest.fixture(autouse=True)
def _kernels() -> Any:
    """The kernels are demanded, so that nothing here passes on a fallback."""
    assert build.failure() is None
    with kernels.use("cuda"):
        yield


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to("cuda", dtype)


def close(result: Tensor, expected: Tensor) -> None:
    """Compare with what was computed in float64."""
    assert not result.isnan().any()
    error = ERROR[result.dtype] * max(expected.abs().max().item(), 1e-3)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=error)


def attention_inputs(
    rows: int, heads: int, n: int, m: int, d: int, dtype: torch.dtype, size: float = 1
) -> list[Tensor]:
    """q, k and v as linear layers give them: heads beside each other in memory."""
    shapes = ((rows, n, heads, d), (rows, m, heads, d), (rows, m, heads, d))
    tensors = [normal(*shape, seed=seed, dtype=dtype).transpose(1, 2) for seed, shape in enumerate(shapes)]
    return [tensors[0] * size, *tensors[1:]]


def compare_edited(inputs: list[Tensor], mask: Tensor | None, rows: Any, with_words: bool) -> None:
    q, k, v = inputs
    edits, m = len(rows[1]), k.shape[2]
    shape = (edits, *v.shape[1:])
    values = (normal(*shape, seed=4, dtype=q.dtype), normal(*shape, seed=5, dtype=q.dtype))
    words = (normal(q.shape[0], 3, m, seed=6), normal(q.shape[0], 3, m, seed=7)) if with_words else None
    out, sums = kernels.edited_attention(q, k, v, mask, rows, values, words)
    wide = [tensor.double() for tensor in (*inputs, *values)]
    close(out, reference.edited(*wide[:3], mask, rows, (wide[3], wide[4])))
    if words is not None:
        maps = [tensor.double() for tensor in inputs[:2]]
        expected = reference.word_sums(*maps, mask, rows, (words[0].double(), words[1].double())).double()
        torch.testing.assert_close(
            sums.double(), expected, rtol=1e-4, atol=ERROR[q.dtype] * expected.abs().max().item()
        )


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 6),
    heads=st.integers(1, 3),
    n=st.integers(1, 200),
    m=st.integers(1, 128),
    head=st.sampled_from([8, 32, 40, 64, 72, 80, 96, 128, 160]),
    masked=st.booleans(),
    words=st.booleans(),
    data=st.data(),
)
def test_edited_attention_over_random_shapes(
    dtype: torch.dtype, rows: int, heads: int, n: int, m: int, head: int, masked: bool, words: bool, data: Any
) -> None:
    target = data.draw(st.lists(st.integers(0, rows - 1), unique=True))
    source = [data.draw(st.integers(0, rows - 1)) for _ in target]
    mask = normal(rows, 1, 1, m, seed=3) > 0 if masked else None
    compare_edited(attention_inputs(rows, heads, n, m, head, dtype), mask, (source, target), words)


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    n=st.integers(1, 300),
    head=st.sampled_from([32, 40, 64, 80, 128, 160]),
    rows=st.sampled_from([((), ()), ((0,), (1,)), ((0, 0, 3), (1, 2, 3)), ((3, 2, 1, 0), (0, 1, 2, 3))]),
)
def test_led_attention_over_random_shapes(dtype: torch.dtype, n: int, head: int, rows: Any) -> None:
    q, k, v = attention_inputs(4, 2, n, n, head, dtype)
    close(kernels.led_attention(q, k, v, None, rows), reference.led(q.double(), k.double(), v.double(), None, rows))


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_scores_give_numbers(dtype: torch.dtype) -> None:
    compare_edited(attention_inputs(2, 2, 70, 77, 64, dtype, size=1e3), None, ((0,), (1,)), with_words=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_edit_that_keeps_everything_gives_the_source_bit_for_bit(dtype: torch.dtype) -> None:
    q, k, v = (tensor[:1].expand(3, -1, -1, -1) for tensor in attention_inputs(1, 4, 65, 77, 40, dtype))
    edit = AttentionEdit(source=(0, 0), target=(1, 2), mapper=torch.eye(77, device="cuda")[None])
    out, _ = kernels.edited_attention(q, k, v, None, edit.rows, edit.values(reference.rows_of(v, edit.target)))
    assert torch.equal(out[1], out[0]) and torch.equal(out[2], out[0])


def norm_inputs(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> list[Tensor]:
    x = 3 * normal(*shape, dtype=dtype) + 5
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    by_row = (*shape[:2], *(1,) * (len(shape) - 2))
    return [
        x,
        *(normal(shape[1], seed=i, dtype=dtype) for i in (1, 2)),
        *(normal(*by_row, seed=i, dtype=dtype) for i in (3, 4)),
    ]


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 3),
    width=st.integers(1, 6),
    side=st.integers(1, 33),
    film=st.booleans(),
    act=st.booleans(),
    channels_last=st.booleans(),
)
def test_normalisation_and_its_gradients_over_random_shapes(
    dtype: torch.dtype, rows: int, width: int, side: int, film: bool, act: bool, channels_last: bool
) -> None:
    inputs = norm_inputs((rows, 32 * width, side, side + 1), dtype, channels_last)[: 5 if film else 3]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]

    def plain(x: Tensor, weight: Tensor, bias: Tensor, *rest: Tensor) -> Tensor:
        h = functional.group_norm(x, 32, weight, bias)
        h = h * (1 + rest[0]) + rest[1] if rest else h
        return functional.silu(h) if act else h

    out, expected = kernels.norm_silu(*inputs[:3], tuple(inputs[3:]) or None, act=act), plain(*wide)  # type: ignore[arg-type]
    assert out.stride() == inputs[0].stride()
    close(out, expected)
    grad = normal(*out.shape, seed=9, dtype=dtype)
    found = torch.autograd.grad(out, inputs, grad)
    for own, other in zip(found, torch.autograd.grad(expected, wide, grad.double()), strict=True):
        close(own, other)
    again = torch.autograd.grad(kernels.norm_silu(*inputs[:3], tuple(inputs[3:]) or None, act=act), inputs, grad)  # type: ignore[arg-type]
    assert all(torch.equal(own, other) for own, other in zip(found, again, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_calls_sanitized(dtype: torch.dtype) -> None:
    """Few calls that reach every kernel and its edges; compute-sanitizer runs this one."""
    for n, m, head in ((1, 1, 32), (33, 77, 40), (65, 128, 160)):
        mask = torch.arange(m, device="cuda").expand(3, 1, 1, m) < m - 1 if m > 1 else None
        compare_edited(attention_inputs(3, 2, n, m, head, dtype), mask, ((0,), (2,)), with_words=True)
        q, k, v = attention_inputs(3, 2, n, n, head, dtype)
        kernels.led_attention(q, k, v, None, ((0,), (2,)))
    for last in (False, True):
        inputs = [tensor.requires_grad_() for tensor in norm_inputs((2, 64, 5, 7), dtype, last)]
        kernels.norm_silu(*inputs[:3], (inputs[3], inputs[4])).sum().backward()
    torch.cuda.synchronize()


CONFIG = UNetConfig(
    model_channels=64, channel_mult=(1, 2), num_res_blocks=1, attention_at=(1, 2), num_heads=2, context_dim=16
)


def network() -> tuple[UNet, Control, list[Tensor]]:
    torch.manual_seed(0)
    unet = UNet(CONFIG).eval().requires_grad_(False)
    for parameter in unet.parameters():
        if not parameter.any():
            parameter.normal_(std=0.1)
    edit = AttentionEdit(
        source=(0,), target=(1,), mapper=torch.eye(6, device="cuda").flip(0)[None], self_tokens=64,
        equalizer=torch.tensor([[1, 1, 3.0, 1, -1, 1]], device="cuda"),
    )  # fmt: skip
    inputs = [normal(3, 3, 16, 16), torch.full((3,), 301.0, device="cuda"), normal(3, 6, 16, seed=1)]
    return unet.to("cuda"), Control(edit=edit), inputs


@torch.no_grad()
def test_a_network_with_edits_is_that_of_the_reference() -> None:
    unet, control, inputs = network()
    taps = [Taps(weights=normal(2, 2, 6)) for _ in range(2)]
    fused = unet(*inputs, control=Control(edit=control.edit, taps=taps[0]))
    assert torch.equal(fused, unet(*inputs, control=control))  # looking changes no bit
    with kernels.use("reference"):
        plain = unet(*inputs, control=Control(edit=control.edit, taps=taps[1]))
    torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-3)
    for site, sums in taps[1].sums.items():
        torch.testing.assert_close(taps[0].sums[site], sums, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_compiled_network_and_a_cuda_graph_give_the_same() -> None:
    unet, control, inputs = network()
    expected = unet(*inputs, control=control)
    compiled = torch.compile(lambda *tensors: unet(*tensors, control=control), fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), expected, rtol=1e-3, atol=1e-3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = unet(*inputs, control=control)
    graph.replay()
    assert torch.equal(out, expected)


@torch.no_grad()
def test_autocast_runs_the_network_on_the_kernels() -> None:
    unet, control, inputs = network()
    with torch.autocast("cuda", torch.bfloat16):
        fused = unet(*inputs, control=control)
    torch.testing.assert_close(fused.float(), unet(*inputs, control=control), rtol=0.1, atol=0.1)

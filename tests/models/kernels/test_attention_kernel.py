"""The attention kernels, emulated on the CPU, against their definition in float64."""

from __future__ import annotations

import ctypes
import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from .emulation import NO_COMPILER, SHARED_MEMORY, arguments, call, compiled

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
FORMATS = list(TOLERANCE)
HEADS = [8, 32, 40, 48, 64, 72, 80, 96, 120, 128, 160]
QUICK = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if NO_COMPILER:
        pytest.skip(NO_COMPILER)
    return compiled(tmp_path_factory.mktemp("kernels"), "host_attention.cpp", "-O0")


def normal(shape: list[int], dtype: torch.dtype, layout: str, seed: int) -> Tensor:
    """[rows, head, token, d] in one of the orders that networks have; "odd" rows are never aligned to 16 bytes."""
    rows, heads, tokens, d = shape
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if layout == "heads":
        return values
    if layout == "tokens":
        return values.transpose(1, 2).contiguous().transpose(1, 2)
    space = torch.zeros(rows, tokens, heads * d + 3, dtype=dtype)[:, :, 1 : 1 + heads * d]
    return space.view(rows, tokens, heads, d).transpose(1, 2).copy_(values)


def probabilities(q: Tensor, k: Tensor, mask: Tensor | None, lead: list[int]) -> Tensor:
    """softmax(q k^T / sqrt(d)) in float64 of each row's lead, with zeros for a query that may see no key."""
    order = [row if taken < 0 else taken for row, taken in enumerate(lead)]
    scores = q.double() @ k.double().mT * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    return scores.softmax(-1).nan_to_num(0)[order]


def defined_edit(p: Tensor, lead_p: Tensor, v: Tensor, edit: list[int], taken: Tensor, left: Tensor) -> Tensor:
    rows = [
        p[row] @ v[row].double() if e < 0 else lead_p[row] @ taken[e].double() + p[row] @ left[e].double()
        for row, e in enumerate(edit)
    ]
    return torch.stack(rows)


def assert_near(got: Tensor, wanted: Tensor) -> None:
    """Within the type's tolerance of the greatest number."""
    error = (got.double() - wanted).abs().max() / wanted.abs().max().clamp(min=0.1)
    assert error <= TOLERANCE[got.dtype]


def case(seed: int, dtype: torch.dtype, most_keys: int = 128) -> dict[str, Any]:
    """A random case: shapes, layouts, leads, edits and a mask in which some rows see no key."""
    draw = random.Random(seed)
    rows, heads, n, m = draw.randint(1, 3), draw.randint(1, 2), draw.randint(1, 70), draw.randint(1, most_keys)
    d, edits = draw.choice(HEADS), draw.randint(1, 2)
    shapes = {"q": n, "k": m, "v": m, "taken": m, "left": m}
    tensors = {
        name: normal([edits if name in ("taken", "left") else rows, heads, tokens, d], dtype,
                     draw.choice(["heads", "tokens", "odd"]), seed * 8 + i)
        for i, (name, tokens) in enumerate(shapes.items())
    }  # fmt: skip
    mask = torch.rand(draw.choice([1, rows]), m, generator=torch.Generator().manual_seed(seed)) < draw.choice(
        [0.02, 0.7]
    )
    return {
        **tensors,
        "out": torch.full_like(
            normal([rows, heads, n, d], dtype, draw.choice(["heads", "tokens", "odd"]), 0), torch.nan
        ),
        "lead": [draw.randint(-1, rows - 1) for _ in range(rows)],
        "edit": [draw.randint(-1, edits - 1) for _ in range(rows)],
        "mask": draw.choice([None, mask]),
    }


@pytest.mark.parametrize("dtype", FORMATS)
@QUICK
@given(seed=st.integers(0, 10_000), limit=st.sampled_from([SHARED_MEMORY, 227 * 1024]), backwards=st.booleans())
def test_edited_attention_is_its_definition(
    library: ctypes.CDLL, dtype: torch.dtype, seed: int, limit: int, backwards: bool
) -> None:
    c = case(seed, dtype)
    assert call(library, "edited_attention", arguments(**c), limit, backwards) == 0
    own, lead = (probabilities(c["q"], c["k"], c["mask"], order) for order in ([-1] * len(c["q"]), c["lead"]))
    assert_near(c["out"], defined_edit(own, lead, c["v"], c["edit"], c["taken"], c["left"]))


@pytest.mark.parametrize("dtype", FORMATS)
@QUICK
@given(seed=st.integers(0, 10_000), backwards=st.booleans())
def test_led_attention_is_its_definition(library: ctypes.CDLL, dtype: torch.dtype, seed: int, backwards: bool) -> None:
    c = case(seed, dtype, most_keys=200)
    assert call(library, "led_attention", arguments(**c), SHARED_MEMORY, backwards) == 0
    assert_near(c["out"], probabilities(c["q"], c["k"], c["mask"], c["lead"]) @ c["v"].double())


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_led_row_with_its_leads_values_changes_no_bit(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    q, k = (normal([2, 1, n, 40], dtype, "tokens", n) for n in (21, 150))
    v = normal([1, 1, 150, 40], dtype, "tokens", 1).repeat(2, 1, 1, 1)
    out = torch.full_like(q, torch.nan)
    assert call(library, "led_attention", arguments(q, k, v, out, [-1, 0]), SHARED_MEMORY, False) == 0
    assert_near(out, probabilities(q, k, None, [-1, 0]) @ v.double())
    assert torch.equal(out[1], out[0])


def test_every_number_of_keys_and_queries_beside_the_tiles(library: ctypes.CDLL) -> None:
    for m in (*range(1, 128, 9), 16, 17, 77, 80, 127, 128):
        for dtype in FORMATS:
            q = normal([1, 1, m % 34 + 1, 40], dtype, "tokens", m)
            k, v = (normal([1, 1, m, 40], dtype, "tokens", m + i) for i in (1, 2))
            out = torch.full_like(q, torch.nan)
            assert call(library, "edited_attention", arguments(q, k, v, out, [-1]), SHARED_MEMORY, False) == 0
            assert_near(out, probabilities(q, k, None, [-1]) @ v.double())


@pytest.mark.parametrize("dtype", FORMATS)
def test_identity_edits_change_no_bit(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    q, k, v = (normal([1, 2, n, 40], dtype, "heads", n).repeat(3, 1, 1, 1) for n in (21, 77, 77))
    out = torch.full_like(q, torch.nan)
    edits = {"edit": [-1, 0, 1], "taken": v[:2].clone(), "left": torch.zeros_like(v[:2])}
    assert call(library, "edited_attention", arguments(q, k, v, out, [-1, 0, 0], **edits), SHARED_MEMORY, False) == 0
    assert out.isfinite().all()
    assert torch.equal(out[1], out[0]) and torch.equal(out[2], out[0])


@pytest.mark.parametrize("dtype", FORMATS)
@QUICK
@given(seed=st.integers(0, 10_000), backwards=st.booleans())
def test_word_sums_are_their_definition(library: ctypes.CDLL, dtype: torch.dtype, seed: int, backwards: bool) -> None:
    c, draw = case(seed, dtype), random.Random(seed)
    (rows, heads, n, _), m = c["q"].shape, c["k"].shape[2]
    count, words = draw.randint(1, rows), draw.randint(1, 3)
    taken, left = torch.randn(2, count, words, m, generator=torch.Generator().manual_seed(seed))
    sums = torch.full((count, heads, words, n), torch.nan)
    args = arguments(**c, words_taken=taken, words_left=left, sums=sums)
    assert call(library, "edited_attention", args, SHARED_MEMORY, backwards) == 0
    own, lead = (probabilities(c["q"], c["k"], c["mask"], order) for order in ([-1] * rows, c["lead"]))
    values = [torch.cat([w.double(), w.new_zeros(rows - count, words, m)]).mT[:, None] for w in (taken, left)]
    edited = torch.tensor(c["edit"])[:, None, None, None] >= 0
    wanted = (own @ values[1] + torch.where(edited, lead @ values[0], 0.0))[:count].mT
    assert_near(sums, wanted)


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_row_that_is_not_edited_needs_no_edits(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    q, k, v = (normal([2, 1, n, 64], dtype, "tokens", n) for n in (5, 9, 10))
    k, out = k[:, :, :8], torch.full_like(q, torch.nan)
    args = arguments(q, k, v[:, :, :8], out, [-1, 0], edit=[-1, -1])
    assert call(library, "edited_attention", args, SHARED_MEMORY, False) == 0
    assert_near(out, probabilities(q, k, None, [-1, -1]) @ v[:, :, :8].double())


@pytest.mark.parametrize("dtype", FORMATS)
def test_extreme_scores_choose_their_key(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    q = torch.tensor([1.0, -1.0]).to(dtype).view(1, 1, 2, 1).expand(1, 1, 2, 64).contiguous()
    k = torch.tensor([1250.0, -1250.0, 0.0]).to(dtype).view(1, 1, 3, 1).expand(1, 1, 3, 64).contiguous()  # 1e4 / 8 each
    v, out = normal([1, 1, 3, 64], dtype, "heads", 1), torch.full_like(q, torch.nan)
    assert call(library, "edited_attention", arguments(q, k, v, out, [-1]), SHARED_MEMORY, False) == 0
    assert torch.equal(out[0, 0], v[0, 0, :2])


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_query_without_keys_gets_zeros_as_torch_gives(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    q, k, v = (normal([2, 1, n, 32], dtype, "heads", n) for n in (18, 7, 7))
    out, mask = torch.full_like(q, torch.nan), torch.tensor([[False] * 7, [True] * 6 + [False]])
    assert call(library, "edited_attention", arguments(q, k, v, out, [-1, -1], mask=mask), SHARED_MEMORY, False) == 0
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
    assert_near(out, wanted.double())


def test_what_is_outside_the_limits_is_refused(library: ctypes.CDLL) -> None:
    for m, d in ((129, 64), (8, 168), (8, 36)):
        q, k = (normal([1, 1, n, d], torch.float32, "heads", n) for n in (3, m))
        args = arguments(q, k, k, torch.empty_like(q), [-1])
        assert call(library, "edited_attention", args, SHARED_MEMORY, False) == 1

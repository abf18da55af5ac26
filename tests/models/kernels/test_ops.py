"""The operators on the CPU: registration, gradients, compilation, the one setting, and the network that uses them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.models import AttentionEdit, Control, Site, Taps, kernels
from steerdiff.models.attention_edit import edited_attention
from steerdiff.models.kernels import choice, ops, reference
from steerdiff.scripts.runtime import DeviceFlags, ModelFlags, environment

OPERATORS = torch.ops.steerdiff
CROSS, SELF = Site("attn2", "cross", "mid", 1), Site("attn1", "self", "mid", 1)
LENGTH, ROWS = 6, ((0, 2), (1, 3))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def attention_inputs(dtype: torch.dtype = torch.float64, grad: bool = True) -> list[Tensor]:
    """Queries, keys, values, taken and removed."""
    shapes = ((4, 2, 5, 8), (4, 2, LENGTH, 8), (4, 2, LENGTH, 8), (2, 2, LENGTH, 8), (2, 2, LENGTH, 8))
    return [normal(*shape, seed=seed, dtype=dtype).requires_grad_(grad) for seed, shape in enumerate(shapes)]


def norm_inputs(channels_last: bool = False) -> list[Tensor]:
    """x, weight, bias, scale and shift."""
    shapes = ((2, 8, 3, 2), (8,), (8,), (2, 8, 1, 1), (2, 8, 1, 1))
    tensors = [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    if channels_last:
        tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
    return [tensor.requires_grad_() for tensor in tensors]


MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1] * 6, [1, 1, 1, 1, 0, 0]]).bool()[:, None, None]
EDIT = AttentionEdit(
    source=ROWS[0],
    target=ROWS[1],
    mapper=normal(2, LENGTH, LENGTH, seed=7).abs(),
    blend=normal(2, LENGTH, seed=8).sigmoid(),
    equalizer=normal(2, LENGTH, seed=9),
    gate=normal(2, LENGTH, seed=10).sigmoid(),
    self_tokens=LENGTH,
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(choice, "_state", choice._State(setting="auto"))
    yield


def words(seed: int = 0) -> tuple[Tensor, Tensor]:
    return normal(3, 2, LENGTH, seed=seed).float(), normal(3, 2, LENGTH, seed=seed + 1).float()


@pytest.mark.parametrize("case", ["edited", "words", "led", "norm", "norm, plain, channels last"])
def test_the_operators_keep_pytorch_s_rules(case: str) -> None:
    q, k, v, taken, removed = attention_inputs()
    x, *rest = norm_inputs(channels_last="last" in case)
    sample: tuple[Any, tuple[Any, ...]] = {
        "edited": (OPERATORS.edited_attention, (q, k, v, taken, removed, MASK, None, None, *map(list, ROWS))),
        "words": (OPERATORS.edited_attention, (q, k, v, taken, removed, None, *words(), *map(list, ROWS))),
        "led": (OPERATORS.led_attention, (k, k.detach(), v, None, *map(list, ROWS))),
        "norm": (OPERATORS.norm_silu, (x, *rest, 4, 1e-5, True)),
        "norm, plain, channels last": (OPERATORS.norm_silu, (x, *rest[:2], None, None, 2, 1e-6, False)),
    }[case]
    operator, arguments = sample
    torch.library.opcheck(operator.default, arguments, test_utils=("test_schema", "test_autograd_registration"))
    torch.library.opcheck(operator.default, arguments, test_utils="test_faketensor")


def test_the_backward_operator_keeps_pytorch_s_rules() -> None:
    for film in (True, False):
        x, weight, bias, scale, shift = (tensor.detach() for tensor in norm_inputs())
        kept = reference.norm_silu(x, (weight, bias), (scale, shift) if film else None, 4, 1e-5, True)[1:]
        parts = (scale, shift) if film else (None, None)
        arguments = (torch.ones_like(x), x, weight, bias, *parts, *kept, True, film)
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(OPERATORS.norm_silu_backward.default, arguments, test_utils=tests)


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_gradients_of_attention_are_right(mask: Tensor | None) -> None:
    inputs = tuple(tensor[:, :1, :, :2].detach().requires_grad_() for tensor in attention_inputs())

    def edited(q: Tensor, k: Tensor, v: Tensor, *values: Tensor) -> Tensor:
        return kernels.edited_attention(q, k, v, mask, ROWS, (values[0], values[1]))[0]

    assert torch.autograd.gradcheck(edited, inputs, fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda k, v: kernels.led_attention(k, k, v, mask, ROWS), inputs[1:3], fast_mode=True
    )


@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize("film", [True, False])
def test_gradients_of_normalisation_are_right_twice(act: bool, film: bool) -> None:
    inputs = tuple(norm_inputs()[: 5 if film else 3])

    def norm(x: Tensor, weight: Tensor, bias: Tensor, *rest: Tensor) -> Tensor:
        return kernels.norm_silu(x, weight, bias, (rest[0], rest[1]) if film else None, groups=4, act=act)

    assert torch.autograd.gradcheck(norm, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(norm, inputs, fast_mode=True)


def test_normalisation_is_that_of_pytorch_in_every_dtype() -> None:
    for dtype, error in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        x, weight, bias, scale, shift = norm_inputs()
        h = torch.nn.functional.group_norm(x, 4, weight, bias) * (1 + scale) + shift
        parts = [part.to(dtype) for part in (x, weight, bias, scale, shift)]
        result = kernels.norm_silu(*parts[:3], (parts[3], parts[4]), groups=4)
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), torch.nn.functional.silu(h), rtol=error, atol=2 * error)


def step(q: Tensor, k: Tensor, v: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    values = EDIT.values(v[1::2])
    out = kernels.edited_attention(q, k, v, MASK, ROWS, values)[0].sum()
    return out + kernels.led_attention(q, q, q, None, ROWS).sum() + kernels.norm_silu(x, weight, bias, groups=4).sum()


def test_the_operators_compile_into_one_graph_with_their_gradients() -> None:
    inputs = [*attention_inputs()[:3], *norm_inputs()[:3]]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    expected, result = step(*inputs), compiled(*inputs)
    torch.testing.assert_close(result, expected)
    for own, other in zip(torch.autograd.grad(result, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("edit", [EDIT, None], ids=["edited", "plain"])
def test_attention_on_the_operators_is_that_of_the_plain_functions(
    edit: AttentionEdit | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v, *_ = attention_inputs(grad=False)
    weights = normal(3, 2, LENGTH, seed=20)

    def run(**wanted: Any) -> tuple[list[Tensor | None], Taps]:
        taps = Taps(weights=weights, **wanted)
        control = Control(edit=edit, taps=taps)
        return [control.attend(q, k, v, MASK, CROSS), control.attend(k, k, v, None, SELF)], taps

    expected, plain = run()
    monkeypatch.setattr(kernels, "fused", lambda _: True)
    for wanted in ({}, {"kinds": ("cross", "self")}):  # word maps alone; whole maps too
        result, taps = run(**wanted)
        for own, other in zip(result, expected, strict=True):
            assert own is other is None or torch.equal(own, other)  # type: ignore[arg-type]
        assert set(taps.sums) == set(plain.sums) == {CROSS}
        torch.testing.assert_close(taps.sums[CROSS], plain.sums[CROSS], rtol=1e-6, atol=1e-6)
    if edit is not None:
        torch.testing.assert_close(expected[0], edited_attention(q, k, v, MASK, edit), rtol=1e-10, atol=1e-10)


def test_words_of_targets_beyond_the_tapped_rows_are_left_out() -> None:
    taps = Taps(weights=normal(1, 2, LENGTH))
    taken, left = taps.words(EDIT, torch.device("cpu"))
    assert torch.equal(taken, left) and torch.equal(left, taps.weights.float())  # type: ignore[union-attr]


def test_autocast_runs_attention_in_its_dtype() -> None:
    q, k, v, *_ = attention_inputs(torch.float32, grad=False)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = kernels.edited_attention(q, k, v, None, ROWS, EDIT.values(v[1::2]))
        assert out.dtype == kernels.led_attention(k, k, v, None, ROWS).dtype == torch.bfloat16


def test_no_key_at_all_gives_zeros() -> None:
    q, k, v, *_ = attention_inputs(torch.float32, grad=False)
    out, _ = kernels.edited_attention(q, k, v, torch.zeros_like(MASK), ROWS, EDIT.values(v[1::2]))
    assert torch.equal(out, torch.zeros_like(out))


def test_cpu_tensors_never_reach_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, *_ = attention_inputs(grad=False)
    monkeypatch.setattr(kernels, "edited_attention", None)
    monkeypatch.setattr(kernels, "led_attention", None)
    assert Control(edit=EDIT).attend(q, k, v, MASK, CROSS) is not None
    assert Control(edit=EDIT).attend(k, k, v, None, SELF) is not None


def test_a_demand_that_cannot_be_met_is_an_error_that_says_why() -> None:
    with kernels.use("cuda"):
        with pytest.raises(UserError, match="kernels is cuda, and the tensors are on cpu"):
            kernels.fused(torch.zeros(1))
        with pytest.raises(UserError, match="cannot run: the head size is 12"):
            choice.run_on_cuda("the head size is 12")
    assert kernels.setting() == "auto" and not kernels.fused(torch.zeros(1))
    kernels.use("reference")
    assert kernels.setting() == "reference" and not choice.run_on_cuda(None)
    with pytest.raises(UserError, match="kernels is 'fast'; give auto, cuda or reference"):
        kernels.use("fast")  # type: ignore[arg-type]
    choice._state.setting = "quick"
    with pytest.raises(UserError, match="STEERDIFF_KERNELS is 'quick'; set it to auto, cuda or reference"):
        kernels.setting()


def test_the_flag_chooses_and_a_demand_fails_before_the_weights_are_read() -> None:
    with pytest.raises(UserError, match="kernels is cuda, and the tensors are on cpu"):
        ModelFlags(weights="not there", device="cpu", kernels="cuda").load()
    with pytest.raises(UserError, match="not there"):
        ModelFlags(weights="not there", device="cpu", kernels="reference").load()
    assert kernels.setting() == "reference"
    assert "kernels" not in environment("cpu")  # which is what it was


def test_loading_a_model_builds_kernels_only_if_they_are_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(kernels, "fused", lambda x: asked.append(kernels.setting()))
    for setting in ("auto", "reference", "cuda"):
        DeviceFlags(device="cpu", kernels=setting).prepare()
    assert asked == ["cuda"]


def test_auto_falls_back_with_one_warning_for_each_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice.build, "failure", lambda: "nvcc is not found")
    for reason in ("the head size is 12", None):
        with pytest.warns(UserWarning, match=reason or "nvcc is not found"):
            assert not choice.run_on_cuda(reason)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not choice.run_on_cuda(reason)
    assert choice._state.failure == "nvcc is not found"


def test_the_first_call_already_knows_whether_the_kernels_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would take another path than the call after it, which checkpointing does not allow."""
    monkeypatch.setattr(choice.build, "failure", lambda: "nvcc is not found")
    x: Any = SimpleNamespace(device=torch.device("cuda"))
    with pytest.warns(UserWarning, match="nvcc is not found"):
        assert not kernels.fused(x)
    with kernels.use("cuda"), pytest.raises(UserError, match="cannot run: nvcc is not found"):
        kernels.fused(x)
    monkeypatch.setattr(choice.build, "failure", lambda: None)
    assert kernels.fused(x)
    with kernels.use("reference"):
        assert not kernels.fused(x)
    monkeypatch.setattr(choice.build, "failure", None)  # whatever is built now is an error
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert kernels.fused(x)


def test_words_are_made_once_in_each_call_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    made, values = [], AttentionEdit.values
    monkeypatch.setattr(AttentionEdit, "values", lambda edit, v: made.append(v) or values(edit, v))
    taps = Taps(weights=normal(3, 2, LENGTH))
    device = torch.device("cpu")
    first = taps.words(EDIT, device)
    assert taps.words(EDIT, device) is first and len(made) == 1
    assert torch.equal(taps.words(None, device)[1], taps.weights.float())  # type: ignore[union-attr]
    taps.weights *= 2
    taps.begin()
    torch.testing.assert_close(taps.words(EDIT, device), tuple(2 * part for part in first))
    assert len(made) == 2 and taps.calls == 1


def test_word_maps_compile_into_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "fused", lambda _: True)
    q, k, v, *_ = attention_inputs(torch.float32, grad=False)
    edit = AttentionEdit(source=ROWS[0], target=ROWS[1], mapper=normal(2, LENGTH, LENGTH, seed=7).float())
    other = Site("other", "cross", "mid", 1)

    def run(q: Tensor, taps: Taps) -> Tensor:
        control = Control(edit=edit, taps=taps)
        taps.begin()
        for site in (CROSS, other):
            control.attend(q, k, v, None, site)
        return taps.sums[CROSS] + taps.sums[other]

    expected, compiled = [Taps(weights=normal(3, 2, LENGTH)) for _ in range(2)]
    torch.compiler.reset()
    result = torch.compile(run, fullgraph=True, backend="eager")(q, compiled)
    torch.testing.assert_close(result, run(q, expected))


@pytest.mark.parametrize(
    ("shape", "keys", "dtype", "limit"),
    [
        ((2, 4, 9, 64), 77, torch.bfloat16, None),
        ((64, 1, 9, 160), 128, torch.float32, None),
        ((2, 4, 9, 36), 77, torch.float16, "the head size is 36"),
        ((2, 4, 9, 168), 77, torch.float16, "the head size is 168"),
        ((65, 4, 9, 64), 77, torch.float16, "the batch has 65 rows"),
        ((2, 4, 9, 64), 129, torch.float16, "there are 129 keys"),
        ((2, 4, 9, 64), 77, torch.float64, "float64 is no type of theirs"),
    ],
)
def test_what_is_outside_the_kernels_range_is_named(
    shape: tuple[int, ...], keys: int, dtype: torch.dtype, limit: str | None
) -> None:
    q = torch.empty(shape, dtype=dtype, device="meta")
    k = torch.empty(shape[0], shape[1], keys, shape[3], dtype=dtype, device="meta")
    found = ops.attention_limit(q, k, ops.MAX_KEYS)
    assert found is None if limit is None else found is not None and limit in found
    assert limit is not None and "keys" in limit or ops.attention_limit(q, k) == found


def test_the_limits_are_those_of_the_header(root: Any) -> None:
    header = (root / "models" / "kernels" / "attention.h").read_text()
    for name, value in (("max_rows", ops.MAX_ROWS), ("max_keys", ops.MAX_KEYS), ("max_head", ops.MAX_HEAD)):
        assert f"constexpr int {name} = {value};" in header

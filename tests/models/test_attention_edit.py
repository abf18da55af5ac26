"""Attention edits: the fused path against the definition in float64, which bits must not change, and the errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import UserError
from steerdiff.models import AttentionEdit, Control, Site, Taps, UNet, UNetConfig, attention_edit, control
from steerdiff.models.attention_edit import edited_attention, fused_edit

LENGTH = 6
CONFIG = UNetConfig(
    model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_at=(1, 2), num_heads=4, context_dim=16
)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention_inputs(rows: int = 4, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    q, k, v = normal(rows, 3, 10, 8), normal(rows, 3, LENGTH, 8, seed=1), normal(rows, 3, LENGTH, 8, seed=2)
    return [q.to(dtype), k.to(dtype), v.to(dtype)]


def all_parts(count: int) -> dict[str, Any]:
    return {
        "mapper": uniform(count, LENGTH, LENGTH, seed=3),
        "blend": uniform(count, LENGTH, seed=4),
        "equalizer": 3 * normal(count, LENGTH, seed=5),
        "gate": uniform(count, LENGTH, seed=6),
    }


MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1] * 6, [1, 1, 1, 1, 0, 0]]).bool()[:, None, None]


@pytest.fixture(scope="module")
def network() -> UNet:
    torch.manual_seed(0)
    unet = UNet(CONFIG).eval().requires_grad_(False)
    for parameter in unet.parameters():
        if not parameter.any():
            parameter.normal_(std=0.1)
    return unet


def network_inputs(rows: int = 4, *, alike: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    x, context = normal(rows, 3, 16, 16).float(), normal(rows, LENGTH, 16, seed=1).float()
    if alike:
        x, context = x[:1].repeat(rows, 1, 1, 1), context[:1].repeat(rows, 1, 1)
    return x, torch.full((rows,), 301.0), context


@pytest.mark.parametrize("names", [(), ("mapper",), ("mapper", "blend"), ("equalizer",), ("gate", "mapper"), "all"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_the_fused_edit_equals_the_definition_in_float64(names: Any, mask: Tensor | None) -> None:
    parts = all_parts(3)
    chosen = {name: value for name, value in parts.items() if names == "all" or name in names}
    edit = AttentionEdit(source=(0, 0, 2), target=(1, 3, 2), **chosen)
    inputs = attention_inputs()
    reference = edited_attention(*inputs, mask, edit)
    torch.testing.assert_close(fused_edit(*inputs, mask, edit), reference, rtol=1e-12, atol=1e-12)
    single = [tensor.float() for tensor in inputs]
    torch.testing.assert_close(fused_edit(*single, mask, edit).double(), reference, rtol=0, atol=5e-6)
    assert not torch.allclose(reference[1], edited_attention(*inputs, mask, AttentionEdit(source=(1,), target=(1,)))[1])


def test_the_definition_is_the_formula_written_out_for_one_row() -> None:
    parts = all_parts(1)
    q, k, v = attention_inputs(2)
    maps = torch.softmax(torch.einsum("bhnd,bhld->bhnl", q, k) / 8**0.5, dim=-1)
    mapper, blend, equalizer, gate = (part[0] for part in parts.values())
    mapped = blend * torch.einsum("hnl,lm->hnm", maps[0], mapper) + (1 - blend) * maps[1]
    expected = (gate * equalizer * mapped + (1 - gate) * maps[1]) @ v[1]
    result = edited_attention(q, k, v, None, AttentionEdit(source=(0,), target=(1,), **parts))
    torch.testing.assert_close(result[1], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result[0], maps[0] @ v[0], rtol=1e-12, atol=1e-12)
    injected = edited_attention(q, k, v, None, AttentionEdit(source=(0,), target=(1,), self_tokens=10), "self")
    torch.testing.assert_close(injected[1], maps[0] @ v[1], rtol=1e-12, atol=1e-12)


def test_injected_self_attention_equals_the_definition() -> None:
    q, k, v = attention_inputs()
    k = normal(4, 3, 10, 8, seed=1)
    v = normal(4, 3, 10, 8, seed=2)
    edit = AttentionEdit(source=(0, 2), target=(1, 3), self_tokens=10)
    result = Control(edit=edit).attend(q, k, v, None, Site("attn1", "self", "mid", 1))
    assert result is not None
    torch.testing.assert_close(result, edited_attention(q, k, v, None, edit, "self"), rtol=1e-12, atol=1e-12)


def test_half_precision_follows_the_definition() -> None:
    edit = AttentionEdit(source=(0, 2), target=(1, 3), **all_parts(2))
    inputs = attention_inputs(dtype=torch.bfloat16)
    result = fused_edit(*inputs, None, edit)
    assert result.dtype == torch.bfloat16
    reference = edited_attention(*inputs, None, edit)
    size = reference.abs().max().item()  # three rounded terms of about this size
    torch.testing.assert_close(result.double(), reference, rtol=0, atol=3 * 2**-8 * size)


def test_a_whole_network_with_edits_equals_the_network_that_forms_the_maps(
    network: UNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = UNet(CONFIG).double().eval()
    for index, parameter in enumerate(network.parameters()):
        parameter.data = 0.1 * normal(*parameter.shape, seed=index) + (parameter.ndim == 1)
    x, t, context = (tensor.double() for tensor in network_inputs())
    edit = AttentionEdit(source=(0, 2), target=(1, 3), self_tokens=64, **all_parts(2))
    plain = network(x, t, context)
    fused = network(x, t, context, control=Control(edit=edit))
    monkeypatch.setattr(control, "fused_edit", edited_attention)
    torch.testing.assert_close(fused, network(x, t, context, control=Control(edit=edit)), rtol=0, atol=1e-10)
    assert (fused - plain)[[1, 3]].abs().max() > 1e-3


IDENTICAL: dict[str, dict[str, Any]] = {
    "replace": {"mapper": torch.eye(LENGTH)[None]},
    "keep": {},
    "refine": {"mapper": torch.eye(LENGTH)[None], "blend": torch.tensor([[1.0, 1, 0, 1, 0, 1]])},
    "fractions": {"mapper": torch.eye(LENGTH)[None], "blend": uniform(1, LENGTH), "gate": uniform(1, LENGTH, seed=1)},
    "words": {"gate": torch.tensor([[1.0, 0, 0, 1, 0, 1]])},
    "re-weighted by 1": {"equalizer": torch.ones(1, LENGTH), "mapper": torch.eye(LENGTH)[None]},
    "self": {"mapper": torch.eye(LENGTH)[None], "self_tokens": 256},
    "self alone": {"cross": False, "self_tokens": 64},
    "small grids": {"mapper": torch.eye(LENGTH)[None], "cross_tokens": 64},
}


@pytest.mark.parametrize("fields", IDENTICAL.values(), ids=IDENTICAL)
@torch.no_grad()
def test_identical_prompts_give_the_source_bit_for_bit(network: UNet, fields: dict[str, Any]) -> None:
    x, t, context = network_inputs(3, alike=True)
    edit = AttentionEdit(source=(0, 0), target=(1, 2), **fields)
    out = network(x, t, context, control=Control(edit=edit))
    assert torch.equal(out[1], out[0]) and torch.equal(out[2], out[0])
    assert torch.equal(out, network(x, t, context))


@torch.no_grad()
def test_rows_that_are_not_edited_keep_the_bits_of_a_plain_call(network: UNet) -> None:
    x, t, context = network_inputs(5)
    edit = AttentionEdit(source=(0, 2), target=(1, 4), self_tokens=64, **all_parts(2))
    plain, out = network(x, t, context), network(x, t, context, control=Control(edit=edit))
    assert torch.equal(out[[0, 2, 3]], plain[[0, 2, 3]])
    assert (out - plain).abs().amax(dim=(1, 2, 3))[[1, 4]].min() > 1e-3


@torch.no_grad()
def test_an_edit_that_keeps_everything_of_the_target_changes_no_bit(network: UNet) -> None:
    x, t, context = network_inputs()
    plain = network(x, t, context)
    closed = AttentionEdit(source=(0,), target=(1,), **{**all_parts(1), "gate": torch.zeros(1, LENGTH)})
    new_words = AttentionEdit(source=(0,), target=(1,), mapper=torch.eye(LENGTH)[None], blend=torch.zeros(1, LENGTH))
    itself = AttentionEdit(source=(1,), target=(1,), self_tokens=256)
    for edit in (closed, new_words, itself):
        assert torch.equal(network(x, t, context, control=Control(edit=edit)), plain)


def test_an_identity_moves_no_value_in_any_precision_of_products() -> None:
    v = normal(1, 3, LENGTH, 8).float() / 3
    edit = AttentionEdit(source=(0,), target=(1,), mapper=torch.eye(LENGTH)[None], gate=uniform(1, LENGTH).float())
    rough = edit._factors(v)[0]
    assert rough is not None and not rough.any()  # rounding of the product's inputs, as in TF32, has nothing to round
    taken, left = edit.values(v)
    assert torch.equal(taken, left) and torch.equal(taken, v * edit.gate[:, None, :, None])


def test_a_permutation_takes_the_source_s_columns() -> None:
    order = torch.tensor([0, 3, 1, 2, 5, 4])
    edit = AttentionEdit(source=(0,), target=(1,), mapper=torch.eye(LENGTH)[:, order][None])
    q, k, v = attention_inputs(2, torch.float32)
    seen = functional.scaled_dot_product_attention(q[:1], k[:1, :, order], v[1:])
    torch.testing.assert_close(fused_edit(q, k, v, None, edit)[1:], seen, rtol=0, atol=1e-6)


def test_re_weighting_by_one_over_an_edit_is_that_edit() -> None:
    parts = {name: part.float() for name, part in all_parts(1).items() if name != "equalizer"}
    edit = AttentionEdit(source=(0,), target=(1,), **parts)
    more = AttentionEdit(source=(0,), target=(1,), **parts, equalizer=torch.ones(1, LENGTH))
    inputs = attention_inputs(2, torch.float32)
    assert torch.equal(fused_edit(*inputs, None, edit), fused_edit(*inputs, None, more))


@torch.no_grad()
def test_several_sources_and_edits_in_one_batch_are_each_pair_alone(network: UNet) -> None:
    x, t, context = network_inputs(5)
    parts = all_parts(3)
    together = AttentionEdit(source=(0, 0, 3), target=(1, 2, 4), self_tokens=64, **parts)
    out = network(x, t, context, control=Control(edit=together))
    for index, (source, target) in enumerate(zip(together.source, together.target, strict=True)):
        alone = {name: part[index : index + 1] for name, part in parts.items()}
        pair = [source, target]
        edit = AttentionEdit(source=(0,), target=(1,), self_tokens=64, **alone)
        expected = network(x[pair], t[pair], context[pair], control=Control(edit=edit))
        torch.testing.assert_close(out[pair], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_one_row_of_tensors_serves_all_edited_rows(network: UNet) -> None:
    x, t, context = network_inputs()
    one = all_parts(1)
    three = {name: part.expand(3, *part.shape[1:]) for name, part in one.items()}
    results = [
        network(x, t, context, control=Control(edit=AttentionEdit(source=(0, 0, 0), target=(1, 2, 3), **parts)))
        for parts in (one, three)
    ]
    assert torch.equal(*results)


@torch.no_grad()
def test_cross_tokens_leaves_the_larger_grids_alone(network: UNet) -> None:
    x, t, context = network_inputs()

    def out(**fields: Any) -> Tensor:
        edit = AttentionEdit(source=(0,), target=(1,), mapper=all_parts(1)["mapper"], **fields)
        return network(x, t, context, control=Control(edit=edit))

    assert torch.equal(out(cross_tokens=256), out())
    assert not torch.allclose(out(cross_tokens=64), out(), atol=1e-3)
    cross = [site for site in network.sites if site.kind == "cross"]
    edit = AttentionEdit(source=(0,), target=(1,), cross_tokens=64)
    assert {site.factor for site in cross if edit.at(site, 256 // site.factor**2) is edit} == {2}
    with pytest.raises(UserError, match="touches none of this network's .* larger cross_tokens or self_tokens"):
        out(cross_tokens=63)


@torch.no_grad()
def test_each_edited_row_may_have_its_own_grids(network: UNet) -> None:
    """Bounds of rows give what each pair has alone with its own bounds, on whole batches and on none."""
    x, t, context = network_inputs(5)
    parts = all_parts(3)
    bounds: dict[str, Any] = {"cross_tokens": (64, None, 16), "self_tokens": (0, 64, 256)}
    together = AttentionEdit(source=(0, 0, 3), target=(1, 2, 4), **bounds, **parts)
    taps = Taps(weights=torch.rand(5, 1, LENGTH), max_cells=256)
    out = network(x, t, context, control=Control(edit=together, taps=taps))
    for index, (source, target) in enumerate(zip(together.source, together.target, strict=True)):
        alone = {name: part[index : index + 1] for name, part in parts.items()}
        own = {name: values[index] for name, values in bounds.items()}
        pair = [source, target]
        edit = AttentionEdit(source=(0,), target=(1,), **own, **alone)
        part = Taps(weights=taps.weights[pair], max_cells=256)
        expected = network(x[pair], t[pair], context[pair], control=Control(edit=edit, taps=part))
        torch.testing.assert_close(out[pair], expected, rtol=0, atol=1e-5)
        for site, sums in part.sums.items():
            torch.testing.assert_close(taps.sums[site][pair], sums, rtol=0, atol=1e-5)
    site = next(site for site in network.sites if site.kind == "cross")
    some = together.at(site, 64)
    assert some is not None and some.target == (1, 2) and some is together.at(site, 64)
    assert together.at(site, 16) is together


@torch.no_grad()
def test_no_map_is_formed_for_an_edit(network: UNet, monkeypatch: pytest.MonkeyPatch) -> None:
    x, t, context = network_inputs()
    edit = AttentionEdit(source=(0,), target=(1,), self_tokens=256, **all_parts(1))

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("a map was formed")

    monkeypatch.setattr(attention_edit, "attention_maps", refuse)
    monkeypatch.setattr("steerdiff.models.taps.attention_maps", refuse)
    network(x, t, context, control=Control(edit=edit))
    with pytest.raises(AssertionError, match="a map was formed"):
        network(x, t, context, control=Control(edit=edit, taps=Taps(kinds=("cross",))))


def test_what_is_prepared_is_kept_by_precision_and_not_for_parts_that_are_learned() -> None:
    parts = all_parts(1)
    edit = AttentionEdit(source=(0,), target=(1,), **parts)
    single, double = attention_inputs(2, torch.float32), attention_inputs(2)
    first = fused_edit(*single, None, edit)
    assert torch.equal(fused_edit(*double, None, edit), fused_edit(*double, None, AttentionEdit(
        source=(0,), target=(1,), **parts)))  # fmt: skip
    assert torch.equal(fused_edit(*single, None, edit), first)
    learned = parts["equalizer"].clone().requires_grad_()
    edit = AttentionEdit(source=(0,), target=(1,), **{**parts, "equalizer": learned})
    for path in (fused_edit, fused_edit, edited_attention):
        path(*double, None, edit).square().sum().backward()
    assert learned.grad is not None
    one = torch.autograd.grad(edited_attention(*double, None, edit).square().sum(), learned)[0]
    torch.testing.assert_close(learned.grad, 3 * one, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": (1, 2)}, "pairs 1 source rows with 2 target rows"),
        (
            {"source": (0, 0), "target": (1, 1)},
            r"source rows \(0, 0\) and target rows \(1, 1\); count from 0 and edit a",
        ),
        ({"source": (-1,)}, r"source rows \(-1,\)"),
        ({"mapper": torch.eye(6)}, r"mapper of the attention edit is \[6, 6\]; it must be \[1, L, L\] or start with 1"),
        ({"mapper": torch.ones(1, 6, 5)}, r"mapper of the attention edit is \[1, 6, 5\]"),
        ({"gate": torch.ones(2, 6)}, r"gate of the attention edit is \[2, 6\]; it must be \[1, L\]"),
        ({"gate": torch.ones(1, 6), "blend": torch.ones(1, 7)}, r"tensors are for \[6, 7\] tokens"),
        ({"cross_tokens": 0}, "cross_tokens is 0 with cross=True"),
        ({"cross": False, "cross_tokens": 16}, "cross_tokens is 16 with cross=False"),
        ({"cross_tokens": (16, 16)}, r"cross_tokens is \(16, 16\) for 1 edited rows; give one number, or one for each"),
        ({"cross_tokens": (0,)}, r"cross_tokens is \(0,\) with cross=True"),
        ({"self_tokens": (16, 16)}, r"self_tokens is \(16, 16\) for 1 edited rows"),
    ],
)
def test_edits_that_fit_nothing_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AttentionEdit(**{"source": (0,), "target": (1,), **fields})


def test_edits_that_do_not_fit_the_call_are_named_before_it_runs(network: UNet) -> None:
    x, t, context = network_inputs(2)
    with pytest.raises(UserError, match="the attention edit names row 2, and the network sees rows 0 to 1"):
        network(x, t, context, control=Control(edit=AttentionEdit(source=(0,), target=(2,))))
    edit = AttentionEdit(source=(0,), target=(1,), gate=torch.ones(1, 77))
    with pytest.raises(UserError, match="the attention edit is for 77 tokens, and the text has 6"):
        network(x, t, context, control=Control(edit=edit))

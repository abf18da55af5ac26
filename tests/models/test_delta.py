"""Deltas: what is stored is what changed, and it fits only what it was made from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from steerdiff import UserError
from steerdiff.models import save_safetensors
from steerdiff.models.delta import Delta, apply_delta, compressed, load_delta, make_delta, save_delta


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16, 32), nn.BatchNorm1d(32))


def moved(size: float = 1e-4) -> tuple[nn.Module, nn.Module]:
    before, after = network(), network()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in after.named_parameters():
            if name != "2.bias":
                weight.add_(size * torch.randn(weight.shape, generator=generator))
    return before, after


def made(size: float = 1e-4, rank: int | None = None) -> tuple[Delta, nn.Module, nn.Module]:
    before, after = moved(size)
    delta = make_delta(
        before.state_dict(), after.state_dict(), base="abc", method="diffusionclip", settings={"t0": 0.5}, rank=rank
    )
    return delta, before, after


def test_a_delta_brings_the_base_to_the_tuned_weights_after_a_round_trip_through_a_file(tmp_path: Path) -> None:
    delta, before, after = made()
    read = load_delta(save_delta(tmp_path / "delta.safetensors", delta))
    assert (read.base, read.method, read.settings, read.rank) == ("abc", "diffusionclip", {"t0": 0.5}, None)
    apply_delta(before, read, "abc")
    for name, weight in after.state_dict().items():
        torch.testing.assert_close(before.state_dict()[name], weight, rtol=0, atol=1e-7)
    assert 0 < read.error < 1e-3


def test_unchanged_weights_are_left_out_and_an_unchanged_network_stays_bit_for_bit() -> None:
    delta, _, _ = made()
    assert "2.bias" not in delta.forms and "3.num_batches_tracked" not in delta.forms
    same = network()
    nothing = make_delta(same.state_dict(), same.state_dict(), base="abc", method="x")
    assert not nothing.tensors and nothing.error == 0
    apply_delta(same, nothing, "abc")
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), network().parameters(), strict=True))


def test_small_changes_are_stored_as_well_as_large_ones() -> None:
    assert made(1e-7)[0].error < 1e-2  # float32 weights of size 0.1 hold changes of 1e-7 to a few per cent only
    assert made(1e-6)[0].error < 1e-3 and made(1e3)[0].error < 1e-3  # float16 alone would lose or overflow


def test_a_change_of_low_rank_is_kept_by_its_factors_and_the_lost_part_is_said() -> None:
    before, after = network(), network()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        after[2].weight.add_(  # type: ignore[operator]
            torch.randn(32, 2, generator=generator) @ torch.randn(2, 16, generator=generator) * 1e-3
        )
    exact = make_delta(before.state_dict(), after.state_dict(), base="abc", method="x", rank=2)
    assert exact.forms == {"2.weight": "low-rank"} and exact.error < 1e-3
    apply_delta(before, exact, "abc")
    torch.testing.assert_close(before[2].weight, after[2].weight, rtol=0, atol=1e-5)
    delta, base, tuned = made(rank=1)
    change = tuned[2].weight - base[2].weight
    values = torch.linalg.svdvals(change.detach())
    lost = (change - delta.change("2.weight")).norm() / change.norm()
    assert float(lost) == pytest.approx(float(values[1:].norm() / values.norm()), rel=1e-3)
    assert delta.error > 0.3


def test_compressing_afterwards_is_the_same_and_smaller() -> None:
    whole, _, _ = made()
    packed, direct = compressed(whole, 2), made(rank=2)[0]
    assert packed.forms == direct.forms and packed.settings == whole.settings and packed.rank == 2
    assert packed.error == pytest.approx(direct.error, rel=1e-3) and packed.error > whole.error
    sizes = [sum(t.numel() for t in delta.tensors.values()) for delta in (whole, packed)]
    assert sizes[1] < 0.5 * sizes[0]
    with pytest.raises(UserError, match="rank is 0; it must be at least 1"):
        compressed(whole, 0)


def test_added_weights_come_back_by_name_and_are_never_applied() -> None:
    head = network(3).state_dict()
    delta = make_delta({}, head, base="abc", method="asyrp", rank=1)
    assert set(delta.forms.values()) == {"added"}
    for name, value in delta.added().items():
        torch.testing.assert_close(value, head[name].float(), rtol=1e-3, atol=1e-3)
    base = network()
    apply_delta(base, delta, "abc")
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), network().parameters(), strict=True))


def test_another_base_is_refused() -> None:
    delta, before, _ = made()
    with pytest.raises(UserError, match="was tuned from weights abc and this model has xyz; load the model it was"):
        apply_delta(before, delta, "xyz")


def test_a_network_without_the_weights_or_of_other_shapes_is_refused() -> None:
    delta, _, _ = made()
    with pytest.raises(UserError, match="the delta changes .*, which the network has not"):
        apply_delta(nn.Linear(2, 2), delta, "abc")
    other = network()
    other[2] = nn.Linear(16, 31)  # type: ignore[index]
    with pytest.raises(UserError, match=r"the delta's 2.weight does not have the network's shape \[31, 16\]"):
        apply_delta(other, delta, "abc")
    with pytest.raises(UserError, match=r"2.weight was \[31, 16\] and is \[32, 16\] after tuning"):
        make_delta(other.state_dict(), network().state_dict(), base="abc", method="x")


def test_files_that_hold_something_else_or_are_damaged_are_named(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "unet.safetensors", network().state_dict(), {"kind": "unet"})
    with pytest.raises(UserError, match="holds a model of kind 'unet' and no delta; give what steerdiff finetune"):
        load_delta(tmp_path / "unet.safetensors")
    delta, _, _ = made()
    name = next(iter(delta.tensors))
    less = {key: value for key, value in delta.tensors.items() if key != name}
    broken = Delta(base="abc", method="x", tensors=less, forms=delta.forms, scales=delta.scales)
    with pytest.raises(UserError, match="does not hold the tensors that its header names; tune again"):
        load_delta(save_delta(tmp_path / "delta.safetensors", broken))
    save_safetensors(tmp_path / "odd.safetensors", {}, {"kind": "delta", "colour": "red"})
    with pytest.raises(UserError, match="has a damaged header"):
        load_delta(tmp_path / "odd.safetensors")


def test_a_network_in_half_precision_takes_a_delta_in_its_own_type() -> None:
    delta, before, after = made(1e-2)
    half = before.to(torch.bfloat16)
    apply_delta(half, delta, "abc")
    assert half[2].weight.dtype == torch.bfloat16
    torch.testing.assert_close(half[2].weight.float(), after[2].weight, rtol=0.02, atol=0.02)

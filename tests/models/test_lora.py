"""Low-rank adapters: they begin as the network, tune nothing else, and a delta holds them to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steerdiff import UserError
from steerdiff.models.config import UNetConfig
from steerdiff.models.delta import Delta, apply_delta, load_delta, make_delta, save_delta
from steerdiff.models.lora import LowRank, with_factors
from steerdiff.models.unet import UNet

EMPTY = Delta(base="abc", method="x")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 6), nn.LayerNorm(6))


def stepped(module: LowRank, steps: int = 3) -> LowRank:
    """After some steps of gradient descent towards a constant."""
    dtype = next(module.network.parameters()).dtype
    x = torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(3), dtype=dtype)
    for _ in range(steps):
        (module(x) - 1).square().sum().backward()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
    return module


def test_a_network_with_new_adapters_is_the_network_bit_for_bit_and_shares_its_weights() -> None:
    plain = network()
    adapted = LowRank(plain, 2, among=("weight",))
    x = torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(adapted(x), plain(x))
    assert adapted.network is plain
    assert adapted.names == ("0.weight", "2.weight")  # vectors have no rank


def test_only_the_factors_are_tuned_and_the_network_stays() -> None:
    plain, before = network().double(), network().double().state_dict()
    adapted = stepped(LowRank(plain, 2, among=("weight",)))
    trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trainable == {"left.0", "left.1", "right.0", "right.1"}
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    for name, weight in adapted.weights().items():
        change = (weight - before[name]).flatten(1)
        assert int(torch.linalg.matrix_rank(change, rtol=1e-6)) == 2


def test_gradients_are_those_of_the_changed_weight_through_its_factors() -> None:
    adapted = stepped(LowRank(network().double(), 2, among=("2.",), scale=0.5))
    x = torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    adapted(x).square().sum().backward()
    dense = network().double()
    with torch.no_grad():
        dense[2].weight.copy_(adapted.weights()["2.weight"])  # type: ignore[operator]
    dense(x).square().sum().backward()
    full: Any = dense[2].weight.grad
    left, right = adapted.left[0], adapted.right[0]
    torch.testing.assert_close(left.grad, (0.5 * full @ right.T.double()).float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(right.grad, (0.5 * left.T.double() @ full).float(), rtol=1e-4, atol=1e-6)


def test_the_scale_counts_in_the_weights_and_in_the_factors() -> None:
    adapted = stepped(LowRank(network(), 1, among=("2.",), scale=2.0))
    ((left, right),) = adapted.factors().values()
    assert torch.equal(left, 2 * adapted.left[0])
    change = adapted.weights()["2.weight"] - network().state_dict()["2.weight"]
    torch.testing.assert_close(change, left @ right, rtol=0, atol=1e-7)


def test_a_delta_of_factors_brings_the_network_to_what_was_tuned(tmp_path: Path) -> None:
    adapted = stepped(LowRank(network(), 2, among=("weight",)))
    delta = with_factors(EMPTY, adapted.factors())
    read = load_delta(save_delta(tmp_path / "delta.safetensors", delta))
    assert read.rank == 2 and set(read.forms.values()) == {"low-rank"} and 0 < read.error < 1e-3
    plain = network()
    apply_delta(plain, read, "abc")
    x = torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain(x), adapted(x), rtol=0, atol=2e-3)


def test_factors_that_are_still_0_are_left_out_and_a_weight_is_changed_once() -> None:
    assert not with_factors(EMPTY, LowRank(network(), 2, among=("weight",)).factors()).forms
    adapted = stepped(LowRank(network(), 2, among=("2.",)))
    changed = make_delta({"2.weight": torch.zeros(6, 8)}, {"2.weight": torch.ones(6, 8)}, base="abc", method="x")
    with pytest.raises(UserError, match=r"changes 2.weight already"):
        with_factors(changed, adapted.factors())


def test_half_precision_weights_get_factors_in_float32() -> None:
    adapted = LowRank(network().bfloat16(), 2, among=("weight",))
    assert {factor.dtype for factor in (*adapted.left, *adapted.right)} == {torch.float32}
    assert (
        adapted(torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(0)).bfloat16()).dtype == torch.bfloat16
    )


def test_by_default_the_attention_of_a_unet_is_adapted_and_calls_pass_through() -> None:
    config = UNetConfig(
        model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_at=(1,), context_dim=16, unshuffle=2
    )
    unet = UNet(config).eval()
    adapted = LowRank(unet, 2)
    assert adapted.config is unet.config
    assert adapted.names and all(".attn1.to_" in name or ".attn2.to_" in name for name in adapted.names)
    x, t = torch.zeros(2, 3, 8, 8), torch.tensor([3.0, 4.0])
    context: Tensor = torch.ones(2, 5, 16)
    assert torch.equal(adapted(x, t, context=context), unet(x, t, context=context))


@pytest.mark.parametrize(
    ("rank", "among", "message"),
    [(0, ("weight",), "the rank of adapters is 0"), (2, ("attn",), "no matrix of the network has attn in its name")],
)
def test_adapters_that_cannot_be_are_errors(rank: int, among: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LowRank(network(), rank, among=among)

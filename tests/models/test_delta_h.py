"""The networks that shift the bottleneck: their formula, their start, their times, their sums."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from steerdiff import UserError
from steerdiff.models.config import UNetConfig
from steerdiff.models.delta_h import (
    DeltaH,
    DeltaHConfig,
    DirectDeltaH,
    MixedDeltaH,
    build_delta_h,
    delta_h_config,
)
from steerdiff.models.unet import UNet

CONFIG = DeltaHConfig(channels=32, time_channels=16)


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    h, emb = torch.randn(2, 32, 4, 4, generator=generator), torch.randn(2, 16, generator=generator)
    return h, emb, torch.tensor([3.0, 700.0])


def test_the_ddpm_form_is_convolution_time_norm_silu_convolution() -> None:
    f, (h, emb, t) = build_delta_h(CONFIG), inputs()
    first, last, time = f.before[0], f.after[2], f.time[1]
    x = functional.conv2d(h, first.weight, first.bias) + time(functional.silu(emb))[:, :, None, None]
    x = functional.silu(functional.group_norm(x, 32, f.after[0].weight, f.after[0].bias, eps=1e-6))
    torch.testing.assert_close(f(h, emb, t), functional.conv2d(x, last.weight, last.bias))


def test_the_adm_form_begins_with_a_norm_and_silu() -> None:
    f, (h, emb, t) = build_delta_h(DeltaHConfig(channels=32, time_channels=16, form="adm")), inputs()
    first, last, time = f.before[2], f.after[2], f.time[1]
    x = functional.silu(functional.group_norm(h, 32, f.before[0].weight, f.before[0].bias, eps=1e-5))
    x = functional.conv2d(x, first.weight, first.bias) + time(functional.silu(emb))[:, :, None, None]
    x = functional.silu(functional.group_norm(x, 32, f.after[0].weight, f.after[0].bias, eps=1e-5))
    torch.testing.assert_close(f(h, emb, t), functional.conv2d(x, last.weight, last.bias))


def test_without_its_time_the_shift_does_not_depend_on_it() -> None:
    (h, emb, t), plain = inputs(), build_delta_h(CONFIG)
    timeless = build_delta_h(DeltaHConfig(channels=32, time_channels=16, ignores_time=True))
    assert not torch.equal(plain(h, emb, t), plain(h, 2 * emb, t))
    assert torch.equal(timeless(h, emb, t), timeless(h, 2 * emb, t))


def test_the_start_is_random_unless_zero_is_asked_for_and_leaves_the_callers_randomness_alone() -> None:
    h, emb, t = inputs()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = build_delta_h(CONFIG), build_delta_h(CONFIG), build_delta_h(CONFIG, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert one(h, emb, t).abs().max() > 0.01
    assert torch.equal(one(h, emb, t), same(h, emb, t)) and not torch.equal(one(h, emb, t), other(h, emb, t))
    assert not build_delta_h(CONFIG, zero=True)(h, emb, t).any()


def test_a_direct_shift_is_that_of_the_nearest_time_for_every_image() -> None:
    config = DeltaHConfig(channels=32, time_channels=16, form="direct", cells=(4, 4), times=(0, 500, 999))
    f, (h, emb, t) = build_delta_h(config), inputs()
    assert isinstance(f, DirectDeltaH)
    assert torch.equal(f(h, emb, t), f.shifts[[0, 1]]) and torch.equal(f(2 * h, 2 * emb, t), f(h, emb, t))
    assert 0.15 < float(f.shifts.detach().std()) < 0.25
    assert not build_delta_h(config, zero=True)(h, emb, t).any()
    for_all = build_delta_h(DeltaHConfig(channels=32, time_channels=16, form="direct", cells=(4, 4), ignores_time=True))
    assert torch.equal(for_all(h, emb, t)[0], for_all(h, emb, 0 * t)[1])


def test_a_mixture_is_the_weighted_sum_in_any_order() -> None:
    (h, emb, t), parts = inputs(), [build_delta_h(CONFIG, seed=k) for k in range(3)]
    weights = [0.5, -2.0, 1.25]
    mixed = MixedDeltaH(list(parts), weights)(h, emb, t)
    torch.testing.assert_close(mixed, sum(w * f(h, emb, t) for f, w in zip(parts, weights, strict=True)))
    turned = MixedDeltaH(list(reversed(parts)), weights[::-1])(h, emb, t)
    torch.testing.assert_close(turned, mixed, rtol=0, atol=1e-6)
    assert torch.equal(MixedDeltaH([parts[0]], [1.0])(h, emb, t), parts[0](h, emb, t))
    with pytest.raises(UserError, match="1 shifts have 2 weights"):
        MixedDeltaH([parts[0]], [1.0, 2.0])


def test_the_configuration_follows_the_unet_and_survives_json() -> None:
    unet = UNet(UNetConfig(model_channels=32, channel_mult=(1, 3), num_res_blocks=1, attention_at=()))
    config = delta_h_config(unet, "adm", ignores_time=True)
    assert (config.channels, config.time_channels, config.form) == (96, 128, "adm")
    assert DeltaHConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert isinstance(build_delta_h(config), DeltaH)


def test_what_cannot_be_shifted_is_an_error() -> None:
    with pytest.raises(UserError, match="network is a Identity without a bottleneck to shift"):
        delta_h_config(nn.Identity())
    with pytest.raises(UserError, match="form is 'big'; known are ddpm, adm, direct"):
        DeltaHConfig(channels=32, time_channels=16, form="big")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the bottleneck has 40 channels"):
        DeltaHConfig(channels=40, time_channels=16)
    with pytest.raises(UserError, match="give cells, and times or ignores_time"):
        DeltaHConfig(channels=32, time_channels=16, form="direct")

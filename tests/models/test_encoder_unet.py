"""The noisy classifier: its pools, its configuration and its errors."""

import dataclasses

import pytest
import torch

from steerdiff.errors import UserError
from steerdiff.models import EncoderUNet, EncoderUNetConfig, UNetConfig, build

TRUNK = UNetConfig(
    out_channels=5,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_at=(2,),
    head_channels=16,
    scale_shift_norm=True,
    resblock_updown=True,
)
SMALL = EncoderUNetConfig(trunk=TRUNK, image_size=16)
POOLS = ("attention", "adaptive", "spatial", "spatial_v2")


def filled(config: EncoderUNetConfig) -> EncoderUNet:
    """A classifier whose zero-initialised layers are random too."""
    torch.manual_seed(0)
    network = EncoderUNet(config).eval()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def inputs(size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1)), torch.tensor([3.0, 400.5, 999.0])


@torch.no_grad()
@pytest.mark.parametrize("pool", POOLS)
def test_a_batch_is_its_images_and_time_matters(pool):
    network = filled(dataclasses.replace(SMALL, pool=pool))
    x, t = inputs()
    logits = network(x, t)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    assert logits.shape == (3, 5) and torch.allclose(logits, alone, atol=1e-5)
    assert not torch.allclose(logits, network(x, t.flip(0)), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("pool", POOLS)
def test_only_the_attention_pool_is_bound_to_its_image_size(pool):
    network = filled(dataclasses.replace(SMALL, pool=pool))
    x, t = inputs(24)
    if pool == "attention":
        with pytest.raises(UserError, match="24 x 24 pixels; both must be 16 for this classifier"):
            network(x, t)
    else:
        assert network(x, t).shape == (3, 5)
        with pytest.raises(UserError, match="24 x 23 pixels; both must be divisible by 2"):
            network(x[..., :23], t)


@torch.no_grad()
def test_the_attention_pool_mixes_all_cells_by_the_mean_s_query():
    network = filled(SMALL)
    pool = network.out[2]
    x = torch.randn(2, 64, 8, 8, generator=torch.Generator().manual_seed(0))
    tokens = x.flatten(2)
    tokens = torch.cat([tokens.mean(-1, keepdim=True), tokens], dim=-1) + pool.positional_embedding
    q, k, v = (part.reshape(8, 16, -1) for part in pool.qkv_proj(tokens).chunk(3, dim=1))
    maps = (q.transpose(1, 2) @ k / 4).softmax(-1)
    out = pool.c_proj((v @ maps.transpose(1, 2)).reshape(2, 64, -1))[:, :, 0]
    assert torch.allclose(pool(x), out, atol=1e-5)


@torch.no_grad()
def test_half_precision_weights_keep_the_dtype_of_the_image():
    x, t = inputs()
    network = filled(SMALL)
    half = filled(SMALL).to(torch.bfloat16)
    assert half(x, t).dtype == torch.float32
    assert torch.allclose(half(x, t), network(x, t), rtol=0.2, atol=0.2)


@torch.no_grad()
def test_pixels_may_be_gathered_into_cells_first():
    x, t = inputs()
    network = filled(dataclasses.replace(SMALL, trunk=dataclasses.replace(TRUNK, unshuffle=2)))
    plain = EncoderUNet(EncoderUNetConfig(trunk=dataclasses.replace(TRUNK, in_channels=12), image_size=8)).eval()
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network(x, t), plain(torch.nn.functional.pixel_unshuffle(x, 2), t))


def test_it_is_built_without_memory_on_the_meta_device():
    with torch.device("meta"):
        network = build(
            "EncoderUNetModel",
            {
                "image_size": 256,
                "in_channels": 3,
                "model_channels": 128,
                "out_channels": 1000,
                "num_res_blocks": 2,
                "attention_resolutions": (8, 16, 32),
                "channel_mult": (1, 1, 2, 2, 4, 4),
                "num_head_channels": 64,
                "use_scale_shift_norm": True,
                "resblock_updown": True,
                "pool": "attention",
            },
        )
    assert all(parameter.is_meta for parameter in network.parameters())
    assert network.out[2].positional_embedding.shape == (512, 65)
    assert len(network.state_dict()) == 249


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": "mean"}, "pool is 'mean'; known are attention, adaptive, spatial, spatial_v2"),
        ({"image_size": 15}, "image_size is 15; it must be divisible by 2"),
        ({"trunk": dataclasses.replace(TRUNK, num_classes=3)}, "sees neither labels nor text"),
        ({"trunk": dataclasses.replace(TRUNK, context_dim=3)}, "sees neither labels nor text"),
        ({"trunk": dataclasses.replace(TRUNK, head_channels=None)}, "the attention pool needs head_channels"),
    ],
)
def test_impossible_configurations_are_named(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **change)


def test_wrong_channels_and_missing_arguments_are_named():
    x, t = inputs()
    with pytest.raises(UserError, match=r"x is \[3, 2, 16, 16\]; this classifier takes \[B, 3, H, W\]"):
        filled(SMALL)(x[:, :2], t)
    with pytest.raises(UserError, match="the classifier lacks image_size, out_channels; give them"):
        build("EncoderUNetModel", {"in_channels": 3})

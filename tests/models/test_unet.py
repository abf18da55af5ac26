"""The UNet's conditions, its control argument and its errors."""

import dataclasses

import pytest
import torch

from steerdiff.errors import UserError
from steerdiff.models import AttentionEdit, Control, Taps, UNet, UNetConfig, build
from steerdiff.models.layers import Downsample, time_embedding

TEXT = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_at=(1, 2),
    num_heads=4,
    scale_shift_norm=True,
    context_dim=16,
    unshuffle=2,
    self_attention_at=(2,),
)


def filled(config: UNetConfig) -> UNet:
    """A UNet whose zero-initialised layers are random too, so that every branch shows in the output."""
    torch.manual_seed(0)
    network = UNet(config).eval()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.fixture(scope="module")
def network() -> UNet:
    return filled(TEXT)


def inputs(batch: int = 2, length: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, 16, 16, generator=generator)
    context = torch.randn(batch, length, 16, generator=generator)
    return x, torch.tensor([10.0, 700.5, 3.0, 999.0][:batch]), context


@torch.no_grad()
def test_masked_text_has_no_influence(network):
    x, t, context = inputs()
    mask = torch.tensor([[True, True, True, False, False]] * 2)
    other = context.clone()
    other[:, 3:] += 5
    assert torch.equal(network(x, t, context, context_mask=mask), network(x, t, other, context_mask=mask))
    assert not torch.allclose(network(x, t, context), network(x, t, other))


@torch.no_grad()
def test_unshuffle_equals_a_network_on_rearranged_pixels(network):
    x, t, context = inputs()
    plain = UNet(dataclasses.replace(TEXT, in_channels=12, out_channels=12, unshuffle=1)).eval()
    plain.load_state_dict(network.state_dict())
    cells = torch.nn.functional.pixel_unshuffle(x, 2)
    expected = torch.nn.functional.pixel_shuffle(plain(cells, t, context), 2)
    assert torch.equal(network(x, t, context), expected)


@torch.no_grad()
def test_positioned_queries_change_nothing_until_they_are_trained_and_then_tell_the_sides_apart(network):
    x, t, context = inputs()
    positioned = UNet(dataclasses.replace(TEXT, positioned_queries=True)).eval()
    missing = positioned.load_state_dict(network.state_dict(), strict=False).missing_keys
    assert len(missing) == 7 and all(name.endswith("attn2.to_q_position.weight") for name in missing)
    assert torch.equal(positioned(x, t, context), network(x, t, context))
    for name in missing:
        torch.nn.init.normal_(positioned.get_parameter(name))
    assert not torch.allclose(positioned(x, t, context), network(x, t, context), atol=1e-3)


@torch.no_grad()
def test_channels_given_apart_are_those_of_x(network):
    x, t, context = inputs()
    wide = filled(dataclasses.replace(TEXT, in_channels=8))
    more = torch.cat([x, x[:, :2]], dim=1).flip(2)
    together = wide(torch.cat([x, more], dim=1), t, context)
    assert torch.equal(wide(x, t, context, concat=more), together)
    assert torch.equal(wide(x, t, context, concat=more.double()), together)
    assert wide(x.half(), t, context, concat=more).dtype == torch.float16
    with pytest.raises(UserError, match=r"concat is \[2, 5, 8, 16\] beside x of \[2, 3, 16, 16\]; both must have"):
        wide(x, t, context, concat=more[:, :, :8])
    with pytest.raises(UserError, match="x and concat have 3 and 4 channels; this network takes 8 together"):
        wide(x, t, context, concat=more[:, :4])
    with pytest.raises(UserError, match=r"x is \[2, 3, 16, 16\]; this network takes \[B, 8, H, W\]"):
        wide(x, t, context)


def test_both_orders_of_time_features_have_their_own_frequencies():
    t = torch.tensor([0.0, 3.0, 250.5])
    adm, ddpm = time_embedding(t, 8), time_embedding(t, 8, "sin_cos")
    steps = torch.arange(4.0)
    assert torch.allclose(adm, torch.cat([(t[:, None] * 10000 ** (-steps / 4)).cos(), adm[:, 4:]], dim=1))
    assert torch.allclose(ddpm[:, :4], (t[:, None] * 10000 ** (-steps / 3)).sin(), atol=1e-6)
    assert torch.allclose(ddpm[:, 4:], (t[:, None] * 10000 ** (-steps / 3)).cos(), atol=1e-6)


def test_padding_after_shows_at_the_far_border_only():
    even, after = Downsample(32, learned=True), Downsample(32, learned=True, pads_after=True)
    torch.nn.init.ones_(even.op.weight)
    torch.nn.init.zeros_(even.op.bias)
    after.load_state_dict(even.state_dict())
    counts = torch.ones(1, 32, 6, 6)
    assert (even(counts)[0, 0] / 32).tolist() == [[4, 6, 6], [6, 9, 9], [6, 9, 9]]
    assert (after(counts)[0, 0] / 32).tolist() == [[9, 9, 6], [9, 9, 6], [6, 6, 4]]


@torch.no_grad()
def test_a_batch_is_its_images(network):
    x, t, context = inputs(4)
    together = network(x, t, context)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], context[i : i + 1]) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-5)


@torch.no_grad()
def test_an_empty_control_and_a_neutral_edit_change_nothing(network):
    x, t, context = inputs()
    plain = network(x, t, context)
    assert torch.equal(plain, network(x, t, context, control=Control()))
    neutral = AttentionEdit(source=(0,), target=(1,), mapper=torch.eye(5)[None], blend=torch.zeros(1, 5))
    assert torch.equal(plain, network(x, t, context, control=Control(edit=neutral)))


@torch.no_grad()
def test_an_edited_row_with_the_source_s_image_and_text_stays_the_source_s(network):
    x, t, context = inputs()
    x, t, context = x[:1].repeat(2, 1, 1, 1), t[:1].repeat(2), context[:1].repeat(2, 1, 1)
    edit = AttentionEdit(source=(0,), target=(1,), self_tokens=64)
    out = network(x, t, context, control=Control(edit=edit))
    assert torch.equal(out[0], out[1])
    assert torch.equal(out, network(x, t, context))


@torch.no_grad()
def test_edits_change_the_target_row_and_no_other(network):
    x, t, context = inputs(3)
    plain = network(x, t, context)
    for edit in (
        AttentionEdit(source=(0,), target=(2,)),
        AttentionEdit(source=(0,), target=(2,), blend=torch.zeros(1, 5), equalizer=torch.tensor([[1, 1, 4.0, 1, 1]])),
        AttentionEdit(source=(0,), target=(2,), cross=False, self_tokens=16),
    ):
        out = network(x, t, context, control=Control(edit=edit))
        assert torch.equal(out[:2], plain[:2])
        assert not torch.allclose(out[2], plain[2], atol=1e-3)


@torch.no_grad()
def test_a_closed_gate_is_no_edit(network):
    x, t, context = inputs()
    edit = AttentionEdit(source=(0,), target=(1,), gate=torch.zeros(1, 5))
    assert torch.equal(network(x, t, context), network(x, t, context, control=Control(edit=edit)))


@torch.no_grad()
def test_taps_keep_maps_that_sum_to_one_and_the_bottleneck(network):
    x, t, context = inputs()
    taps = Taps(h=True, kinds=("self", "cross"))
    out = network(x, t, context, control=Control(taps=taps))
    assert torch.equal(out, network(x, t, context))
    assert taps.bottleneck.shape == (2, 64, 4, 4)
    kinds = [site.kind for site in taps.maps]
    assert (
        kinds.count("cross") == 7 and kinds.count("self") == 4
    )  # three places on the full grid have no self-attention
    for site, maps in taps.maps.items():
        assert maps.shape[-1] == (5 if site.kind == "cross" else 16)
        assert torch.allclose(maps.sum(-1), torch.ones(()), atol=1e-5)


@torch.no_grad()
def test_a_shift_in_h_space_is_added_after_the_middle_block(network):
    x, t, context = inputs()
    plain = network(x, t, context)
    assert torch.equal(plain, network(x, t, context, control=Control(h_shift=torch.zeros(1, 64, 1, 1))))
    assert not torch.allclose(plain, network(x, t, context, control=Control(h_shift=torch.ones(1, 64, 1, 1))))


@torch.no_grad()
def test_a_shift_may_be_computed_from_the_bottleneck_the_time_embedding_and_the_time(network):
    x, t, context = inputs()
    seen = {}

    def shift(h, emb, t):
        seen.update(h=h, emb=emb, t=t)
        return 0.5 * h

    taps = Taps(h=True)
    out = network(x, t, context, control=Control(h_shift=shift, taps=taps))
    assert torch.equal(seen["h"], taps.bottleneck) and torch.equal(seen["t"], t)
    assert seen["emb"].shape == (2, network.config.time_channels)
    assert torch.equal(out, network(x, t, context, control=Control(h_shift=0.5 * taps.bottleneck)))


@torch.no_grad()
def test_going_up_twice_gives_the_bits_of_two_calls_and_down_only_once(network):
    x, t, context = inputs()
    shift = torch.ones(1, 64, 1, 1)
    downs = []
    handle = network.middle_block.register_forward_hook(lambda *_: downs.append(1))
    plain, shifted = network(x, t, context, control=Control(h_shift=shift, keeps_plain=True)).chunk(2, dim=1)
    handle.remove()
    assert len(downs) == 1
    assert torch.equal(plain, network(x, t, context))
    assert torch.equal(shifted, network(x, t, context, control=Control(h_shift=shift)))


def test_keeping_the_plain_output_without_a_shift_is_an_error():
    with pytest.raises(UserError, match="keeps_plain goes up with and without h_shift, and none is given"):
        Control(keeps_plain=True)


def test_checkpoints_give_the_same_gradient_from_far_less_that_is_kept(network):
    x, t, context = inputs()
    gradients, kept = [], []
    for control in (None, Control(checkpoints=True)):
        sizes = []

        def note(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        seen = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = network(seen, t, context, control=control)
        kept.append(sum(sizes))  # parameters too, which cost nothing: they are kept once for the output layer alone
        gradients.append(torch.autograd.grad(out.square().sum(), seen)[0])
    assert torch.equal(*gradients)
    assert kept[1] < kept[0] / 4
    with torch.no_grad():
        assert torch.equal(network(x, t, context, control=Control(checkpoints=True)), network(x, t, context))


def test_control_that_concerns_nothing_is_an_error(network):
    x, t, context = inputs()
    with pytest.raises(UserError, match="touches none of this network's"):
        network(x, t, context, control=Control(edit=AttentionEdit(source=(0,), target=(1,), cross=False)))
    with pytest.raises(UserError, match="no attention of kind self has at most 2 cells"):
        network(x, t, context, control=Control(taps=Taps(kinds=("self",), max_cells=2)))
    with pytest.raises(UserError, match="pairs 1 source rows with 2 target rows"):
        AttentionEdit(source=(0,), target=(1, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, t, c: (x[:, :2], t, c), r"x is \[2, 2, 16, 16\]; this network takes \[B, 3, H, W\]"),
        (lambda x, t, c: (x[..., :15], t, c), "16 x 15 pixels; both must be divisible by 4"),
        (lambda x, t, c: (x, t, None), "needs text states"),
        (lambda x, t, c: (x, t, c, torch.tensor([0, 1])), "takes no labels"),
    ],
)
def test_wrong_inputs_are_named(network, change, message):
    with pytest.raises(UserError, match=message):
        network(*change(*inputs()))


def test_wrong_configurations_are_named():
    with pytest.raises(UserError, match="48 channels; group normalisation"):
        UNetConfig(model_channels=48)
    with pytest.raises(UserError, match="does not divide into 5 heads"):
        UNet(dataclasses.replace(TEXT, num_heads=5))
    with pytest.raises(UserError, match="'UNet2D' is not a known network"):
        build("UNet2D", {})
    with pytest.raises(UserError, match="modelchannels is not an argument"):
        build("UNetModel", {"modelchannels": 32})


def test_half_precision_weights_keep_the_dtype_of_the_input():
    network = filled(TEXT).to(torch.bfloat16)
    x, t, context = inputs()
    assert network(x, t, context).dtype == torch.float32


def test_channels_last_gives_the_same_picture(network):
    x, t, context = inputs()
    expected = network(x, t, context)
    other = filled(TEXT).to(memory_format=torch.channels_last)
    result = other(x.contiguous(memory_format=torch.channels_last), t, context)
    assert torch.allclose(expected, result, atol=1e-4)


PLAIN = UNetConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_at=(1, 2), num_heads=4)
OTHER_VALUES = {
    "in_channels": (PLAIN, 6),
    "out_channels": (PLAIN, 6),
    "model_channels": (PLAIN, 64),
    "channel_mult": (PLAIN, (1, 3)),
    "num_res_blocks": (PLAIN, 2),
    "attention_at": (PLAIN, (2,)),
    "num_heads": (PLAIN, 2),
    "head_channels": (PLAIN, 16),
    "num_heads_upsample": (PLAIN, 2),
    "attention_order": (PLAIN, "new"),
    "scale_shift_norm": (PLAIN, True),
    "resblock_updown": (PLAIN, True),
    "conv_resample": (PLAIN, False),
    "dropout": (PLAIN, 0.5),
    "norm_eps": (PLAIN, 1e-2),
    "time_features": (PLAIN, "sin_cos"),
    "pads_after": (PLAIN, True),
    "num_classes": (PLAIN, 3),
    "context_dim": (PLAIN, 16),
    "transformer_depth": (TEXT, 2),
    "linear_projections": (TEXT, True),
    "self_attention_at": (TEXT, None),
    "positioned_queries": (TEXT, True),
    "feed_forward_mult": (TEXT, 2),
    "unshuffle": (PLAIN, 2),
}


def fingerprint(config: UNetConfig) -> object:
    """What a configuration decides: the weights' names and shapes, and the output of a network in training mode."""
    network = filled(config).train()
    x, t, context = inputs()
    x = x[:, :1].repeat(1, config.in_channels, 1, 1)
    y = None if config.num_classes is None else torch.tensor([0, 2])
    torch.manual_seed(2)
    out = network(x, t, None if config.context_dim is None else context, y)
    return {name: value.shape for name, value in network.state_dict().items()}, out.sum().item()


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(UNetConfig)])
def test_every_field_changes_the_network(name):
    config, value = OTHER_VALUES[name]
    assert fingerprint(dataclasses.replace(config, **{name: value})) != fingerprint(config)

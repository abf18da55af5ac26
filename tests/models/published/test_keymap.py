"""Maps of names, and filling networks by them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from steerdiff.errors import UserError
from steerdiff.models.config import UNetConfig
from steerdiff.models.published import ddpm_keymap, diffusers_unet_keymap, hf_text_keymap
from steerdiff.models.text_config import ClipTextConfig
from steerdiff.models.weights import Entry, Origin, WeightFile, fill, published_tensors, read_ours

SIDES = st.integers(1, 4)


def in_memory(tensors: dict[str, Tensor]) -> WeightFile:
    entries = {name: Entry(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return WeightFile(Path("file.pt"), entries, lambda name: tensors[name].clone())


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@given(
    st.sampled_from(
        [
            Origin(("a",)),
            Origin(("a",), "transpose"),
            *(
                Origin(names, op)
                for names in (("a",), ("a", "b", "c"))
                for op in ("concat", "from_conv", "from_linear")
            ),
        ]
    ),
    SIDES,
    SIDES,
    st.integers(0, 2),
)
def test_every_way_from_published_to_ours_has_an_inverse(origin: Origin, rows: int, columns: int, ones: int) -> None:
    ours = torch.arange(3 * rows * columns).reshape(3 * rows, columns, *[1] * (0 if origin.op == "transpose" else ones))
    parts = origin.backward(ours)
    assert tuple(tuple(part.shape) for part in parts) == origin.shapes(tuple(ours.shape))
    assert torch.equal(origin.forward(parts, tuple(ours.shape)), ours)
    again = origin.backward(origin.forward(parts, tuple(ours.shape)))
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))


def test_the_shapes_of_published_tensors_follow_from_ours() -> None:
    assert Origin(("q", "k", "v"), "from_conv").shapes((6, 2, 1)) == ((2, 2, 1, 1),) * 3
    assert Origin(("q", "k", "v"), "concat").shapes((6,)) == ((2,),) * 3
    assert Origin(("w",), "from_linear").shapes((4, 3, 1, 1)) == ((4, 3),)
    assert Origin(("w",), "transpose").shapes((4, 3)) == ((3, 4),)
    assert Origin(("s",)).shapes(()) == ((),)


def test_queries_keys_and_values_stand_one_below_the_other() -> None:
    q, k, v = (torch.full((2, 2, 1, 1), float(number)) for number in (1, 2, 3))
    ours = Origin(("q", "k", "v"), "from_conv").forward([q, k, v], (6, 2, 1))
    assert ours[:, 0, 0].tolist() == [1, 1, 2, 2, 3, 3]


def test_filling_gives_every_tensor_its_numbers() -> None:
    source = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    source[1].num_batches_tracked += 5
    module = on_meta()
    module[2].requires_grad_(False)
    fill(module, in_memory(dict(source.state_dict())), source="file")
    assert all(torch.equal(module.state_dict()[key], value) for key, value in source.state_dict().items())
    assert module[0].weight.requires_grad and not module[2].weight.requires_grad
    assert isinstance(module[0].weight, nn.Parameter) and dict(module.named_buffers()).keys() == {
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }
    module.eval()(torch.zeros(1, 3)).sum().backward()


def test_only_floating_tensors_take_the_type_asked_for() -> None:
    module = on_meta()
    source = {key: value.double() if value.is_floating_point() else value for key, value in on_real().items()}
    fill(module, in_memory(source), source="file", dtype=torch.float16)
    types = {key: value.dtype for key, value in module.state_dict().items()}
    assert types.pop("1.num_batches_tracked") == torch.int64
    assert set(types.values()) == {torch.float16}


def on_real() -> dict[str, Tensor]:
    return dict(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).state_dict())


def test_nothing_is_read_before_everything_fits() -> None:
    tensors = on_real()
    tensors["surplus"] = torch.zeros(1)
    read: list[str] = []
    file = in_memory(tensors)

    def load(name: str) -> Tensor:
        read.append(name)
        return tensors[name]

    with pytest.raises(UserError, match="1 left over: surplus"):
        fill(on_meta(), WeightFile(file.path, file.entries, load), source="file")
    assert read == []


def test_all_that_does_not_fit_is_in_one_message() -> None:
    tensors = on_real()
    del tensors["0.bias"]
    tensors |= {"0.weight": torch.zeros(4, 5), "2.bias": torch.zeros(2, dtype=torch.int8)}
    tensors |= {f"surplus{number}": torch.zeros(1) for number in range(4)}
    with pytest.raises(UserError) as raised:
        fill(on_meta(), in_memory(tensors), source="'some file'")
    assert str(raised.value) == (
        "'some file' does not fit this architecture: 1 missing: 0.bias; 4 left over: surplus0, surplus1, surplus2, "
        "...; 1 of another shape: 0.weight is [4, 5], expected [4, 3]; 1 of another type: 2.bias is int8"
    )


def test_a_key_without_an_origin_is_missing() -> None:
    keymap = {key: Origin((key,)) for key in on_real() if key != "2.bias"}
    with pytest.raises(UserError, match=r"1 missing: 2\.bias; 1 left over: 2\.bias"):
        fill(on_meta(), in_memory(on_real()), keymap, source="file")


def test_published_tensors_are_the_inverse_of_reading() -> None:
    keymap = {"qkv": Origin(("q", "k", "v"), "from_conv"), "out": Origin(("o",), "transpose")}
    ours = {"qkv": torch.randn(6, 2, 1), "out": torch.randn(2, 5)}
    file = in_memory(dict(published_tensors(ours, keymap)))
    assert set(file.entries) == {"q", "k", "v", "o"}
    assert all(torch.equal(read_ours(file, keymap[key], tuple(ours[key].shape)), ours[key]) for key in ours)


def test_queries_come_before_keys_and_values_in_every_layout() -> None:
    ddpm = ddpm_keymap(UNetConfig(model_channels=32, channel_mult=(1, 1), num_res_blocks=1, attention_at=(2,)))
    expected = Origin(tuple(f"mid.attn_1.{part}.weight" for part in "qkv"), "from_conv")
    assert ddpm["middle_block.1.qkv.weight"] == expected
    text = hf_text_keymap(ClipTextConfig(width=64, heads=1, layers=1))
    start = "text_model.encoder.layers.0.self_attn."
    assert text["transformer.resblocks.0.attn.in_proj_bias"] == Origin(
        tuple(f"{start}{part}_proj.bias" for part in "qkv"), "concat"
    )


def test_the_way_up_is_counted_from_the_other_end_by_each_layout() -> None:
    config = UNetConfig(model_channels=32, channel_mult=(1, 1, 1), num_res_blocks=1, attention_at=())
    ddpm, diffusers = ddpm_keymap(config), diffusers_unet_keymap(config)
    key = "output_blocks.0.0.in_layers.0.weight"
    assert ddpm[key].names == ("up.2.block.0.norm1.weight",)
    assert diffusers[key].names == ("up_blocks.0.resnets.0.norm1.weight",)

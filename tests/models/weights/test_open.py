"""Every format gives the tensors that went in: names, shapes, dtypes and bits, one tensor at a time."""

from __future__ import annotations

import json
import os
import pickle
import struct
import warnings
from collections import OrderedDict, defaultdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from steerdiff import UserError
from steerdiff.models.weights import Entry, WeightFile, joined, open_weights

from .makers import SAVERS, Tree, archive, stream, tensor_pickle, torchscript

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.bool,
    torch.complex64,
]


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).tolist())


def assert_same(weights: WeightFile, expected: dict[str, Tensor], *, ordered: bool = True) -> None:
    assert set(weights.entries) == set(expected)
    assert not ordered or list(weights.entries) == list(expected)
    for name, tensor in expected.items():
        assert weights.entries[name] == Entry(tuple(tensor.shape), tensor.dtype), name
        loaded = weights.read(name)
        assert (loaded.shape, loaded.dtype) == (tensor.shape, tensor.dtype), name
        assert bits(loaded) == bits(tensor), name
        assert loaded.is_contiguous() and loaded.untyped_storage().nbytes() == weights.entries[name].bytes, name


def kinds() -> dict[str, Tensor]:
    """Tensors of every dtype and of every awkward shape."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (48,), generator=generator, dtype=torch.uint8)
    tensors = {
        f"d_{str(dtype).removeprefix('torch.')}": raw.clone().view(dtype) for dtype in DTYPES if dtype != torch.bool
    }
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    return {
        **tensors,
        "truth": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3.25),
        "empty": torch.empty(0),
        "empty_side": torch.empty(2, 0, 3, dtype=torch.int32),
        "transposed": base.permute(2, 0, 1),
        "strided": base[:, ::2, 1::3],
        "offset": base[1],
        "column": base[:, 1, 2],
        "expanded": torch.arange(6).reshape(1, 6)[:1].expand(1, 6),
        "channels_last": torch.arange(48.0).reshape(2, 2, 3, 4).to(memory_format=torch.channels_last),
    }


@pytest.mark.parametrize("form", SAVERS)
def test_each_format_returns_every_dtype_and_layout_bit_by_bit(tmp_path: Path, form: str) -> None:
    expected = kinds()
    if form == "safetensors":  # it refuses views of one memory
        expected = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in expected.items()}
    if form == "torchscript":  # it has no typed storages beyond the old ones
        expected = {name: tensor for name, tensor in expected.items() if "float8" not in name and "uint16" not in name}
    if form == "stream":  # nor had the old format
        expected = {name: tensor for name, tensor in expected.items() if "float8" not in name and "uint16" not in name}
    path = tmp_path / "weights"
    SAVERS[form](expected, path)
    assert_same(open_weights(path), expected, ordered=form != "safetensors")


@pytest.mark.parametrize("form", ["archive", "stream"])
def test_names_and_bits_are_those_of_torch_load(tmp_path: Path, form: str) -> None:
    torch.manual_seed(0)
    tree = Tree()
    tree.half()
    path = tmp_path / "w.ckpt"
    SAVERS[form](tree.state_dict(), path)
    assert_same(open_weights(str(path)), torch.load(path, weights_only=True))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nested_containers_are_flattened_with_dots(tmp_path: Path, protocol: int, old: bool) -> None:
    a, b, c, d = (torch.full((2,), float(i)) for i in range(4))
    nested = {
        "state_dict": OrderedDict([("model.in.weight", a), ("model.in.bias", torch.nn.Parameter(b))]),
        "epoch": 3,
        "lr": 0.5,
        "best": float("inf"),
        "ema": True,
        "name": "sd",
        "nothing": None,
        "huge": 2**70,
        "long text": "x" * 100_000,
        "steps": defaultdict(list, {5: c}),
        "optimizer": [{"betas": (0.9, 0.999)}, [d]],
        "set": {1, 2},
        "frozen": frozenset([b"bytes"]),
        "bytes": bytearray(b"abc"),
    }
    path = tmp_path / "w.pt"
    torch.save(nested, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not old)
    weights = open_weights(path)
    assert_same(
        weights,
        {"state_dict.model.in.weight": a, "state_dict.model.in.bias": b.data, "steps.5": c, "optimizer.1.0": d},
    )
    values = {"epoch": 3, "lr": 0.5, "best": float("inf"), "ema": True, "name": "sd"}
    assert weights.values == {**values, "optimizer.0.betas.0": 0.9, "optimizer.0.betas.1": 0.999}


def test_a_list_of_states_gets_its_positions_as_names(tmp_path: Path) -> None:
    torch.save([{"module.w": torch.ones(1)}, {"step": 1}, 7], tmp_path / "model.ckpt")
    weights = open_weights(tmp_path / "model.ckpt")
    assert list(weights.entries) == ["0.module.w"] and weights.values == {"1.step": 1, "2": 7}


@pytest.mark.parametrize("traced", [False, True])
def test_a_torchscript_archive_gives_its_parameters_and_buffers_only(tmp_path: Path, traced: bool) -> None:
    torch.manual_seed(0)
    path = tmp_path / "ViT-B-32.pt"
    torchscript(Tree(), path, torch.ones(1, 3) if traced else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = dict(torch.jit.load(path).state_dict())
    assert "blocks.0.mask" not in expected and len(expected) == 11
    assert_same(open_weights(path), {name: tensor.detach() for name, tensor in expected.items()})


def test_a_file_is_known_by_its_content_not_by_its_name(tmp_path: Path) -> None:
    for form, saver in SAVERS.items():
        for suffix in ("safetensors", "pt", "txt", "json"):
            saver({"a": torch.ones(2)}, tmp_path / f"{form}.{suffix}")
            assert list(open_weights(tmp_path / f"{form}.{suffix}").entries) == ["a"]


def test_a_safetensors_header_that_looks_like_a_pickle_is_still_safetensors(tmp_path: Path) -> None:
    names = {"a" * size: torch.ones(1) for size in (50, 80, 90)}
    for padding in range(0, 500, 4):
        save_file(names, tmp_path / "w", metadata={"note": "n" * padding})
        if (tmp_path / "w").read_bytes()[:2] == b"\x80\x02":
            break
    else:
        pytest.fail("no header had that length")
    weights = open_weights(tmp_path / "w")
    assert set(weights.entries) == set(names) and weights.metadata["note"] == "n" * padding


def test_archives_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(3)}, tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(open_weights(tmp_path / "w.pt"), {"a": torch.arange(3)})


def test_numbers_beyond_4_gb_are_found(tmp_path: Path) -> None:
    """The file has holes of 4.4 GB, which take no room on the disk; its directory needs 64 bits."""
    numbers = torch.arange(4.0)
    path = tmp_path / "big.pt"
    hole = 2_200_000_000
    entries = [("data/0", hole), ("data/1", hole), ("data/2", numbers.numpy().tobytes())]
    big_archive(path, [*entries, ("data.pkl", tensor_pickle((4,), (1,), key="2"))])
    assert path.stat().st_size > 2**32
    assert_same(open_weights(path), {"n0": numbers})


def big_archive(path: Path, entries: list[tuple[str, int | bytes]]) -> None:
    """Write a zip64 archive; an entry that is a number is a hole of that many bytes."""
    full, records = 2**32 - 1, b""
    with open(path, "wb") as file:
        for name, content in entries:
            entry, header = f"w/{name}".encode(), file.tell()
            size = content if isinstance(content, int) else len(content)
            file.write(struct.pack("<4s5H3L2H", b"PK\x03\x04", 45, 0, 0, 0, 0, 0, full, full, len(entry), 20) + entry)
            file.write(struct.pack("<2H2Q", 1, 16, size, size))
            file.seek(size, os.SEEK_CUR) if isinstance(content, int) else file.write(content)
            extra = struct.pack("<2H3Q", 1, 24, size, size, header)
            fixed = (b"PK\x01\x02", 45, 45, 0, 0, 0, 0, 0, full, full, len(entry), len(extra), 0, 0, 0, 0, full)
            records += struct.pack("<4s6H3L5H2L", *fixed) + entry + extra
        start, count = file.tell(), len(entries)
        file.write(records)
        end = (b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(records), start)
        file.write(struct.pack("<4sQ2H2L4Q", *end))
        file.write(struct.pack("<4sLQL", b"PK\x06\x07", 0, start + len(records), 1))
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(records), full, 0))


def test_the_oldest_streams_with_parts_of_storages_are_read(tmp_path: Path) -> None:
    text = b"X\x07\x00\x00\x00storage"
    part = b"(X\x01\x00\x00\x00pK\x02K\x03t"  # (key, start, numel)
    storage = b"(" + text + b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06" + part + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"K\x01K\x02\x85K\x01\x85tR"
    body = b"\x80\x02}X\x01\x00\x00\x00as."
    numbers = torch.arange(6.0)
    data = body.replace(b"as.", b"a" + tensor + b"s.")
    content = stream(data, ["0"], (6).to_bytes(8, "little") + numbers.numpy().tobytes())
    (tmp_path / "w.pth").write_bytes(content)
    assert_same(open_weights(tmp_path / "w.pth"), {"a": numbers[3:5]})


def test_an_ordered_dictionary_of_python_2_is_read(tmp_path: Path) -> None:
    inner = tensor_pickle((4,), (1,))[2:-1]
    body = b"\x80\x02ccollections\nOrderedDict\n(]]U\x05outera" + inner + b"aatR."
    path = archive(tmp_path / "w.pt", body, {"data/0": torch.arange(4.0).numpy().tobytes()})
    assert_same(open_weights(path), {"outer.n0": torch.arange(4.0)})


@given(
    st.lists(st.integers(0, 4), max_size=4).flatmap(
        lambda sides: st.tuples(
            st.just(sides), st.permutations(range(len(sides))), st.integers(0, 3), st.integers(1, 3)
        )
    ),
    st.booleans(),
)
def test_any_permuted_and_strided_view_comes_out_right(
    tmp_path_factory: pytest.TempPathFactory, view: tuple[list[int], list[int], int, int], old: bool
) -> None:
    sides, order, offset, step = view
    count = int(torch.Size(sides).numel()) * step + offset
    base = torch.arange(count, dtype=torch.int32)[offset::step] if count else torch.empty(0, dtype=torch.int32)
    tensor = base[: torch.Size(sides).numel()].reshape(sides).permute(order)
    path = tmp_path_factory.mktemp("views") / "w.pt"
    torch.save({"whole": base, "view": tensor}, path, _use_new_zipfile_serialization=not old)
    assert_same(open_weights(path), {"whole": base.contiguous(), "view": tensor})


def test_one_tensor_is_read_without_touching_the_others(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(1000), "b": torch.ones(5)}, path)
    data = bytearray(path.read_bytes())
    at = data.index(bytes(4000))
    data[at + 100] = 1
    path.write_bytes(data)
    weights = open_weights(path)
    assert torch.equal(weights.read("b"), torch.ones(5))
    with pytest.raises(UserError, match="checksum"):
        weights.read("a")


def test_files_joined_by_prefixes_read_as_one(tmp_path: Path) -> None:
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        save_file({"w": torch.full((2,), float(len(part)))}, tmp_path / part / "m.safetensors", metadata={part: "yes"})
    parts = {f"{part}.": open_weights(tmp_path / part / "m.safetensors") for part in ("unet", "vae")}
    whole = joined(parts)
    assert_same(whole, {"unet.w": torch.full((2,), 4.0), "vae.w": torch.full((2,), 3.0)})
    assert whole.path == tmp_path and whole.metadata == {"unet": "yes", "vae": "yes"}
    assert_same(whole.under("vae."), {"w": torch.full((2,), 3.0)})
    with pytest.raises(UserError, match="two tensors named a.w"):
        joined({"a.": parts["unet."], "a": whole.under("unet")})
    with pytest.raises(UserError, match="no files of weights to join"):
        joined({})
    with pytest.raises(UserError, match=r"has no tensor nothing"):
        whole.read("nothing")


@pytest.mark.parametrize("form", ["safetensors", "archive"])
def test_an_index_opens_its_shards_as_one_file(tmp_path: Path, form: str) -> None:
    places = {}
    for number in range(3):
        shard = f"part-{number}"
        SAVERS[form]({f"t{number}": torch.full((2,), float(number)), "spare": torch.ones(1)}, tmp_path / shard)
        places[f"t{number}"] = shard
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": places}))
    assert_same(open_weights(index), {f"t{number}": torch.full((2,), float(number)) for number in range(3)})


def test_a_pickle_of_no_torch_is_not_taken_for_weights(tmp_path: Path) -> None:
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"a": [1.0, 2.0]}))
    with pytest.raises(UserError, match="is a pickle that torch.save did not write"):
        open_weights(tmp_path / "w.pkl")

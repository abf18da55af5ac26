"""Each kind of bad file gives one error that names the file, what is wrong and what to do."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from steerdiff import UserError
from steerdiff.models.weights import open_weights, raw

from .makers import SAVERS, archive, pickled, safetensors_file, stream, tensor_pickle

FOUR = torch.arange(4.0).numpy().tobytes()


def fault(path: Path) -> str:
    """The one error of opening and reading a file."""
    with pytest.raises(UserError) as error:
        weights = open_weights(path)
        for name in weights.entries:
            weights.read(name)
    text = str(error.value)
    assert str(path) in text and "\n" not in text and len(text) < 500 + len(str(path))
    return text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; fetch or save it again"),
        (b"\0" * 4096, "filled with zeros, an interrupted download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer, not the weights; run"),
        (
            b"\n<!DOCTYPE html><html><title>Sign in</title>",
            "a web page saved in the place of weights; download it again",
        ),
        (b"<HTML><head>404</head>", "a web page saved in the place of weights"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error/>", "a web page saved in the place of weights"),
        (b'{"error": "Repository not found"}', "is JSON but no index of weights"),
        (b"[1, 2", "no file of weights; steerdiff reads safetensors, torch.save"),
        (b"\x1f\x8b\x08\0 gzip", "compressed; unpack it first"),
        (b"7z\xbc\xaf\x27\x1c", "compressed; unpack it first"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file; convert it"),
        (b"GGUF\x03\0\0\0", "a GGUF file, whose numbers are quantised"),
        (b"\x93NUMPY\x01\0", "a numpy array"),
        (b"x" * 257 + b"ustar", "a tar archive"),
        (b"PK\x05\x06" + bytes(18), "an empty zip archive"),
        (b"just a text", "no file of weights"),
    ],
)
def test_what_is_no_file_of_weights_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    assert message in fault(path)


def test_missing_files_folders_and_forbidden_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is not a file; check the path" in fault(tmp_path / "missing.pt")
    assert "is a folder; give a file of weights in it" in fault(tmp_path)
    (tmp_path / "secret.pt").write_bytes(b"PK\x03\x04")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(raw, "open", refuse, raising=False)
    assert "cannot be read (Permission denied); check who may read it" in fault(tmp_path / "secret.pt")


def test_a_file_cut_short_after_opening_says_so(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    weights = open_weights(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="ends early"):
        weights.read("a")


@pytest.mark.parametrize("form", SAVERS)
def test_a_file_without_tensors_says_so(tmp_path: Path, form: str) -> None:
    path = tmp_path / "w"
    SAVERS[form]({}, path)
    assert "holds no tensors; give a file of weights" in fault(path)


# zip archives


def test_a_zip_that_torch_did_not_write_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("folder/model.ckpt", b"x")
    assert "zip archive that PyTorch (1.6 or later) did not write; unpack it" in fault(path)


def test_compressed_entries_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    bomb = {"data/0": bytes(50_000_000)}
    packed = archive(tmp_path / "bomb.pt", tensor_pickle((12_500_000,), (1,)), bomb, method=zipfile.ZIP_DEFLATED)
    assert packed.stat().st_size < 100_000
    assert "is compressed (its entry w/data.pkl), which torch.save never does" in fault(packed)
    half = tmp_path / "half.pt"
    with zipfile.ZipFile(half, "w") as file:
        file.writestr("w/data.pkl", tensor_pickle((4000,), (1,), numel=4000), zipfile.ZIP_STORED)
        file.writestr("w/data/0", bytes(16_000), zipfile.ZIP_DEFLATED)
    assert "do not trust it" in fault(half) or "is compressed (its entry w/data/0)" in fault(half)


def test_claims_beyond_the_file_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "w.pt", tensor_pickle((4,), (1,)), {"data/0": FOUR})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    struct.pack_into("<2L", data, at + 20, 10**9, 10**9)
    path.write_bytes(data)
    assert "claims more bytes than it has (damaged, or a zip bomb)" in fault(path)


def test_entries_that_overlap_are_refused(tmp_path: Path) -> None:
    """Every record of the directory points at the same bytes: forty times the size of the file."""
    path = archive(tmp_path / "w.pt", tensor_pickle((4,), (1,)), {f"data/{i}": bytes(1000) for i in range(40)})
    data = bytearray(path.read_bytes())
    end = struct.unpack_from("<L", data, len(data) - 6)[0]
    local = data.index(b"w/data/0") - 30
    directory = data[end:]
    head, body = data[: local + 30 + 8 + 1000], b""
    position = 0
    while directory[position : position + 4] == b"PK\x01\x02":
        name = struct.unpack_from("<H", directory, position + 28)[0]
        record = bytearray(directory[position : position + 46 + name])
        if b"data/" in record:
            struct.pack_into("<L", record, 42, local)
        body += record
        position += 46 + name
    tail = bytearray(directory[position:])
    struct.pack_into("<2L", tail, 12, len(body), len(head))
    path.write_bytes(head + body + tail)
    assert path.stat().st_size < 5000
    assert "claims more bytes than it has" in fault(path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "the tensor n0 of .* has no numbers in the file"),
        ({"data/0": FOUR[:-4]}, "reaches beyond its numbers"),
        ({"data/0": FOUR, "byteorder": b"big"}, "is big-endian; load and save it again on the machine that wrote it"),
    ],
)
def test_storages_that_do_not_fit_are_refused(tmp_path: Path, entries: dict[str, bytes], message: str) -> None:
    path = archive(tmp_path / "w.pt", tensor_pickle((4,), (1,)), entries)
    with pytest.raises(UserError, match=message):
        open_weights(path)


def test_two_entries_of_one_name_and_encrypted_entries_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "w.pt", tensor_pickle((4,), (1,)), {"data/0": FOUR, "data/1": FOUR})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"w/data/1", b"w/data/0"))
    assert "has two entries w/data/0" in fault(path)
    at = whole.index(b"PK\x01\x02")
    path.write_bytes(whole[: at + 8] + b"\x01" + whole[at + 9 :])
    assert "damaged directory" in fault(path)


def test_a_flip_in_the_numbers_or_the_table_of_an_archive_is_noticed(tmp_path: Path) -> None:
    path = archive(tmp_path / "w.pt", tensor_pickle((4,), (1,)), {"data/0": FOUR})
    whole = path.read_bytes()
    for place in (whole.index(FOUR) + 9, whole.index(b"_rebuild") + 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert "is damaged (its checksum at byte" in fault(path)


# tensors


@pytest.mark.parametrize(
    ("shape", "stride", "options"),
    [
        ((5,), (1,), {}),
        ((4,), (1,), {"offset": 1}),
        ((2, 2), (3, 1), {}),
        ((2, 2), (2, 2**40), {}),
        ((2**40,), (0,), {}),
        ((2**40, 2**40), (0, 0), {}),
        ((0, 2**61, 2**61), (1, 1, 1), {}),
        ((4,), (-1,), {"offset": 3}),
        ((-4,), (1,), {}),
        ((4,), (1, 1), {}),
        ((4,), (1,), {"offset": -1}),
        ((4,), (1,), {"numel": 2**62}),
        ((2**200,), (0,), {}),
        ((1,) * 200, (1,) * 200, {}),
        ((4,), (1,), {"names": 500}),
    ],
)
def test_views_that_leave_their_storage_or_blow_it_up_are_refused(
    tmp_path: Path, shape: tuple[int, ...], stride: tuple[int, ...], options: dict[str, int]
) -> None:
    data = tensor_pickle(shape, stride, **options)
    entries = {"data/0": FOUR}
    if options.get("names"):  # 500 tensors of a million numbers, all the same ones
        data, entries = tensor_pickle((10**6,), (1,), numel=10**6, names=500), {"data/0": bytes(4 * 10**6)}
    assert "tensor" in fault(archive(tmp_path / "w.pt", data, entries))


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    torch.save({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, tmp_path / "w.pt")
    assert "has two tensors named a.b" in fault(tmp_path / "w.pt")


def test_conjugated_views_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2, dtype=torch.complex64).conj()}, tmp_path / "w.pt")
    assert "is a conjugated or negated view" in fault(tmp_path / "w.pt")


def test_a_stream_whose_parts_disagree_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    data = tensor_pickle((4,), (1,)).replace(b"cpu\x8a\x01\x04t", b"cpu\x8a\x01\x04Nt")
    path.write_bytes(stream(data, ["0"], struct.pack("<q", 4) + FOUR))
    assert torch.equal(open_weights(path).read("n0"), torch.arange(4.0))
    for keys, count, message in ((["0"], 3, "disagrees about the size"), (["1"], 4, "numbers that no tensor names")):
        path.write_bytes(stream(data, keys, struct.pack("<q", count) + FOUR))
        assert message in fault(path)
    path.write_bytes(stream(data, [], b""))
    assert "has no numbers in the file" in fault(path)


def test_a_big_endian_stream_is_refused(tmp_path: Path) -> None:
    content = stream(pickled(b"}")).replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89")
    (tmp_path / "w.pt").write_bytes(content)
    assert "is big-endian" in fault(tmp_path / "w.pt")


# safetensors


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 160]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [-4, 12]}},
        {"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F33", "shape": [4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
        {"a": {"dtype": "F32", "shape": [4]}},
        {"a": 3},
        {
            "a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
            "b": {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]},
        },
    ],
)
def test_safetensors_headers_that_lie_are_refused(tmp_path: Path, header: object) -> None:
    path = safetensors_file(tmp_path / "w.safetensors", json.dumps(header).encode(), FOUR)
    assert "is not a whole safetensors file" in fault(path)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**8, 5])
def test_safetensors_headers_of_a_wrong_length_are_refused(tmp_path: Path, length: int) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    path = safetensors_file(tmp_path / "w.safetensors", header, FOUR, length)
    assert "is not a whole safetensors file" in fault(path)


def test_a_safetensors_file_that_is_all_header_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"note": "x" * 20_000_000}}).encode()
    path = safetensors_file(tmp_path / "w.safetensors", header)
    assert "has a header of 20000" in fault(path) and "do not trust it" in fault(path)


def test_truth_values_other_than_0_and_1_become_proper_ones(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]}}).encode()
    path = safetensors_file(tmp_path / "w.safetensors", header, b"\x00\x02\xff")
    assert open_weights(path).read("a").view(torch.uint8).tolist() == [0, 1, 1]


def test_an_unknown_dtype_of_safetensors_is_named(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}).encode()
    text = fault(safetensors_file(tmp_path / "w.safetensors", header, bytes(3)))
    assert "stores a as F6_E2M3" in text or "is not a whole safetensors file" in text


# indices


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../secret"}}, "names files outside its folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "names files outside its folder"),
        ({"weight_map": {"a": "missing.safetensors"}}, "missing.safetensors is not a file"),
        ({"weight_map": {"a": "part", "b": "part"}}, "names .*b.*, which its file lacks"),
        ({"weight_map": {"a": 3}}, "no index of weights"),
        ({"weight_map": [1]}, "no index of weights"),
        ({"weight_map": {}}, "holds no tensors"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, index: object, message: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "part")
    (tmp_path / "w.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        open_weights(tmp_path / "w.index.json")


def test_an_index_that_names_itself_does_not_run_for_ever(tmp_path: Path) -> None:
    (tmp_path / "w.index.json").write_text(json.dumps({"weight_map": {"a": "w.index.json"}}))
    assert "w.index.json is no file of weights" in fault(tmp_path / "w.index.json")


def test_names_in_messages_have_no_control_characters(tmp_path: Path) -> None:
    path = archive(tmp_path / "w.pt", b"\x80\x02cos\n\x1b[31mred\n." + zlib.compress(b""), {})
    assert "\\x1b[31mred" in fault(path)

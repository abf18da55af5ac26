"""Thousands of damaged files: each gives one UserError or a whole result, quickly, and runs nothing."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from steerdiff import UserError
from steerdiff.models import read_header, read_safetensors, save_safetensors
from steerdiff.models.weights import open_weights

from .makers import Tree, archive, pickled, stream, torchscript

CASES = 500
OPCODES = (
    b"NK\x88\x89IMJG\x8a\x8bUTX\x8c\x8dCB\x8e\x96(012qr\x94hj)]}\x8ft\x85\x86\x87ldaesu\x90\x91cR\x81\x92iobQ\x80\x95."
)


def nested() -> dict[str, object]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3))
    extra = {
        "epoch": 3,
        "note": "text",
        "opt": [{"betas": (0.9, 0.99)}],
        "view": torch.arange(24.0).view(4, 6)[1:, ::2],
    }
    return {"state_dict": net.state_dict(), **extra, "half": torch.ones(3, dtype=torch.bfloat16)}


def samples(folder: Path) -> dict[str, bytes]:
    """One small file of each format."""
    torch.save(nested(), folder / "archive")
    torch.serialization.set_crc32_options(False)  # so that damage reaches the pickle
    try:
        torch.save(nested(), folder / "unchecked")
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save(nested(), folder / "stream", _use_new_zipfile_serialization=False)
    torchscript(Tree(), folder / "torchscript")
    save_safetensors(folder / "safetensors", Tree().state_dict(), {"kind": "test"})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def damaged(whole: bytes, seed: int) -> Iterator[bytes]:
    """Cut, flip, overwrite, remove or repeat bytes at places drawn from ``seed``, half of them near the beginning."""
    draw = random.Random(seed)
    for case in range(CASES):
        data = bytearray(whole)
        for _ in range(draw.choice((1, 1, 1, 2, 5))):
            at = draw.randrange(len(data)) if draw.random() < 0.5 else draw.randrange(min(len(data), 1500))
            kind = case % 6
            if kind == 0:
                del data[at:]
            elif kind == 1:
                data[at] ^= 1 << draw.randrange(8)
            elif kind == 2:
                data[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, *OPCODES))
            elif kind == 3:
                size = draw.choice((1, 2, 4, 8))
                data[at : at + size] = draw.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * size
            elif kind == 4:
                del data[at : at + draw.randrange(1, 40)]
            else:
                data[at:at] = data[at : at + draw.randrange(1, 40)]
            if not data:
                break
        yield bytes(data)


def write(path: Path, content: bytes) -> None:
    """Write a new file: to empty an old one may wait for the disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def survives(path: Path, content: bytes) -> bool:
    """Whether the file opens; True or False is right, anything but a UserError of this file is not."""
    write(path, content)
    start = time.process_time()
    try:
        weights = open_weights(path)
        for name, entry in weights.entries.items():
            tensor = weights.read(name)
            assert (tuple(tensor.shape), tensor.dtype) == (entry.shape, entry.dtype)
        return True
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return False
    finally:
        assert time.process_time() - start < 5


@pytest.mark.parametrize("form", ["archive", "unchecked", "stream", "torchscript", "safetensors"])
def test_damaged_files_of_each_format_end_in_one_error_or_a_whole_result(tmp_path: Path, form: str) -> None:
    (tmp_path / "whole").mkdir()
    whole = samples(tmp_path / "whole")[form]
    path = tmp_path / "w.pt"
    assert survives(path, whole)
    opened = sum(survives(path, data) for data in damaged(whole, seed=len(form)))
    assert 0 < opened < CASES * 0.8


def test_a_file_cut_at_any_byte_is_never_taken_for_whole(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    for form, whole in samples(tmp_path / "whole").items():
        cuts = [*range(400), *range(400, len(whole), 37), *range(len(whole) - 100, len(whole))]
        wrong = [cut for cut in cuts if survives(tmp_path / "w.pt", whole[:cut])]
        assert wrong == [], form


def test_random_programs_of_the_pickle_machine_end_in_an_error_or_nothing(tmp_path: Path) -> None:
    draw = random.Random(1)
    pieces = [bytes([code]) for code in OPCODES]
    pieces += [
        b"X\x01\x00\x00\x00a",
        b"K\x02",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ccollections\nOrderedDict\n",
        b"h\x00",
    ]
    pieces += [
        b"ctorch\nFloatStorage\n",
        b"c__torch__\nA\n",
        b"q\x00",
        b"X\x07\x00\x00\x00storage",
        b")R",
        b"](e",
        b"}(u",
    ]
    for case in range(CASES * 3):
        body = b"".join(draw.choices(pieces, k=draw.randrange(1, 60)))
        path = tmp_path / "w.pt"
        path.unlink(missing_ok=True)
        if case % 2:
            archive(path, pickled(body), {"constants.pkl": b"", "data/a": b"1234"})
        else:
            path.write_bytes(stream(pickled(body)))
        survives(path, path.read_bytes())


def test_damaged_files_of_our_own_format_end_in_one_error_or_a_whole_result(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_safetensors(path, {"a": torch.ones(2, 3), "b": torch.arange(3)}, {"kind": "test", "unet": {"x": [1, 2]}})
    for data in damaged(path.read_bytes(), seed=7):
        write(path, data)
        for reader in (read_header, read_safetensors):
            try:
                reader(path)
            except UserError as error:
                assert str(path) in str(error)


def test_damaged_indices_end_in_one_error_or_a_whole_result(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "part-1.safetensors", {"a": torch.ones(1)}, {})
    index = json.dumps({"metadata": {"total_size": 4}, "weight_map": {"a": "part-1.safetensors"}}).encode()
    path = tmp_path / "w.index.json"
    for data in damaged(index, seed=8):
        write(path, data)
        try:
            open_weights(path)
        except UserError as error:
            assert str(tmp_path) in str(error)

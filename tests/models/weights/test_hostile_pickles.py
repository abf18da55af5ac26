"""Pickles that carry code or ask for the moon: nothing runs, memory stays near the file's size, time stays short."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steerdiff import UserError
from steerdiff.models.weights import open_weights

from .makers import archive, pickled, stream

APART = Path(__file__).with_name("apart.py")
LARGE = 1_000_000


class Runs:
    """An object whose pickle calls something when it is loaded."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def saved(path: Path, data: object, form: str, protocol: int = 2) -> Path:
    torch.save(data, path, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "archive")
    return path


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", ["archive", "stream"])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (os.mkdir, "posix.mkdir"),
        (os.makedirs, "os.makedirs"),
        (eval, "[_a-z]*.eval"),
        (exec, "[_a-z]*.exec"),
        (getattr, "[_a-z]*.getattr"),
        (open, "_?io.open"),
        (subprocess.Popen, "(subprocess|commands).Popen"),
        (pickle.loads, "_?pickle.loads"),
    ],
)
def test_a_pickle_with_code_is_refused_by_name_and_never_run(
    tmp_path: Path, form: str, protocol: int, function: Any, name: str
) -> None:
    canary = tmp_path / "canary"
    code = {os.system: f"touch {canary}", eval: f"open({str(canary)!r}, 'w')", exec: f"open({str(canary)!r}, 'w')"}
    arguments = [code.get(function, str(canary)), *(["w"] if function is open else [])]
    path = saved(tmp_path / "w.pt", {"a": torch.ones(1), "evil": Runs(function, *arguments)}, form, protocol)
    with pytest.raises(UserError, match=rf"w.pt holds code \({name}\); it was not run; do not trust this file"):
        open_weights(path)
    assert not canary.exists()


@pytest.mark.parametrize("form", ["archive", "stream"])
def test_other_classes_and_calls_become_inert_and_the_tensors_are_read(tmp_path: Path, form: str) -> None:
    canary = tmp_path / "canary"
    data = {
        "state_dict": {"w": torch.ones(2)},
        "touch": Runs(torch.save, 1, str(canary)),
        "save": Runs(np.save, str(canary), 1),
        "namespace": argparse.Namespace(a=1, b=torch.ones(3)),
        "count": Counter("abc"),
        "optimizer": torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1.0),
        "array": np.arange(5),
        "scalar": np.float64(3),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "generator": torch.get_rng_state(),
    }
    loaded = set(sys.modules)
    weights = open_weights(saved(tmp_path / "w.pt", data, form))
    assert list(weights.entries) == ["state_dict.w", "generator"]
    assert weights.values == {"size.0": 1, "size.1": 2}
    assert torch.equal(weights.read("state_dict.w"), torch.ones(2))
    assert not canary.exists() and set(sys.modules) == loaded


def test_a_class_that_is_not_installed_is_no_obstacle(tmp_path: Path) -> None:
    body = (
        b"}(X\x01\x00\x00\x00acpytorch_lightning.callbacks\nModelCheckpoint\n)\x81}X\x01\x00\x00\x00bK\x01sbX\x01\x00"
    )
    path = archive(tmp_path / "w.pt", pickled(body + b"\x00\x00cK\x07u"))
    with pytest.raises(UserError, match="holds no tensors"):
        open_weights(path)
    assert "pytorch_lightning" not in sys.modules


@pytest.mark.parametrize(
    "code", [b"cos\nsystem\n", b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93", b"(ios\nsystem\n"]
)
def test_every_way_to_name_a_global_is_watched(tmp_path: Path, code: bytes) -> None:
    with pytest.raises(UserError, match=r"holds code \(os.system\)"):
        open_weights(archive(tmp_path / "w.pt", pickled(code + b"X\x01\x00\x00\x00a\x85R")))


def bombs() -> dict[str, bytes]:
    """Bodies of pickles that would cost a careless reader its memory, its stack or its day."""
    colliding = b"".join(b"\x8a\x0c" + (i * (2**61 - 1)).to_bytes(12, "little") + b"N" for i in range(30_000))
    return {
        "memo index": b"Nr\xff\xff\xff\xff",
        "memo indices": b"N" + b"".join(b"r" + struct.pack("<I", 2**32 - 1 - i) for i in range(100_000)),
        "memo of everything": b"N" + b"\x94" * LARGE,
        "text length": b"X\xff\xff\xff\xffabc",
        "text length 8": b"\x8d" + b"\xff" * 7 + b"\x7fabc",
        "bytes length": b"B\xff\xff\xff\xffabc",
        "bytes length 8": b"\x8e" + b"\xff" * 8,
        "bytearray length": b"\x96" + b"\xff" * 7 + b"\x0f",
        "negative length": b"T\xff\xff\xff\xffabc",
        "long length": b"\x8b\xff\xff\xff\x7f1",
        "long negative": b"\x8b\xff\xff\xff\xff1",
        "frame length": b"\x95" + b"\xff" * 8 + b"N",
        "digits": b"I" + b"9" * LARGE + b"\n",
        "long number": b"\x8b" + struct.pack("<i", LARGE) + b"\x7f" * LARGE,
        "no line end": b"c" + b"a" * LARGE,
        "lists": b"]" * LARGE,
        "dictionaries": b"}" * LARGE,
        "sets": b"\x8f" * LARGE,
        "marks": b"(" * LARGE,
        "nones": b"N" * LARGE,
        "numbers": b"K\xff" * (LARGE // 2),
        "tuples": b"NN" + b"\x86N" * (LARGE // 2),
        "doubling tuples": b"N" + b"2\x86" * (LARGE // 2),
        "doubling lists": b"]" + b"2]22aa" * 10,
        "deep lists": b"]" * 50_000 + b"a" * 49_999,
        "deep tuples": b"N" + b"\x85" * 30_000,
        "deep states": b"c__torch__\nA\n)\x81" * 20_000 + b"b" * 19_999,
        "laughs": b"]"
        + b"]q\x00"
        + b"".join(b"](" + b"h%c" % i + b"h%c" % i * 9 + b"eq%c" % (i + 1) for i in range(60)),
        "laughing tuples": b")" + b"2\x86" * 40,
        "itself": b"]q\x00h\x00a",
        "itself by dictionary": b"}q\x00X\x01\x00\x00\x00ah\x00s",
        "colliding keys": b"}(" + colliding + b"u",
        "long names": b"}" + (b"X\xff\x03\x00\x00" + b"n" * 1023 + b"}") * 70 + b"s" * 70,
        "many ordered": b"]q\x00("
        + b"NN\x86" * 20_000
        + b"e0"
        + b"ccollections\nOrderedDict\nq\x01"
        + b"h\x01h\x00\x85R0" * 50_000,
        "extension": b"\x82\x01",
        "extension 4": b"\x84\xff\xff\xff\x7f",
        "out of band": b"\x97",
        "unknown": b"\xff",
        "protocol 0": b"S'a'\n",
        "empty stack": b"",
        "pops": b"0" * 100,
        "marks popped": b"(0000",
        "call of nothing": b"NNR",
        "call of little": b"ctorch._utils\n_rebuild_tensor_v2\n)R",
        "call with a text": b"ctorch._utils\n_rebuild_tensor_v2\nX\x01\x00\x00\x00aR",
        "size of itself": b"ctorch\nSize\nctorch\nSize\n\x85R",
        "identifier": b"NQ",
        "identifier of texts": b"(X\x07\x00\x00\x00storageNNNNtQ",
        "no global": b"NN\x93",
    }


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory as Linux tells it")
def test_no_bomb_takes_more_memory_than_the_file_or_long_or_anything_but_one_error(tmp_path: Path) -> None:
    files = []
    for name, body in bombs().items():
        files.append(archive(tmp_path / f"{name}.zip.pt", pickled(body)))
        if len(body) < 10_000:
            files.append(tmp_path / f"{name}.old.pt")
            files[-1].write_bytes(stream(pickled(body)))
    many = {f"data/{i}": b"" for i in range(30_000)}
    files.append(archive(tmp_path / "directory.pt", pickled(b"}"), many))
    run = subprocess.run(
        [sys.executable, str(APART), "open", "300", *map(str, files)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    report = json.loads(run.stdout)
    assert list(report["result"]) == [path.name for path in files]
    for name, (text, seconds) in report["result"].items():
        assert text.startswith("UserError") and seconds < 10, (name, text, seconds)
    assert report["growth"] <= max(path.stat().st_size for path in files) + 16 * 2**20


def test_long_texts_are_passed_over_without_being_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"a": torch.ones(1), "licence": "x" * 20_000_000}, "archive")
    tracemalloc.start()
    try:
        weights = open_weights(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert list(weights.entries) == ["a"] and peak < 2**20

"""The weights format: round trips, and one clear error for each kind of bad file."""

import json

import pytest
import torch
from safetensors.torch import save_file

from steerdiff.errors import UserError
from steerdiff.models import load_into, read_header, read_safetensors, save_safetensors

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1.0, 2.0])}


def test_saving_then_loading_is_the_identity(tmp_path):
    path = tmp_path / "w.safetensors"
    save_safetensors(path, {**TENSORS, "half": torch.ones(3, dtype=torch.bfloat16)}, {"kind": "test", "size": 64})
    tensors = read_safetensors(path)
    assert tensors["half"].dtype == torch.bfloat16
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    assert read_header(path) == {"format": 1, "kind": "test", "size": 64}
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]
    assert path.stat().st_mode & 0o044 == 0o044  # others can read it


def test_a_failed_save_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "w.safetensors"
    save_safetensors(path, TENSORS, {"n": 1})
    shared = torch.ones(4)
    with pytest.raises(Exception, match="share memory"):
        save_safetensors(path, {"a": shared, "b": shared}, {"n": 2})
    assert read_header(path)["n"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("reader", [read_header, read_safetensors])
def test_truncated_empty_foreign_and_missing_files_are_named(tmp_path, reader):
    whole = tmp_path / "whole.safetensors"
    save_safetensors(whole, TENSORS, {})
    data = whole.read_bytes()
    for name, content in {"cut": data[:-5], "empty": b"", "noise": b"\x93NUMPY" * 50, "long": data[:4]}.items():
        bad = tmp_path / name
        bad.write_bytes(content)
        with pytest.raises(UserError, match=f"{name} is not a whole safetensors file"):
            reader(bad)
    with pytest.raises(UserError, match="is not a file"):
        reader(tmp_path / "missing")


def test_files_of_other_programs_and_other_formats_are_named(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(TENSORS, path)
    with pytest.raises(UserError, match="holds no steerdiff header"):
        read_header(path)
    save_file(TENSORS, path, metadata={"steerdiff": json.dumps({"format": 99})})
    with pytest.raises(UserError, match="has format 99"):
        read_header(path)
    save_file(TENSORS, path, metadata={"steerdiff": "{"})
    with pytest.raises(UserError, match="damaged steerdiff header"):
        read_header(path)


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        save_safetensors(tmp_path / "no" / "w.safetensors", TENSORS, {})


def test_weights_of_another_architecture_say_what_does_not_fit():
    layer = torch.nn.Linear(3, 2)
    load_into(layer, TENSORS, "file")
    assert torch.equal(layer.weight, TENSORS["weight"])
    with pytest.raises(UserError, match="file does not fit this architecture: 1 missing: bias; 1 left over: scale"):
        load_into(layer, {"weight": TENSORS["weight"], "scale": torch.ones(1)}, "file")
    with pytest.raises(UserError, match=r"1 of another shape: bias is \[3\], expected \[2\]"):
        load_into(layer, {"weight": TENSORS["weight"], "bias": torch.ones(3)}, "file")

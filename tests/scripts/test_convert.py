"""The command that stores published models in another way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from steerdiff.models.published import open_published, published_model

from ..published_files import folder_model, tiny_adm, tiny_sd, write_adm, write_folder, write_single_file
from .conftest import Done

Run = Callable[..., Done]
FLAGS = (
    "--image_size 32 --num_channels 32 --channel_mult 1,2 --num_res_blocks 1 --num_head_channels 16 "
    "--attention_resolutions 16 --learn_sigma True --resblock_updown True"
)


def test_a_single_file_becomes_a_folder_and_a_file_again(steerdiff: Run, tmp_path: Path) -> None:
    tensors = write_single_file(tmp_path / "model.ckpt", tiny_sd(), pickle=True)
    done = steerdiff("convert", tmp_path / "model.ckpt", tmp_path / "folder", "--to", "folder")
    assert done.code == 0, done.err
    assert "unet, autoencoder, text (folder)" in done.out
    done = steerdiff("convert", tmp_path / "folder", tmp_path / "back.safetensors", "--to", "single-file")
    assert done.code == 0, done.err
    back = open_published(tmp_path / "back.safetensors")
    assert all(torch.equal(back.read(name), tensors[name]) for name in back.entries)
    assert sum(name.startswith("model.diffusion_model.") for name in back.entries) > 100


def test_what_is_left_out_is_said(steerdiff: Run, tmp_path: Path) -> None:
    model = tiny_sd(2, inputs="inpainting")
    write_single_file(tmp_path / "model.safetensors", model)
    done = steerdiff("convert", tmp_path / "model.safetensors", tmp_path / "folder", "--to", "folder")
    assert done.code == 0, done.err
    assert "warning: a folder has no place for text block 2" in done.err
    stored = published_model(None, open_published(tmp_path / "folder"))
    assert stored.text == folder_model(model).text


def test_flags_of_the_source_are_taken_as_one_text(steerdiff: Run, tmp_path: Path) -> None:
    write_adm(tmp_path / "model.pt", tiny_adm())
    arguments = ("convert", tmp_path / "model.pt", tmp_path / "own.safetensors")
    done = steerdiff(*arguments)
    assert done.code == 2 and "attention heads" in done.err
    done = steerdiff(*arguments, "--weights-config", FLAGS)
    assert done.code == 0, done.err
    assert published_model(None, open_published(tmp_path / "own.safetensors")) == tiny_adm()


def test_nothing_is_replaced_without_force(steerdiff: Run, tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", tiny_sd())
    target = tmp_path / "target"
    target.write_text("mine")
    done = steerdiff("convert", tmp_path / "folder", target)
    assert done.code == 2 and "exists already" in done.err and target.read_text() == "mine"
    done = steerdiff("convert", tmp_path / "folder", target, "--force", "--dtype", "float16")
    assert done.code == 0, done.err
    assert {entry.dtype for entry in open_published(target).entries.values()} == {torch.float16}


@pytest.mark.parametrize("form", ["single-file", "steerdiff"])
def test_a_folder_is_not_replaced_by_a_file(steerdiff: Run, tmp_path: Path, form: str) -> None:
    write_folder(tmp_path / "folder", tiny_sd())
    (tmp_path / "other").mkdir()
    done = steerdiff("convert", tmp_path / "folder", tmp_path / "other", "--to", form, "--force")
    assert done.code == 2 and "is a folder" in done.err

"""Storing published models in another way, and back."""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.models.checkpoint import read_header
from steerdiff.models.published import PublishedModel, open_published, published_model
from steerdiff.models.published.convert import Target, convert
from steerdiff.models.weights import Entry, Group, write_safetensors

from ...published_files import (
    folder_model,
    tiny_adm,
    tiny_classifier,
    tiny_ddpm,
    tiny_ldm,
    tiny_sd,
    tiny_upsampler,
    write_adm,
    write_ddpm,
    write_folder,
    write_single_file,
)

SINGLE, FOLDER = Target(to="single-file"), Target(to="folder")


def tensors(path: Path) -> dict[str, Tensor]:
    file = open_published(path)
    return {name: file.read(name) for name in file.entries}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


def networks(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """A single file without its tables and what else belongs to no network."""
    prefixes = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
    extra = ("first_stage_model.loss.", "cond_stage_model.model.logit_scale")
    return {
        name: value
        for name, value in values.items()
        if name.startswith(prefixes) and not name.startswith(extra) and not name.endswith("position_ids")
    }


@pytest.fixture
def without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.usefixtures("without_warnings")
def test_stable_diffusion_1_comes_back_from_a_folder_as_it_was(tmp_path: Path, dtype: torch.dtype) -> None:
    published = write_single_file(tmp_path / "a.ckpt", tiny_sd(), pickle=True, dtype=dtype)
    convert(tmp_path / "a.ckpt", tmp_path / "b", FOLDER)
    convert(tmp_path / "b", tmp_path / "c.safetensors", SINGLE)
    assert_equal(tensors(tmp_path / "c.safetensors"), networks(published))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.filterwarnings("ignore:the folder holds no text block")
def test_a_folder_comes_back_from_a_single_file_as_it_was(tmp_path: Path, version: Any) -> None:
    published = write_folder(tmp_path / "a", tiny_sd(version, predicts_v=version == 2))
    convert(tmp_path / "a", tmp_path / "b.safetensors", SINGLE)
    convert(tmp_path / "b.safetensors", tmp_path / "c", FOLDER)
    assert_equal(tensors(tmp_path / "c"), published)
    before, after = published_model(tmp_path / "a"), published_model(tmp_path / "c")
    assert {**after.to_dict(), "image_size": 32} == before.to_dict()  # a single file does not say the size


@pytest.mark.usefixtures("without_warnings")
def test_old_names_of_attention_become_the_new_ones(tmp_path: Path) -> None:
    write_folder(tmp_path / "old", tiny_sd(), old_names=True)
    published = write_folder(tmp_path / "new", tiny_sd())
    convert(tmp_path / "old", tmp_path / "c", FOLDER)
    assert_equal(tensors(tmp_path / "c"), published)


def test_a_folder_of_stable_diffusion_2_loses_what_is_never_read_and_says_so(tmp_path: Path) -> None:
    model = tiny_sd(2)
    published = networks(write_single_file(tmp_path / "a.safetensors", model))
    with pytest.warns(UserWarning, match=r"no place for text block 2, which is never read, and the text projection"):
        stored = convert(tmp_path / "a.safetensors", tmp_path / "b", FOLDER, config=model)
    assert stored == folder_model(model)
    with pytest.warns(UserWarning, match="so the single file has none"):
        convert(tmp_path / "b", tmp_path / "c.safetensors", SINGLE)
    back = tensors(tmp_path / "c.safetensors")
    lost = set(published) - set(back)
    start = "cond_stage_model.model."
    assert lost and all(
        name.startswith((f"{start}transformer.resblocks.2.", f"{start}text_projection")) for name in lost
    )
    assert_equal(back, {name: published[name] for name in back})
    read = published_model(None, open_published(tmp_path / "c.safetensors")).text
    assert getattr(read, "layers", None) == 2 and getattr(read, "reads", None) == "last"


MODELS: dict[str, tuple[PublishedModel, Any]] = {
    "sd1": (tiny_sd(), write_single_file),
    "sd2": (tiny_sd(2, predicts_v=True), write_single_file),
    "inpainting": (tiny_sd(inputs="inpainting"), write_single_file),
    "ldm-vq": (tiny_ldm("vq", "class"), write_single_file),
    "ldm-kl": (tiny_ldm("kl", "bert"), write_single_file),
    "adm": (tiny_adm(class_cond=True), write_adm),
    "upsampler": (tiny_upsampler(), write_adm),
    "classifier": (tiny_classifier(), write_adm),
    "ddpm": (tiny_ddpm(), write_ddpm),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("without_warnings")
def test_every_model_comes_back_from_our_own_format_as_it_was(tmp_path: Path, name: str) -> None:
    model, write = MODELS[name]
    published = write(tmp_path / "a", model)
    convert(tmp_path / "a", tmp_path / "own.safetensors", config=model)
    assert published_model(None, open_published(tmp_path / "own.safetensors")) == model
    header = read_header(tmp_path / "own.safetensors")
    assert header["kind"] == "published" and PublishedModel.from_dict(header["model"]) == model
    convert(tmp_path / "own.safetensors", tmp_path / "back.safetensors", SINGLE)
    assert_equal(tensors(tmp_path / "back.safetensors"), networks(published) if model.family == "latent" else published)
    assert_equal(load_file(tmp_path / "own.safetensors"), tensors(tmp_path / "own.safetensors"))


def test_our_own_format_takes_no_config(tmp_path: Path) -> None:
    write_adm(tmp_path / "a", tiny_adm())
    convert(tmp_path / "a", tmp_path / "own", config=tiny_adm())
    with pytest.raises(UserError, match="holds its own configuration; leave config out"):
        convert(tmp_path / "own", tmp_path / "b", config=tiny_adm())


def test_a_scale_that_is_not_the_usual_one_goes_along(tmp_path: Path) -> None:
    import dataclasses

    model = tiny_ldm("kl")
    assert model.autoencoder is not None
    scaled = dataclasses.replace(model, autoencoder=dataclasses.replace(model.autoencoder, scale_factor=0.25))
    write_single_file(tmp_path / "a", scaled)
    convert(tmp_path / "a", tmp_path / "b", SINGLE, config=scaled)
    assert published_model(model, open_published(tmp_path / "b")) == scaled


def test_averaged_weights_are_taken_when_asked_for(tmp_path: Path) -> None:
    write_single_file(tmp_path / "a", tiny_sd(), ema=True)
    other = networks(write_single_file(tmp_path / "b", tiny_sd(), seed=1))
    with pytest.warns(UserWarning, match="the averaged ones are kept"):
        convert(tmp_path / "a", tmp_path / "c", SINGLE, ema=True)
    kept = tensors(tmp_path / "c")
    unet = [name for name in kept if name.startswith("model.")]
    assert unet and all(torch.equal(kept[name], other[name]) for name in unet)
    with pytest.warns(UserWarning, match="the plain, not the averaged, ones are kept"):
        convert(tmp_path / "a", tmp_path / "d", SINGLE)


def test_the_type_of_numbers_can_be_changed(tmp_path: Path) -> None:
    published = write_adm(tmp_path / "a", tiny_adm())
    convert(tmp_path / "a", tmp_path / "b", Target(to="single-file", dtype=torch.bfloat16), config=tiny_adm())
    assert_equal(tensors(tmp_path / "b"), {name: value.bfloat16() for name, value in published.items()})


def test_a_single_file_says_what_is_predicted(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", tiny_sd(2, predicts_v=True))
    with pytest.warns(UserWarning):
        convert(tmp_path / "a", tmp_path / "b", SINGLE)
    assert published_model(None, open_published(tmp_path / "b")).parameterization == "v"


def test_a_written_folder_has_the_files_of_a_published_one(tmp_path: Path) -> None:
    write_single_file(tmp_path / "a", tiny_sd())
    convert(tmp_path / "a", tmp_path / "b", FOLDER)
    index = json.loads((tmp_path / "b" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline" and index["unet"] == ["diffusers", "UNet2DConditionModel"]
    vocabulary = json.loads((tmp_path / "b" / "tokenizer" / "vocab.json").read_text())
    assert len(vocabulary) == 49408 and set(vocabulary.values()) == set(range(49408))
    ends = {"!": 0, "a</w>": 320, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    assert {token: vocabulary[token] for token in ends} == ends
    merges = (tmp_path / "b" / "tokenizer" / "merges.txt").read_text().splitlines()
    assert len(merges) == 1 + 49408 - 2 - 512 and merges[:2] == ["#version: 0.2", "i n"]
    scheduler = json.loads((tmp_path / "b" / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["beta_start"], scheduler["steps_offset"], scheduler["set_alpha_to_one"]) == (0.00085, 1, False)


@pytest.mark.parametrize("model", [tiny_adm(), tiny_ldm("vq", "class"), tiny_ldm("kl"), tiny_ldm("kl", "bert")])
def test_only_stable_diffusion_has_a_folder(tmp_path: Path, model: PublishedModel) -> None:
    (write_adm if model.family == "adm" else write_single_file)(tmp_path / "a", model)
    with pytest.raises(UserError, match="the folder layout holds Stable Diffusion's networks only"):
        convert(tmp_path / "a", tmp_path / "b", FOLDER, config=model)
    assert not (tmp_path / "b").exists()


def test_what_is_there_is_replaced_only_when_allowed(tmp_path: Path) -> None:
    write_single_file(tmp_path / "a", tiny_sd())
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("")
    with pytest.raises(UserError, match="exists already"):
        convert(tmp_path / "a", tmp_path / "b", FOLDER)
    assert (tmp_path / "b" / "mine").exists()
    convert(tmp_path / "a", tmp_path / "b", Target(to="folder", overwrites=True))
    assert not (tmp_path / "b" / "mine").exists() and (tmp_path / "b" / "unet").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_misfit_is_found_before_anything_is_written(tmp_path: Path) -> None:
    published = write_adm(tmp_path / "a", tiny_adm())
    del published["out.2.bias"]
    torch.save(published, tmp_path / "a")
    with pytest.raises(UserError, match=r"1 missing: out\.2\.bias"):
        convert(tmp_path / "a", tmp_path / "b", config=tiny_adm())
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("target", [SINGLE, FOLDER])
def test_a_full_disk_is_explained_and_leaves_the_old(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_single_file(tmp_path / "a", tiny_sd())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        convert(tmp_path / "a", tmp_path / "b", target)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_missing_is_explained(tmp_path: Path) -> None:
    write_single_file(tmp_path / "a", tiny_sd())
    for target in (SINGLE, FOLDER):
        with pytest.raises(UserError, match="check that its folder exists and has space"):
            convert(tmp_path / "a", tmp_path / "missing" / "b", target)


def group(name: str, *values: Tensor) -> Group:
    entries = {f"{name}{i}": Entry(tuple(value.shape), value.dtype) for i, value in enumerate(values)}
    return Group(entries, lambda: values)


def test_written_files_are_safetensors_with_every_type(tmp_path: Path) -> None:
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool)
    values = [torch.arange(6).reshape(2, 3).to(kind) for kind in types]
    values += [torch.tensor(2.5), torch.zeros(0, 3), torch.arange(6.0).reshape(2, 3).T]
    write_safetensors(tmp_path / "f", [group("x", *values[:3]), group("y", *values[3:])], {"a": "b"})
    read = load_file(tmp_path / "f")
    expected = [*(f"x{i}" for i in range(3)), *(f"y{i}" for i in range(len(values) - 3))]
    assert_equal({name: read[name] for name in expected}, dict(zip(expected, values, strict=True)))
    assert open_published(tmp_path / "f").metadata["a"] == "b"
    assert int.from_bytes((tmp_path / "f").read_bytes()[:8], "little") % 8 == 0  # numbers begin at a multiple of 8


def test_tensors_are_made_when_it_is_their_turn(tmp_path: Path) -> None:
    made: list[str] = []

    def make(name: str) -> list[Tensor]:
        if name == "b":
            raise KeyboardInterrupt
        made.append(name)
        return [torch.zeros(2)]

    groups = [Group({name: Entry((2,), torch.float32)}, lambda name=name: make(name)) for name in "abc"]  # type: ignore[misc]
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(tmp_path / "f", groups)
    assert made == ["a"] and list(tmp_path.iterdir()) == []


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two tensors named x0"):
        write_safetensors(tmp_path / "f", [group("x", torch.zeros(1)), group("x", torch.zeros(1))])

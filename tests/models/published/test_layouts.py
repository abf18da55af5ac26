"""Telling what a file is, and putting its parts together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from steerdiff.errors import UserError
from steerdiff.models.published import PublishedModel, open_published, parts, published_model, recognise
from steerdiff.models.weights import fill

from ...published_files import (
    folder_model,
    random_weights,
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
from .key_lists import without_numbers


def load(path: Path, config: Any = None, *, ema: bool = False) -> tuple[PublishedModel, dict[str, nn.Module]]:
    file = open_published(path)
    layout = recognise(file)
    model = published_model(config, file, layout)
    loaded = parts(model, file, layout, ema=ema)
    for module, keymap, view in loaded.values():
        fill(module, view, keymap, source=str(path))
    return model, {name: module for name, (module, _, _) in loaded.items()}


def assert_weights(networks: dict[str, nn.Module], model: PublishedModel, seed: int = 0) -> None:
    for name, module in networks.items():
        expected = random_weights(model, name, seed)
        own = module.state_dict()
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[key], expected[key]) for key in own)


@pytest.mark.parametrize("pickle", [False, True])
@pytest.mark.parametrize(
    ("model", "config"),
    [
        (tiny_sd(1), False),
        (tiny_sd(1, inputs="inpainting"), False),
        (tiny_sd(2, inputs="depth"), False),
        (tiny_sd(2, predicts_v=True), True),
        (tiny_ldm("kl", "bert"), True),
        (tiny_ldm("vq", "class"), True),
        (tiny_ldm("vq"), True),
    ],
    ids=["sd1", "sd1-inpainting", "sd2-depth", "sd2-v", "ldm-bert", "ldm-class", "ldm-vq"],
)
def test_a_single_file_gives_all_parts(tmp_path: Path, model: PublishedModel, config: bool, pickle: bool) -> None:
    write_single_file(tmp_path / "file", model, pickle=pickle, ema=pickle)
    read, networks = load(tmp_path / "file", model if config else None)
    assert {**read.to_dict(), "image_size": 32} == model.to_dict()
    assert set(networks) == {"unet", "autoencoder"} | ({"text"} if model.text is not None else set())
    assert_weights(networks, model)


def test_averaged_weights_are_read_when_asked_for(tmp_path: Path) -> None:
    model = tiny_sd()
    write_single_file(tmp_path / "file", model, pickle=True, ema=True)
    networks = load(tmp_path / "file", ema=True)[1]
    assert_weights({"unet": networks["unet"]}, model, seed=1)
    assert_weights({"autoencoder": networks["autoencoder"], "text": networks["text"]}, model)


def test_averaged_weights_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    write_single_file(tmp_path / "file", tiny_ldm())
    with pytest.raises(UserError, match="holds no averaged weights"):
        load(tmp_path / "file", tiny_ldm(), ema=True)


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_a_folder_gives_all_parts_and_its_own_configuration(tmp_path: Path, version: Any, old_names: bool) -> None:
    model = tiny_sd(version, predicts_v=version == 2)
    write_folder(tmp_path / "folder", model, old_names=old_names)
    read, networks = load(tmp_path / "folder")
    assert read == folder_model(model)
    assert_weights(networks, read)


def test_a_preset_of_the_whole_model_fits_a_folder_without_the_last_block(tmp_path: Path) -> None:
    model = tiny_sd(2)
    write_folder(tmp_path / "folder", model)
    assert load(tmp_path / "folder", model)[0] == folder_model(model)


@pytest.mark.filterwarnings("ignore:.*holds no")
def test_one_part_of_a_folder_is_read_alone(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", tiny_sd())
    model, networks = load(tmp_path / "folder" / "unet")
    assert set(networks) == {"unet"} and model.autoencoder is None
    assert_weights(networks, model)
    assert set(load(tmp_path / "folder" / "vae" / "diffusion_pytorch_model.safetensors")[1]) == {"autoencoder"}


def test_text_encoders_may_lack_their_prefix(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_folder(tmp_path / "folder", tiny_sd())
    path = tmp_path / "folder" / "text_encoder" / "model.safetensors"
    save_file({name.removeprefix("text_model."): value for name, value in load_file(path).items()}, path)
    model, networks = load(tmp_path / "folder")
    assert_weights(networks, model)


@pytest.mark.parametrize("model", [tiny_adm(class_cond=True), tiny_upsampler(), tiny_classifier()])
def test_adm_files_are_state_dicts(tmp_path: Path, model: PublishedModel) -> None:
    write_adm(tmp_path / "file.pt", model)
    read, networks = load(tmp_path / "file.pt", model)
    assert read == model
    assert_weights(networks, model)


@pytest.mark.parametrize("listed", [False, True])
def test_ddpm_files_need_no_configuration(tmp_path: Path, listed: bool) -> None:
    write_ddpm(tmp_path / "file.ckpt", tiny_ddpm(), listed=listed)
    read, networks = load(tmp_path / "file.ckpt")
    assert read == tiny_ddpm()
    assert_weights(networks, tiny_ddpm())


@pytest.mark.parametrize("wrap", [{"model": None}, {"state_dict": None}, {"module": None}])
def test_weights_inside_a_container_are_found(tmp_path: Path, wrap: dict[str, Any]) -> None:
    model = tiny_adm()
    tensors = {f"module.{name}": value for name, value in random_weights(model, "unet").items()}
    torch.save({**dict.fromkeys(wrap, tensors), "optimizer": {"state": {0: torch.zeros(2)}}, "step": 3}, tmp_path / "f")
    assert_weights(load(tmp_path / "f", model)[1], model)


def test_averages_of_an_adm_checkpoint_are_preferred(tmp_path: Path) -> None:
    model = tiny_adm()
    both = {"net": random_weights(model, "unet"), "net_ema": random_weights(model, "unet", 1)}
    torch.save(both, tmp_path / "file.pt")
    assert_weights(load(tmp_path / "file.pt", model)[1], model, seed=1)


@pytest.mark.parametrize(
    "name", ["control_model.input_blocks.1.0.in_layers.0.weight", "cond_stage_model.other", "lora"]
)
def test_tensors_of_no_known_use_are_reported(tmp_path: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    write_single_file(tmp_path / "file", tiny_sd())
    save_file({**load_file(tmp_path / "file"), name: torch.zeros(1)}, tmp_path / "file")
    with pytest.raises(UserError, match=f"1 tensors of no known use: {name}"):
        load(tmp_path / "file")


def test_an_unknown_file_lists_the_layouts() -> None:
    with pytest.raises(UserError, match="in none of the layouts that are known: guided-diffusion"):
        recognise(without_numbers({"layers.0.weight": [2, 2]}))


def test_a_file_without_a_part_warns(tmp_path: Path) -> None:
    model = PublishedModel.from_dict({key: value for key, value in tiny_sd().to_dict().items() if key != "text"})
    write_single_file(tmp_path / "file", model)
    with pytest.warns(UserWarning, match="holds no text"):
        read, networks = load(tmp_path / "file", tiny_sd())
    assert read.text is None and set(networks) == {"unet", "autoencoder"}


def test_a_folder_with_one_file_is_that_file(tmp_path: Path) -> None:
    write_adm(tmp_path / "model.pt", tiny_adm())
    (tmp_path / "notes.txt").write_text("")
    assert_weights(load(tmp_path, tiny_adm())[1], tiny_adm())
    write_adm(tmp_path / "other.pt", tiny_adm())
    with pytest.raises(UserError, match="has 2 files of weights; give a file"):
        open_published(tmp_path)


def test_a_folder_without_weights_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no weights; give a file"):
        open_published(tmp_path)


@pytest.mark.parametrize(
    "text", ["3", "{", "[]", '{"kind": "published", "format": 1}', '{"kind": "published", "format": 9}']
)
def test_a_damaged_header_of_our_own_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        recognise(without_numbers({"unet.weight": [1]}, steerdiff=text))


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        ({"num_res_blocks": 10**9}, "asks for 2000000000 layers"),
        ({"channel_mult": [1] * 5000}, "asks for 5000 layers"),
        ({"model_channels": 2**40}, "makes no network"),
        ({"head_channels": 7}, "does not divide into heads of 7"),
        ({"model_channels": "wide"}, "not described as to_dict does it"),
    ],
)
def test_a_description_that_no_file_can_have_is_refused(unet: dict[str, Any], message: str) -> None:
    described = tiny_adm().to_dict()
    header = {"format": 1, "kind": "published", "model": {**described, "unet": {**described["unet"], **unet}}}
    shapes = {f"unet.{name}": value.shape for name, value in random_weights(tiny_adm(), "unet").items()}
    file = without_numbers(shapes, steerdiff=json.dumps(header))
    with pytest.raises(UserError) as raised:
        parts(published_model(None, file), file, recognise(file))
    assert message in str(raised.value)

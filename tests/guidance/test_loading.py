"""Loading gives the model that was saved, or says in one sentence why it cannot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import steerdiff
from steerdiff import UserError
from steerdiff.guidance import loading
from steerdiff.models.checkpoint import save_safetensors
from steerdiff.models.unet import UNet

from .toys import TEXT, UNET, tiny_text_model


def header(**changes: Any) -> dict[str, Any]:
    """The header of a text-to-image file; a change to None leaves a key out."""
    fields: dict[str, Any] = {
        "kind": "text-to-image",
        "unet": UNET.to_dict(),
        "text": dataclasses.asdict(TEXT),
        "schedule": {"name": "cosine", "T": 100, "shift": 0.5},
        "parameterization": "v",
        "image_size": 8,
    }
    return {name: value for name, value in {**fields, **changes}.items() if value is not None}


def tensors() -> dict[str, torch.Tensor]:
    model = tiny_text_model()
    parts = {"unet.": model.network.state_dict(), "text.": model.text.state_dict()}
    return {prefix + name: tensor for prefix, state in parts.items() for name, tensor in state.items()}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_safetensors(path, tensors(), header())
    return path


def test_a_saved_model_loads_as_it_was(weights: Path) -> None:
    model = steerdiff.load(weights)
    assert model.schedule.recipe["shift"] == 0.5 and model.schedule.T == 100
    assert (model.parameterization, model.image_size, model.channels) == ("v", 8, 3)
    assert (model.learns_variance, model.num_classes, model.name) == (False, None, "tiny")
    assert model.weights_hash is not None and len(model.weights_hash) == 64
    same = tiny_text_model(schedule=model.schedule)
    assert torch.equal(model.sample("a cat", steps=3), same.sample("a cat", steps=3))
    assert not model.network.training and not any(p.requires_grad for p in model.network.parameters())


def test_half_precision_weights_run_in_float32_unless_asked_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_safetensors(path, {name: tensor.bfloat16() for name, tensor in tensors().items()}, header())
    assert steerdiff.load(path).dtype == torch.float32
    assert steerdiff.load(str(path), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_an_unconditional_file_gives_a_model_without_text(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(UNET, context_dim=None, out_channels=6)
    save_safetensors(
        tmp_path / "plain.safetensors",
        UNet(config).state_dict(),
        header(kind="unet", text=None, unet=config.to_dict(), learns_variance=True, parameterization="eps"),
    )
    model = steerdiff.load(tmp_path / "plain.safetensors")
    assert model.text is None and model.learns_variance
    assert model.sample(n=2, steps=2, solver="ddpm").shape == (2, 3, 8, 8)


def test_a_training_run_s_folder_loads_its_weights(weights: Path) -> None:
    weights.rename(weights.parent / "weights.safetensors")
    assert steerdiff.load(weights.parent).image_size == 8


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no weights; give a file, or a folder of diffusers"):
        steerdiff.load(tmp_path)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="'emoji65' is neither a file or folder .* known names: 'emoji64'"):
        steerdiff.load("emoji65")


def test_shipped_weights_that_are_missing_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loading.SHIPPED, "ghost", "weights/ghost.safetensors")
    with pytest.raises(UserError, match=r"the weights 'ghost' are not in this installation \(.*ghost.safetensors"):
        steerdiff.load("ghost")


@pytest.mark.parametrize("kept", [0, 4, 100, 2000, -1])
def test_a_truncated_file_is_not_read(weights: Path, kept: int) -> None:
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(UserError, match="(is empty|is no file of weights|is not a whole safetensors file)"):
        steerdiff.load(weights)


def test_a_file_of_another_kind_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="is no file of weights; steerdiff reads safetensors"):
        steerdiff.load(tmp_path / "notes.txt")
    (tmp_path / "notes.safetensors").write_text("hello, this is no safetensors file at all")
    with pytest.raises(UserError, match="is no file of weights"):
        steerdiff.load(tmp_path / "notes.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "recogniser"}, "holds a model of kind 'recogniser'; steerdiff.load reads text-to-image, unet"),
        ({"schedule": None}, "lacks schedule; fetch or save the file again"),
        ({"text": None}, "lacks text; fetch or save the file again"),
        ({"unet": {**UNET.to_dict(), "wings": 2}}, "has unknown settings wings; known are"),
        ({"schedule": {"name": "zigzag"}}, "schedule name is 'zigzag'"),
        ({"parameterization": "w"}, "parameterization is 'w'; known are"),
        (
            {"unet": {**UNET.to_dict(), "model_channels": 64}},
            r"of another shape: .* is \[128, 32\], expected \[256, 64\]",
        ),
        ({"unet": {**UNET.to_dict(), "num_res_blocks": 2}}, r"missing: unet\.input_blocks\.2"),
        ({"unet": {**UNET.to_dict(), "attention_at": ()}}, "left over: "),
    ],
)
def test_a_header_that_does_not_fit_names_the_fault(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "odd.safetensors"
    save_safetensors(path, tensors(), header(**change))
    with pytest.raises(UserError, match=message):
        steerdiff.load(path)


def test_weights_of_another_architecture_name_keys_and_shapes(tmp_path: Path) -> None:
    changed = tensors()
    del changed["unet.out.2.bias"]
    changed["unet.extra"] = torch.zeros(1)
    changed["text.position"] = torch.zeros(2, 2)
    save_safetensors(tmp_path / "odd.safetensors", changed, header())
    with pytest.raises(UserError) as error:
        steerdiff.load(tmp_path / "odd.safetensors")
    text = str(error.value)
    assert "1 missing: unet.out.2.bias" in text and "1 left over: unet.extra" in text
    assert "text.position is [2, 2], expected [6, 16]" in text


def test_a_config_is_refused_where_the_file_has_its_own(weights: Path) -> None:
    with pytest.raises(UserError, match="holds its own configuration; leave config out"):
        steerdiff.load(weights, config="adm-256-uncond")


def test_models_compare_by_identity() -> None:
    model = tiny_text_model()
    assert model == model and model != tiny_text_model()


def test_the_hash_is_that_of_the_file_that_was_loaded(weights: Path) -> None:
    from steerdiff.models.checkpoint import file_hash

    then = file_hash(weights)
    model = steerdiff.load(weights)
    save_safetensors(weights, {name: tensor + 1 for name, tensor in tensors().items()}, header())
    assert model.weights_hash == then != file_hash(weights)

"""Every setting of a run does something: each is changed once, and the run must differ where it should."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from steerdiff.train.config import TrainConfig
from steerdiff.train.diffusion import train_diffusion

from .runs import UNET, WORDS, same, state_of, tiny_config

BASE: dict[str, Any] = {"steps": 4, "weight_decay": 0.1, "decay": "linear", "decay_steps": 3, "caption_dropout": 0.5}

#: Another value for each field that changes the weights.
CHANGES_WEIGHTS: dict[str, Any] = {
    "unet": {**UNET, "dropout": 0.5},
    "text": {"words": WORDS, "width": 16, "depth": 2, "heads": 2, "length": 5},
    "schedule": {"name": "linear", "T": 100},
    "parameterization": "eps",
    "learns_variance": True,
    "min_snr": None,
    "times": "uniform",
    "caption_dropout": 1.0,
    "data": "emoji-scenes",
    "data_options": {"flip": False},
    "image_size": 16,
    "steps": 5,
    "batch_size": 8,
    "optimizer": "adamw",
    "learning_rate": 2e-2,
    "muon_learning_rate": 5e-2,
    "betas": (0.5, 0.6),
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "decay": "cosine",
    "decay_steps": 4,
    "clip_norm": 1e-9,
    "ema_decay": 0.05,
    "precision": "bf16",
    "seed": 1,
    "init_from": "other",
}

#: Fields that change what is written or how it is computed; each has a test of its own, named here.
TESTED_ELSEWHERE = {
    "folder": "test_a_run_leaves_the_documented_files",
    "rescales_vlb": "test_hybrid_loss_is_mse_plus_bits_per_dimension",
    "workers": "test_batches_come_in_order_from_any_number_of_workers",
    "accumulate": "test_accumulated_parts_give_the_gradients_of_the_whole_batch",
    "device": "test_a_run_on_the_gpu_resumes",
    "channels_last": "test_memory_format_is_taken_over",
    "compile": "test_a_compiled_model_trains_the_same_weights",
    "place_steps": "test_a_run_takes_its_lesson_once",
    "freezes_text": "test_a_frozen_text_encoder_keeps_its_weights",
    "class_dropout": "test_labels_are_dropped_to_the_class_that_guidance_starts_from",
    "log_every": "test_files_follow_their_intervals",
    "checkpoint_every": "test_files_follow_their_intervals",
    "keep_checkpoints": "test_files_follow_their_intervals",
    "sample_every": "test_files_follow_their_intervals",
    "sample_prompts": "test_samples_follow_their_settings",
    "sample_guidance": "test_samples_follow_their_settings",
    "sample_steps": "test_samples_follow_their_settings",
    "tensorboard": "test_a_run_leaves_the_documented_files",
}


def final(config: TrainConfig) -> dict[str, Tensor]:
    train_diffusion(config, progress=False)
    state = state_of(config)
    return {**state["ema"], **{f"raw {name}": weight for name, weight in state["model"].items()}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("fields")
    final(tiny_config(folder, "other", seed=5))
    return folder, final(tiny_config(folder, "base", **BASE))


def test_every_field_is_tested() -> None:
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    assert CHANGES_WEIGHTS.keys() | TESTED_ELSEWHERE.keys() == names
    assert not CHANGES_WEIGHTS.keys() & TESTED_ELSEWHERE.keys()
    tests = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert all(f"def {test}(" in tests for test in TESTED_ELSEWHERE.values())


@pytest.mark.parametrize("field", CHANGES_WEIGHTS)
def test_the_field_changes_the_weights(field: str, base: tuple[Path, dict[str, Tensor]]) -> None:
    folder, expected = base
    value = CHANGES_WEIGHTS[field]
    settings = {**BASE, field: value}
    if field == "data_options":
        settings[field] = {"path": str(folder / "images"), "labels": "caption", **value}
    elif field == "data":
        settings |= {"data_options": {}, "text": {"width": 16}, "image_size": 32}
        settings["unet"] = {**UNET, "unshuffle": 4}
    elif field == "init_from":
        settings[field] = str(folder / value)
    assert not same(final(tiny_config(folder, field, **settings)), expected)


def test_the_base_run_repeats_itself(base: tuple[Path, dict[str, Tensor]]) -> None:
    folder, expected = base
    assert same(final(tiny_config(folder, "again", **BASE)), expected)


def test_memory_format_is_taken_over(base: tuple[Path, dict[str, Tensor]]) -> None:
    folder, expected = base
    actual = final(tiny_config(folder, "contiguous", **BASE, channels_last=False))
    key = "raw unet.input_blocks.1.0.in_layers.2.weight"
    assert expected[key].is_contiguous(memory_format=torch.channels_last) and actual[key].is_contiguous()
    assert not expected[key].is_contiguous()
    torch.testing.assert_close(actual[key], expected[key], rtol=0, atol=5e-2)  # four steps of 1e-2 apart at most


def test_a_compiled_model_trains_the_same_weights(
    base: tuple[Path, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Traced but not translated: the code generator takes minutes and is PyTorch's to test.
    compiled, compiler = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or compiler(model, backend="eager"))
    folder, expected = base
    assert same(final(tiny_config(folder, "compiled", **BASE, compile=True)), expected) and len(compiled) == 1


def test_files_follow_their_intervals(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        steps=7,
        log_every=3,
        checkpoint_every=2,
        keep_checkpoints=3,
        sample_every=5,
        sample_prompts=("red",),
        sample_steps=1,
    )
    train_diffusion(config, progress=False)
    run = Path(config.folder)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [f"step-{k:08d}.pt" for k in (4, 6, 7)]
    assert [path.name for path in (run / "samples").glob("*.png")] == ["step-00000005.png"]
    assert [row.split(",")[0] for row in (run / "metrics.csv").read_text().splitlines()] == ["step", "3", "6"]


def test_samples_follow_their_settings(tmp_path: Path) -> None:
    # Three steps: layers that start at zero keep the caption from the output before.
    settings = {"steps": 3, "sample_every": 3, "sample_prompts": ("red",), "sample_steps": 2, "learning_rate": 0.1}
    changes: list[dict[str, Any]] = [
        {},
        {"sample_prompts": ("blue",)},
        {"sample_steps": 3},
        {"sample_guidance": 9.0},
    ]
    pictures = []
    for k, change in enumerate(changes):
        config = tiny_config(tmp_path, f"run{k}", **{**settings, "warmup_steps": 0, "ema_decay": 0.0, **change})
        train_diffusion(config, progress=False)
        pictures.append((Path(config.folder) / "samples" / "step-00000003.png").read_bytes())
    assert len(set(pictures)) == len(changes)


@pytest.mark.gpu
def test_a_run_on_the_gpu_resumes(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, device="cuda", precision="bf16", steps=2)
    train_diffusion(config, progress=False)
    result = train_diffusion(dataclasses.replace(config, steps=4), resume=True, progress=False)
    assert result.completed and state_of(config)["step"] == 4

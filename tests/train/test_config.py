from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from steerdiff.errors import UserError
from steerdiff.train.config import TrainConfig, read_config

from .runs import tiny_config


def test_settings_survive_json_and_yaml(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, sample_prompts=("red", "blue"), text=None)
    (tmp_path / "a.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(config.to_dict()))
    for name in ("a.json", "a.yaml"):
        read = read_config(tmp_path / name)
        assert read.to_dict() == config.to_dict()
        assert read.betas == config.betas and read.sample_prompts == config.sample_prompts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive"),
        ({"caption_dropout": 1.5}, "caption_dropout is 1.5"),
        ({"class_dropout": -0.1}, "class_dropout is -0.1"),
        ({"class_dropout": 0.1, "unet": {"num_classes": 4}}, "the network is told no class labels; set text to none"),
        ({"class_dropout": 0.1, "text": None}, "the network is told no class labels; set text to none and num_classes"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"min_snr": 0.0}, "min_snr is 0.0"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0"),
        ({"steps": 5, "decay_steps": 6}, "decay_steps is 6; it must be at most steps = 5"),
        ({"batch_size": 6, "accumulate": 4}, "batch_size 6 cannot be cut into 4 parts"),
        ({"parameterization": "score"}, "parameterization is 'score'; choose eps, x0 or v"),
        ({"optimizer": "rmsprop"}, "optimizer is 'rmsprop'; choose adamw, muon or sgd"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(folder="run", **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"folder": "x", "stepz": 3}', r"unknown training settings \['stepz'\]"),
        ("{}", "name no folder"),
        ("[1]", "holds no mapping"),
        ("{", "cannot be read"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    for name in ("a.json", "a.yaml"):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=message):
            read_config(tmp_path / name)


def test_yaml_rates_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("folder: x\nlearning_rate: 1e-4\n")
    assert read_config(tmp_path / "a.yaml").learning_rate == 1e-4


def test_settings_that_were_stored_before_classes_could_be_dropped_drop_none(tmp_path: Path) -> None:
    stored = tiny_config(tmp_path, text=None, unet={"num_classes": 3}).to_dict()
    assert stored.pop("class_dropout") == 0.0 and stored["caption_dropout"] == 0.1
    config = TrainConfig.from_dict(stored)
    assert config.class_dropout == 0.0 and config.null_class is None


def test_the_null_class_is_the_last_of_the_network(tmp_path: Path) -> None:
    assert tiny_config(tmp_path, text=None, unet={"num_classes": 1001}, class_dropout=0.1).null_class == 1000
    assert tiny_config(tmp_path, text=None, unet={"num_classes": 1001}).null_class is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.yaml is not a file"):
        read_config(tmp_path / "none.yaml")

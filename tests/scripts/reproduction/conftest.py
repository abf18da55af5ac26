"""Tiny weights in published layouts, folders of pictures, and recipes made short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from steerdiff.io import save_image
from steerdiff.models.published import from_flags
from steerdiff.models.published.flags import parse_command_line
from steerdiff.scripts.papers import PAPERS
from steerdiff.scripts.papers.recipe import Recipe, Run

from ... import published_files as files

SIZE = 32
ADM = (
    "--image_size 32 --num_channels 32 --channel_mult 1,2 --num_res_blocks 1 --num_head_channels 16 "
    "--attention_resolutions 16 --class_cond True --learn_sigma True"
)
CLASSIFIER = "--image_size 32 --classifier_width 64 --classifier_depth 1 --classifier_attention_resolutions 16"
DDPM = {
    "data": {"image_size": SIZE, "channels": 3},
    "model": {
        "type": "simple",
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [16],
        "dropout": 0.0,
        "var_type": "fixedsmall",
        "resamp_with_conv": True,
    },
    "diffusion": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "num_diffusion_timesteps": 1000},
}


@pytest.fixture(autouse=True)
def nothing_published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights are found anywhere, in PyTorch's cache or in a folder of weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("STEERDIFF_WEIGHTS", raising=False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ddpm.ckpt and ddpm.yml, adm.pt and classifier.pt."""
    folder = tmp_path_factory.mktemp("tiny")
    files.write_ddpm(folder / "ddpm.ckpt", files.tiny_ddpm())
    (folder / "ddpm.yml").write_text(yaml.safe_dump(DDPM))
    files.write_adm(folder / "adm.pt", from_flags(parse_command_line(ADM)))
    files.write_adm(folder / "classifier.pt", from_flags(parse_command_line(CLASSIFIER)))
    return folder


def pictures(folder: Path, n: int, size: int = SIZE, seed: int = 0) -> Path:
    """Write ``n`` pictures of noise."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(n):
        save_image(torch.rand(3, size, size, generator=generator) * 2 - 1, folder / f"{number:02d}.png")
    return folder


def masks(folder: Path, n: int, size: int = SIZE) -> Path:
    """Write ``n`` masks whose left three quarters are white."""
    for number in range(n):
        mask = torch.full((3, size, size), -1.0)
        mask[..., : size * 3 // 4] = 1
        save_image(mask, folder / f"{number:02d}.png")
    return folder


Shorten = Callable[..., Recipe]


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> Shorten:
    """Change the settings of a recipe's runs, so that it takes no time."""

    def change(paper: str, recipe: str, runs: Sequence[int] = (0,), **settings: Any) -> Recipe:
        entry = PAPERS[paper]
        old = next(one for one in entry.recipes if one.name == recipe)
        kept: tuple[Run, ...] = tuple(
            replace(old.runs[k], settings=replace(old.runs[k].settings, **settings)) for k in runs
        )
        new = replace(old, runs=kept)
        recipes = tuple(new if one is old else one for one in entry.recipes)
        monkeypatch.setitem(PAPERS, paper, replace(entry, recipes=recipes))
        return new

    return change

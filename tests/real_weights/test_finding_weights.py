"""The folder of weights is searched as its documentation says."""

from __future__ import annotations

from pathlib import Path

from .finding import find, pictures


def test_weights_are_found_by_preset_or_by_published_name(tmp_path: Path) -> None:
    assert find("adm-256-uncond", tmp_path) is None and find("adm-256-uncond", None) is None
    deep = tmp_path / "openai" / "256x256_diffusion_uncond.pt"
    deep.parent.mkdir()
    deep.touch()
    assert find("adm-256-uncond", tmp_path) == deep
    own = tmp_path / "adm-256-uncond.safetensors"
    own.touch()
    assert find("adm-256-uncond", tmp_path) == own
    inside = tmp_path / "ldm-ffhq-vq4" / "model.ckpt"
    inside.parent.mkdir()
    inside.touch()
    assert find("ldm-ffhq-vq4", tmp_path) == inside
    folder = tmp_path / "sd-1.5"
    folder.mkdir()
    (folder / "model_index.json").touch()
    assert find("sd-1.5", tmp_path) == folder


def test_pictures_without_photographs_are_scenes_of_any_size() -> None:
    images = pictures((48, 96))
    assert images.shape == (2, 3, 48, 96)
    assert float(images.min()) >= -1 and float(images.max()) <= 1 and float(images.std()) > 0.1

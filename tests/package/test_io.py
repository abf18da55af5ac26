"""Images, masks and settings keep their values through files, and bad ones get one clear error."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from steerdiff import io
from steerdiff.errors import UserError


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def levels() -> torch.Tensor:
    """All 256 values in an image [3, 16, 16]."""
    return (torch.arange(256, dtype=torch.float32).reshape(1, 16, 16) / 127.5 - 1).repeat(3, 1, 1)


# images


def test_every_value_survives_saving_and_loading(tmp_path: Path) -> None:
    path = io.save_image(levels(), tmp_path / "a.png")
    assert torch.equal(io.load_image(path)[0], levels())


def test_values_are_rounded_not_cut(tmp_path: Path) -> None:
    almost = levels() + 0.9 / 255  # less than half a step
    assert torch.equal(io.to_uint8(almost), io.to_uint8(levels()))


def test_an_image_of_the_right_size_is_not_touched() -> None:
    source = picture(8, 8)
    for fit in ("crop", "stretch", "exact"):
        loaded = io.load_image(source, 8, fit=fit)
        assert torch.equal(io.to_uint8(loaded)[0].permute(1, 2, 0), torch.from_numpy(np.array(source)))


def test_the_crop_is_adms() -> None:
    source = picture(75, 40)  # 40 -> 20 by the box filter, 20 -> 16 bicubic, centre
    half = source.resize((37, 20), Image.Resampling.BOX)
    small = half.resize((30, 16), Image.Resampling.BICUBIC)
    expected = np.asarray(small)[:, 7 : 7 + 16].astype(np.float32) / 127.5 - 1
    assert np.array_equal(io.load_image(source, 16)[0].permute(1, 2, 0).numpy(), expected)


def test_exact_size_is_demanded_on_request() -> None:
    with pytest.raises(UserError, match="is 75 x 40; expected 16 x 16"):
        io.load_image(picture(75, 40), 16, fit="exact")


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "RGB", "YCbCr", "LA"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    source = picture(8, 8).convert("L").convert(mode) if mode in ("L", "1", "LA") else picture(8, 8).convert(mode)
    assert io.load_image(source).shape == (1, 3, 8, 8)


def test_sixteen_bit_grey_is_scaled() -> None:
    wide = Image.fromarray(np.array([[0, 65535]], dtype=np.uint16))
    assert io.load_image(wide)[0, 0, 0].tolist() == [-1.0, 1.0]


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert torch.equal(io.load_image(clear), torch.ones(1, 3, 2, 2))


def test_arrays_are_taken_if_they_are_uint8() -> None:
    assert io.load_image(np.zeros((4, 5, 3), np.uint8)).shape == (1, 3, 4, 5)
    with pytest.raises(UserError, match=r"float64 \[4, 5, 3\]; expected uint8"):
        io.load_image(np.zeros((4, 5, 3)))  # type: ignore[arg-type]


def test_missing_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        io.load_image(tmp_path / "none.png")
    with pytest.raises(UserError, match="is a folder"):
        io.load_image(tmp_path)
    text = tmp_path / "text.png"
    text.write_text("hello")
    with pytest.raises(UserError, match="no image that Pillow can read"):
        io.load_image(text)
    for suffix in ("png", "jpg"):
        whole = tmp_path / f"whole.{suffix}"
        picture(64, 64).save(whole)
        half = tmp_path / f"half.{suffix}"
        half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(UserError, match="may be truncated or damaged"):
            io.load_image(half)


# masks


def test_a_mask_is_one_where_white(tmp_path: Path) -> None:
    grey = np.zeros((4, 4), np.uint8)
    grey[:, 2:] = 255
    Image.fromarray(grey).save(tmp_path / "m.png")
    mask = io.load_mask(tmp_path / "m.png", 8)
    assert mask.shape == (1, 1, 8, 8) and mask.dtype == torch.float32
    assert mask[..., :4].sum() == 0 and bool((mask[..., 4:] == 1).all())


def test_a_soft_mask_needs_a_threshold() -> None:
    soft = np.array([[0, 100, 200, 255]] * 4, np.uint8)
    with pytest.raises(UserError, match="is not binary"):
        io.load_mask(soft)
    assert io.load_mask(soft, threshold=0.5)[0, 0, 0].tolist() == [0, 0, 1, 1]
    with pytest.raises(UserError, match="threshold is 2"):
        io.load_mask(soft, threshold=2)


def test_a_transparent_mask_is_refused() -> None:
    with pytest.raises(UserError, match="transparent pixels"):
        io.load_mask(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))


def test_a_mask_stays_over_its_image_when_both_are_cropped() -> None:
    grey = np.zeros((32, 48, 3), np.uint8)
    grey[:, 24:] = 255
    mask, image = io.load_mask(grey, 32), io.load_image(grey, 32)
    assert torch.equal(mask[0, 0], (image[0, 0] > 0).float())


# settings and saving


def test_settings_travel_with_the_image(tmp_path: Path) -> None:
    settings = {"prompt": "ein Käfer", "seed": 3, "nested": {"a": [1, 2]}}
    path = io.save_image(levels(), tmp_path / "a.png", settings)
    assert io.read_settings(path) == settings
    assert json.loads((tmp_path / "a.json").read_text()) == settings
    assert io.read_settings(tmp_path / "a.json") == settings
    (tmp_path / "a.json").unlink()
    assert io.read_settings(path) == settings


def test_the_sidecar_speaks_for_an_image_that_lost_its_text(tmp_path: Path) -> None:
    path = io.save_image(levels(), tmp_path / "a.png", {"seed": 1})
    io.save_image(levels(), path)
    assert io.read_settings(path) == {"seed": 1}


def test_large_settings_are_read_back(tmp_path: Path) -> None:
    path = io.save_image(levels(), tmp_path / "a.png", {"input": "x" * 3_000_000})
    (tmp_path / "a.json").unlink()
    assert len(io.read_settings(path)["input"]) == 3_000_000


def test_an_image_without_settings_says_so(tmp_path: Path) -> None:
    path = io.save_image(levels(), tmp_path / "a.png")
    with pytest.raises(UserError, match="carries no settings"):
        io.read_settings(path)


def test_an_embedded_image_comes_back_bit_for_bit() -> None:
    image = levels()[None]
    assert torch.equal(io.load_image(io.unembed_image(io.embed_image(image))), image)
    with pytest.raises(UserError, match="damaged"):
        io.unembed_image("AAAA")


def test_bad_tensors_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image is \[2, 3, 4, 4\]"):
        io.save_image(torch.zeros(2, 3, 4, 4), tmp_path / "a.png")
    with pytest.raises(UserError, match="not finite"):
        io.save_image(torch.full((3, 4, 4), float("nan")), tmp_path / "a.png")
    with pytest.raises(UserError, match=r"does not end in \.png"):
        io.save_image(torch.zeros(3, 4, 4), tmp_path / "a.jpg")


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full to stand for a full disk")
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    monkeypatch.setattr(io, "_temporary", lambda path: full)
    with pytest.raises(UserError, match="no space is left on the disk of"):
        io.save_image(levels(), tmp_path / "a.png")
    assert os.listdir(tmp_path) == []  # nothing half-written stays


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = io.save_image(levels(), tmp_path / "a.png")
    before = path.read_bytes()

    def fail(file: object) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        io.atomic_write(path, fail)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.png"]


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    assert io.ensure_writable(tmp_path / "a" / "b").is_dir()
    assert os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        io.ensure_writable(tmp_path / "file" / "out")
    with pytest.raises(UserError, match="free some space"):
        io.ensure_writable(tmp_path, need=2**60)


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="change its rights"):
        io.ensure_writable(tmp_path)


# grid


def test_a_grid_holds_its_images() -> None:
    images = torch.rand(5, 3, 4, 6) * 2 - 1
    sheet = io.grid(images, columns=3, pad=1)
    assert sheet.shape == (3, 2 * 5 + 1, 3 * 7 + 1)
    assert torch.equal(sheet[:, 6:10, 8:14], images[4])
    assert bool((sheet[:, 0] == 1).all())
    with pytest.raises(UserError, match="B > 0"):
        io.grid(torch.zeros(0, 3, 4, 4))

"""Folders, ``.npz`` files and scenes as sides of a comparison, and captions for them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from steerdiff.errors import UserError
from steerdiff.io import save_image
from steerdiff.scripts.evaluation.sample_captions import captioned, read_captions
from steerdiff.scripts.evaluation.sample_sources import file_source, scene_source
from steerdiff.train.scenes import EmojiScenes


def picture(path: Path, level: int = 0, size: tuple[int, int] = (10, 8)) -> Path:
    """Save a picture of one grey level; ``size`` is width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level,) * 3).save(path)
    return path


def test_a_folder_gives_its_images_sorted_with_those_of_sub_folders(tmp_path: Path) -> None:
    for level, name in enumerate(["b.png", "a.png", "deep/er/c.png"]):
        picture(tmp_path / name, level)
    (tmp_path / "notes.txt").write_text("no image")
    source = file_source(tmp_path)
    assert source.names == ("a", "b", "deep/er/c") and source.n == 3 and source.size == (8, 10)
    images = source.images(slice(0, 3))
    assert images.dtype == torch.uint8 and images[:, 0, 0, 0].tolist() == [1, 0, 2] and images.shape == (3, 3, 8, 10)
    assert torch.equal(source.images(slice(1, 2)), images[1:2])


def test_jpeg_and_webp_are_images_too(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JPEG", "c.webp"):
        picture(tmp_path / name)
    assert file_source(tmp_path).n == 3


def test_the_sheet_of_sampled_images_is_left_out_and_recorded(tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    picture(tmp_path / "grid.png", size=(40, 40))
    source = file_source(tmp_path)
    assert source.n == 1 and source.to_dict()["left out"] == ["grid.png"]


def test_a_folder_with_two_sizes_names_two_images(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", size=(12, 8))
    with pytest.raises(UserError, match=r"a\.png is 10 x 8 and .*b\.png is 12 x 8"):
        file_source(tmp_path)


def test_bad_folders_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no images"):
        file_source(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        file_source(tmp_path / "absent")
    whole = picture(tmp_path / "a.png", size=(64, 64))
    (tmp_path / "b.png").write_bytes(whole.read_bytes()[:60])
    with pytest.raises(UserError, match=r"b\.png"):
        file_source(tmp_path)
    with pytest.raises(UserError, match="neither a folder nor an .npz"):
        file_source(whole)


def test_an_npz_of_images_is_read_as_adm_writes_it(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 10, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=pixels, arr_1=np.arange(3))
    source = file_source(tmp_path / "a.npz")
    assert source.n == 3 and source.size == (8, 10) and source.statistics is None
    assert np.array_equal(source.images(slice(1, 3)).permute(0, 2, 3, 1), pixels[1:3])


def test_an_npz_of_adm_has_images_and_statistics_and_says_what_it_leaves(tmp_path: Path) -> None:
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=pixels, mu=np.ones(3), sigma=np.eye(3), mu_s=np.ones(2), sigma_s=np.eye(2))
    source = file_source(tmp_path / "a.npz")
    assert source.n == 2 and source.statistics is not None and source.statistics.width == 3
    assert source.to_dict()["not used"] == ["mu_s", "sigma_s"]


def test_an_npz_of_other_things_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for arrays, message in (
        ({"x": np.ones(2)}, "expected mu and sigma"),
        ({"arr_0": np.zeros((2, 8, 8, 3))}, "float64"),
        ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, r"uint8 \[N, H, W, 3\]"),
        ({"arr_0": np.zeros((0, 8, 8, 3), np.uint8)}, r"\[0, 8, 8, 3\]"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=message):
            file_source(path)


def test_statistics_alone_have_no_images_to_give(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mu=np.ones(3), sigma=np.eye(3))
    source = file_source(tmp_path / "a.npz")
    assert source.n == 0 and source.size is None
    with pytest.raises(UserError, match="holds no images"):
        source.images(slice(0, 1))


def test_scenes_are_those_of_the_training_sets_distribution() -> None:
    source = scene_source(5, 40)
    scenes = EmojiScenes(5)
    images, captions = scenes.batch(range(40))
    assert source.captions == tuple(captions)
    assert torch.equal(source.images(slice(10, 20)), ((images[10:20] + 1) * 127.5).round().to(torch.uint8))
    assert scenes.pairs == source.to_dict()["scenes"]["pairs"]


# captions


def test_captions_are_read_from_lines_and_from_json(tmp_path: Path) -> None:
    lines, mapping, plain = (tmp_path / name for name in ("a.tsv", "b.json", "c.json"))
    lines.write_text("a.png\ta cat\n\ndeep/b\ttwo cats\n")
    mapping.write_text(json.dumps({"a": "a cat", "deep/b.jpg": "two cats"}))
    plain.write_text(json.dumps(["a cat", "two cats"]))
    assert read_captions(lines) == read_captions(mapping) == {"a": "a cat", "deep/b": "two cats"}
    assert read_captions(plain) == {"0": "a cat", "1": "two cats"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "a cat", "line 1 has no tab"),
        ("a.tsv", "", "holds no captions"),
        ("a.tsv", "a\tx\na.png\ty", "names 'a' twice"),
        ("a.json", "{", "is no JSON"),
        ("a.json", "3", "neither an object nor a list"),
        ("a.json", '{"a": 3}', "no texts"),
    ],
)
def test_bad_captions_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_captions(path)
    with pytest.raises(UserError, match="is not a file"):
        read_captions(tmp_path / "absent.tsv")


def test_captions_are_matched_to_images_by_name(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    source, missing = captioned(file_source(tmp_path), {"b": "of b", "a": "of a", "c": "of none"})
    assert source.captions == ("of a", "of b") and missing == ""
    with pytest.raises(UserError, match=r"1 of 2 images .* have no caption, \['b'\]"):
        captioned(file_source(tmp_path), {"a": "of a"})


def test_captions_come_from_the_settings_that_steerdiff_stores(tmp_path: Path) -> None:
    for number, prompt in enumerate(["a red cat", "a dog"]):
        save_image(torch.zeros(3, 8, 8), tmp_path / f"{number}.png", {"prompt": prompt})
    source, missing = captioned(file_source(tmp_path), None)
    assert source.captions == ("a red cat", "a dog") and missing == ""
    picture(tmp_path / "2.png", size=(8, 8))
    source, missing = captioned(file_source(tmp_path), None)
    assert source.captions is None and "2.png carries none, give --captions FILE" in missing

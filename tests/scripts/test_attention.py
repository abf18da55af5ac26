"""``steerdiff attention``: pictures by word, which can be made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from steerdiff.io import load_image, read_settings

from .conftest import SIZE, Done

Run = Callable[..., Done]


@pytest.mark.parametrize("given", [False, True])
def test_each_word_gets_a_picture_that_can_be_made_again(
    steerdiff: Run, weights: Path, pictures: Path, tmp_path: Path, given: bool
) -> None:
    flags: list[object] = ["attention", "a green apple", "--steps", 3, "--weights", weights, "--threads", 1]
    flags += ["--image", pictures / "image.png"] if given else ["--seed", 5, "--guidance", 2]
    done = steerdiff(*flags, "--out", tmp_path)
    assert done.code == 0, done.err
    paths = [Path(line) for line in done.out.splitlines()]
    stem = "image" if given else "seed5"
    names = [stem, f"{stem}-00-a", f"{stem}-01-green", f"{stem}-02-apple", "words"]
    assert [path.stem for path in paths] == names and all(path.is_file() for path in paths)
    assert load_image(paths[0]).shape == load_image(paths[3]).shape == (1, 3, SIZE, SIZE)
    assert read_settings(paths[2])["words"] == ["a", "green", "apple"]
    again = steerdiff("rerun", paths[3])
    assert again.code == 0, again.out + again.err


def test_chosen_words_alone_are_shown_and_missing_ones_named(steerdiff: Run, weights: Path, tmp_path: Path) -> None:
    flags: list[object] = ["attention", "a green apple", "--steps", 2, "--weights", weights, "--threads", 1]
    done = steerdiff(*flags, "--words", "green apple", "--out", tmp_path)
    assert done.code == 0 and [Path(line).stem for line in done.out.splitlines()][1] == "seed0-00-green-apple"
    wrong = steerdiff(*flags, "--words", "aple", "--out", tmp_path)
    assert wrong.code == 2 and "'aple' is not in the prompt 'a green apple' (nearest: apple)" in wrong.err
    none = steerdiff(*flags, "--image", tmp_path / "none.png", "--out", tmp_path)
    assert none.code == 2 and "which is no file" in none.err

"""Each flag of guidance does something, is stored, and can be run again; those that make no sense are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steerdiff.guidance import Guidance
from steerdiff.io import read_settings
from steerdiff.scripts.sample import Sample

from .conftest import Done

Run = Callable[..., Done]

#: Each flag with a value, and the flags beside which it has something to do.
FLAGS: dict[str, tuple[tuple[object, ...], tuple[object, ...]]] = {
    "guidance": ((9,), ()),
    "guidance-w": ((7,), ()),
    "guidance-rescale": ((0.7,), ()),
    "guidance-interval": ((0.5, 1), ()),
    "guidance-schedule": (("late",), ()),
    "also": (("a green apple", 2, "a red background", -1.5), ()),
    "clip": (("dynamic",), ("--guidance", 30)),
    "quantile": ((0.8,), ("--guidance", 30, "--clip", "dynamic")),
}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


@pytest.fixture
def draw(steerdiff: Run, weights: Path, tmp_path: Path) -> Callable[..., list[Path]]:
    def call(name: str, *flags: object) -> list[Path]:
        out = tmp_path / name
        words = ("--steps", 3, "--weights", weights, "--out", out, "--threads", 1)
        done = steerdiff("sample", "a red cat", *words, *flags)
        assert done.code == 0, done.err
        return sorted(path for path in out.glob("*.png") if path.name != "grid.png")

    return call


@pytest.mark.parametrize("name", FLAGS)
def test_each_flag_changes_the_image_and_is_kept(steerdiff: Run, draw: Callable[..., list[Path]], name: str) -> None:
    value, beside = FLAGS[name]
    (plain,), (changed,) = draw("plain", *beside), draw("changed", *beside, f"--{name}", *value)
    assert not np.array_equal(pixels(plain), pixels(changed))
    again = steerdiff("rerun", changed)
    assert again.code == 0 and "bit for bit" in again.out, again.out + again.err


def test_every_setting_of_guidance_has_a_flag() -> None:
    flags = {field.name for field in dataclasses.fields(Sample)}
    for field in dataclasses.fields(Guidance):
        wanted = {"scale": "guidance", "also": "also"}.get(field.name, f"guidance_{field.name}")
        assert wanted in flags, field.name
        if field.name != "scale":  # whose None is the model's own in both
            assert Sample.__dataclass_fields__[wanted].default == field.default, field.name


def test_the_papers_count_is_one_less(draw: Callable[..., list[Path]]) -> None:
    (ours,), (papers,) = draw("ours", "--guidance", 7.5), draw("papers", "--guidance-w", 6.5)
    assert np.array_equal(pixels(ours), pixels(papers))
    options = read_settings(papers)["options"]
    assert options["guidance"] == 7.5 and options["guidance_w"] is None


def test_images_of_one_run_may_have_a_strength_each(steerdiff: Run, draw: Callable[..., list[Path]]) -> None:
    several = draw("several", "--n", 3, "--seed", 4, 4, 4, "--guidance", 1, 3, 9, "--batch", 2)
    for path, strength in zip(several, (1, 3, 9), strict=True):
        (alone,) = draw(f"alone{strength}", "--seed", 4, "--guidance", strength)
        assert np.abs(pixels(path) - pixels(alone)).max() <= 1  # the network's sums round differently in another batch
        again = steerdiff("rerun", path)
        assert again.code == 0 and "bit for bit" in again.out, again.out + again.err
    assert not np.array_equal(pixels(several[0]), pixels(several[2]))


def test_one_branch_after_the_other_draws_the_same(draw: Callable[..., list[Path]]) -> None:
    together, apart = draw("together", "--n", 2), draw("apart", "--n", 2, "--guidance-split")
    for one, other in zip(together, apart, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1  # sums of other batches round differently
    assert read_settings(apart[0])["options"]["guidance_split"] is True


def test_further_prompts_can_stand_in_a_file(steerdiff: Run, draw: Callable[..., list[Path]], tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("also: [[a green apple, 2], [a red background, -1.5]]\nguidance_interval: [0.2, 1]\n")
    (read,) = draw("read", "--config", file)
    (typed,) = draw("typed", "--also", "a green apple", 2, "a red background", -1.5, "--guidance-interval", 0.2, 1)
    assert np.array_equal(pixels(read), pixels(typed))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--guidance", 3, "--guidance-w", 2), "give one of them"),
        (("--guidance", 3, 4), "2 strengths of guidance were given for 1 images"),
        (("--guidance-rescale", 2), "rescale is 2.0; it must lie in [0, 1]"),
        (("--guidance-interval", 0.9, 0.1), "the interval of guidance is 0.9 to 0.1"),
        (("--guidance-interval", 0.0011, 0.0012), "nothing is guided"),
        (("--also", "a blue cat", 1), "does not know: 'blue'"),
        (("--also", "a green cat", "nan"), "a prompt's weight is nan"),
        (("--quantile", 0.9), "a quantile belongs to clip='dynamic'"),
        (("--clip", "dynamic", "--quantile", 0), "quantile is 0.0"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    steerdiff: Run, weights: Path, tmp_path: Path, flags: tuple[object, ...], words: str
) -> None:
    done = steerdiff("sample", "a red cat", "--steps", 2, "--weights", weights, "--out", tmp_path / "out", *flags)
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert done.code == 2 and len(lines) == 1 and words in lines[0], done.err
    assert not list((tmp_path / "out").glob("*.png"))


def test_an_incomplete_further_prompt_is_refused(steerdiff: Run, weights: Path, tmp_path: Path) -> None:
    done = steerdiff("sample", "a red cat", "--weights", weights, "--out", tmp_path / "out", "--also", "a green cat")
    assert done.code == 2 and "--also" in done.err and "Traceback" not in done.err

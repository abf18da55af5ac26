"""``steerdiff evaluate noisy``: the table, its file, and what does not fit together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from steerdiff.errors import UserError
from steerdiff.models import build_clip, file_hash, read_header, read_safetensors, save_safetensors
from steerdiff.models.noisy_clip import from_clip
from steerdiff.models.published.spec import ClipConfig
from steerdiff.scripts.evaluate import main
from steerdiff.train import noisy_scores
from steerdiff.train.scenes import WORDS

CONFIG = ClipConfig(
    embed_dim=8,
    vision_cfg={"image_size": 64, "layers": 1, "width": 16, "head_width": 16, "patch_size": 32},
    text_cfg={"context_length": 24, "vocab_size": len(WORDS) + 3, "width": 16, "heads": 2, "layers": 1},
)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A CLIP and a noisy one, both of random weights."""
    torch.manual_seed(0)
    network = build_clip(CONFIG)
    clip, noisy = tmp_path / "clip.safetensors", tmp_path / "noisy.safetensors"
    save_safetensors(clip, network.state_dict(), {"kind": "clip", "clip": vars(CONFIG), "words": list(WORDS)})
    model = from_clip(network)
    facts = {"noisy": model.config.to_dict(), "clip_hash": file_hash(clip), "schedule": {"name": "linear"}}
    save_safetensors(noisy, model.state_dict(), {"kind": "noisy-clip", "clip": vars(CONFIG), **facts})
    return clip, noisy


def run(files: tuple[Path, Path], out: Path, *more: object) -> int:
    clip, noisy = files
    flags = ["--clip", clip, "--noisy-clip", noisy, "--classifier", "none", "--n", 4, "--group", 2, "--out", out, *more]
    return main(["noisy", *map(str, flags)], "steerdiff evaluate")


def test_the_table_the_numbers_and_the_plot_are_written(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run(files, out) == 0
    page = capsys.readouterr().out
    assert (out / "noisy.md").read_text() == page and "| 0.9 | " in page and "among 2; the" in page
    facts = json.loads((out / "noisy.json").read_text())
    assert facts["weights"]["clip"] == file_hash(files[0]) and facts["options"]["n"] == 4
    rates = facts["report"]["rates"]
    assert rates["noisy CLIP: clean image"] == rates["un-tuned CLIP: clean image"]  # it was not tuned
    assert rates["noisy CLIP: caption"]["0.3"]["n"] == 4
    assert (out / "noisy.png").read_bytes().startswith(b"\x89PNG")
    with monkeypatch.context() as patch:
        patch.setattr(noisy_scores, "measure_noisy", lambda *args, **options: pytest.fail("measured again"))
        assert run(files, out) == 0
    assert capsys.readouterr().out == page


def test_a_pair_that_does_not_belong_together_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    clip, noisy = files
    save_safetensors(clip, read_safetensors(clip), {**read_header(clip), "name": "another"})
    with pytest.raises(UserError, match="was tuned to agree with another CLIP than"):
        run(files, tmp_path / "out")
    header = {name: value for name, value in read_header(noisy).items() if name not in ("schedule", "clip_hash")}
    save_safetensors(noisy, read_safetensors(noisy), header)
    with pytest.raises(UserError, match="does not say which noise it learned; tune it again"):
        run(files, tmp_path / "out")
    with pytest.raises(UserError, match="is a CLIP; give the weights of a noisy CLIP"):
        run((clip, clip), tmp_path / "out")

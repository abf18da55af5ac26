"""Training of a CLIP on emoji scenes: its loss, its texts, and runs that go on where they stopped."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import steerdiff
from steerdiff.errors import UserError
from steerdiff.guidance.loading import load_cached
from steerdiff.models import read_header
from steerdiff.models.clip import Clip
from steerdiff.train.both_splits import BothSplits
from steerdiff.train.clip import ClipTrainConfig, matching_loss, train_clip
from steerdiff.train.phrases import phrases, true_of
from steerdiff.train.randomness import SampleRandom
from steerdiff.train.scene_text import Split
from steerdiff.train.scenes import COLOURS, OBJECTS, STYLES, WORDS, EmojiScenes, parse_caption

from .runs import curve, same, state_of

VISION = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
TEXT = {"width": 16, "heads": 2, "layers": 1}


def tiny(folder: Path, **changes: Any) -> ClipTrainConfig:
    values: dict[str, Any] = {
        "folder": str(folder),
        "embed_dim": 16,
        "vision": VISION,
        "text": TEXT,
        "steps": 4,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "warmup_steps": 1,
        "ema_decay": 0.9,
        "device": "cpu",
        "log_every": 1,
        "checkpoint_every": 2,
    }
    return ClipTrainConfig(**{**values, **changes})


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, parts = tiny(tmp_path / "whole"), tiny(tmp_path / "parts")
    assert train_clip(whole, progress=False).completed
    train_clip(dataclasses.replace(parts, steps=2), progress=False)
    train_clip(parts, resume=True, progress=False)
    expected, actual = state_of(whole), state_of(parts)
    assert same(actual["model"], expected["model"]) and same(actual["ema"], expected["ema"])
    assert curve(parts) == curve(whole)
    with pytest.raises(UserError, match="was started with other short; keep them"):
        train_clip(dataclasses.replace(parts, short=0.0), resume=True, progress=False)


def test_a_run_gives_a_clip_that_reads_the_words_of_the_domain(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", steps=2)
    train_clip(config, progress=False)
    clip = steerdiff.load(config.folder)
    assert isinstance(clip, Clip) and clip.words == tuple(WORDS) and clip.size == 64
    header = read_header(tmp_path / "run" / "weights.safetensors")
    assert header["kind"] == "clip" and str(tmp_path) not in str(header)
    own = state_of(config)["ema"]
    assert same(clip.network.state_dict(), own)
    images, captions = BothSplits(seed=3).batch(range(3))
    assert clip.image_features(images).shape == clip.text_features(captions).shape == (3, 16)
    with pytest.raises(UserError, match="does not know: 'painting'"):
        clip.text_features(["a painting"])


def test_the_loss_is_the_published_one_and_an_answer_may_be_left_out() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 3, dtype=torch.float64)
    rows, columns = matching_loss(logits)
    p = logits.exp()
    assert torch.isclose(rows, -(p.diag() / p.sum(1)).log().mean())
    assert torch.isclose(columns, -(p.diag() / p.sum(0)).log().mean())
    p[0, 1], logits[0, 1] = 0, float("-inf")
    rows, columns = matching_loss(logits)
    assert torch.isclose(rows, -(p.diag() / p.sum(1)).log().mean())
    assert torch.isclose(columns, -(p.diag() / p.sum(0)).log().mean())


def test_short_texts_are_made_of_the_vocabulary_and_true_of_their_scene() -> None:
    descriptions = [scene.description for scene in BothSplits(seed=5).scenes(range(200))]
    texts = phrases(descriptions, 0.7, SampleRandom(0, range(200)))
    assert 100 < sum(not text.whole for text in texts) < 180
    assert {word for text in texts for word in text.text.split()} <= set(WORDS)
    assert bool(true_of(texts, descriptions).diag().all())
    assert all(text.whole for text in phrases(descriptions, 0.0, SampleRandom(0, range(200))))


def test_what_a_short_text_is_true_of() -> None:
    captions = (
        "a flat cat on a blue background",
        "a 3d cat on a blue background",
        "a flat panda left of a 3d cat on a red background",
    )
    descriptions = [parse_caption(caption) for caption in captions]
    wanted = {
        "a flat cat": [True, False, False],
        "cat": [True, True, True],
        "flat": [True, False, True],
        "blue background": [True, True, False],
        "a cat on a blue background": [True, True, False],
        captions[0]: [True, False, False],
    }
    seen = {}
    for seed in range(300):
        for text in phrases(descriptions[:1], 0.9, SampleRandom(seed, [0])):
            seen[text.text] = true_of([text], descriptions)[0].tolist()
    assert {text: seen[text] for text in wanted} == wanted


def test_scenes_of_both_splits_are_as_frequent_as_asked() -> None:
    scenes = BothSplits(seed=1, held_out=0.25).scenes(range(400))
    assert 70 <= sum(scene.description.held_out for scene in scenes) <= 130
    assert BothSplits(seed=1, held_out=0.25).scenes([7, 3])[1] == scenes[3]
    with pytest.raises(UserError, match="held_out is 2; it is a share between 0 and 1"):
        BothSplits(held_out=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 2}, "compares the images of a batch; set accumulate to 1"),
        ({"short": 1.5}, "short is 1.5; it is a share between 0 and 1"),
        ({"jitter": 9}, "jitter is 9; it must be between 0 and 8 pixels"),
        ({"tint": -1.0}, "tint is -1.0; it must be at least 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(tmp_path, **changes)


def test_vectors_point_the_same_way_after_a_little_training(tmp_path: Path) -> None:
    config = tiny(
        tmp_path / "run", steps=60, batch_size=8, log_every=20, short=0.0, noise=0.0, blur=0.0, warmup_steps=5
    )
    train_clip(config, progress=False)
    losses = [float(row[1]) for row in curve(config)[1:]]
    assert losses[-1] < 0.8 * losses[0]


def test_the_logit_scale_is_clipped() -> None:
    from steerdiff.models.clip import build_clip
    from steerdiff.train.clip import ClipLoss, clip_architecture
    from steerdiff.train.losses import Batch

    config = tiny(Path("unused"))
    clip = build_clip(clip_architecture(config)).requires_grad_(True)
    with torch.no_grad():
        clip.logit_scale.fill_(9.0)
    images, captions = BothSplits(seed=2).batch(range(2))
    loss, metrics = ClipLoss(clip, config)(Batch(images, captions, SampleRandom(0, range(2))))
    assert float(metrics["logit_scale"]) == pytest.approx(100) and bool(loss.isfinite())
    assert functional.relu(loss) == loss


@pytest.mark.parametrize("split", ["train", "held_out"])
@torch.no_grad()
def test_the_shipped_clip_knows_captions_and_single_words(split: Split) -> None:
    clip = load_cached("emoji64-clip", "clip")
    images, captions = EmojiScenes(77, split, 0.3).batch(range(256))
    nearest = (clip.image_features(images) @ clip.text_features(captions).T).argmax(1).tolist()
    assert sum(captions[i] == caption for i, caption in zip(nearest, captions, strict=True)) / 256 > 0.93
    images, captions = EmojiScenes(78, split, 0.0).batch(range(256))
    vectors, seen = clip.image_features(images), [parse_caption(caption) for caption in captions]
    for words, right, least in (
        (OBJECTS, [d.things[0][1] for d in seen], 0.97),
        (STYLES, [d.things[0][0] for d in seen], 0.92),
        (tuple(COLOURS), [d.colour for d in seen], 0.99),
    ):
        told = [words[i] for i in (vectors @ clip.text_features(words).T).argmax(1).tolist()]
        assert sum(a == b for a, b in zip(told, right, strict=True)) / 256 > least

"""Tuning of a noisy CLIP: its loss, what learns, and that it tells noisy images apart better than the clean one."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import steerdiff
from steerdiff.errors import UserError
from steerdiff.guidance.loading import load_cached
from steerdiff.guidance.noisy_encoder import NoisyEncoder
from steerdiff.models import build_clip, file_hash, read_header, save_safetensors
from steerdiff.models.clip import Clip
from steerdiff.models.noisy_clip import from_clip
from steerdiff.models.published.spec import ClipConfig
from steerdiff.samplers import NoiseSchedule
from steerdiff.train.both_splits import BothSplits
from steerdiff.train.distributed import World
from steerdiff.train.losses import Batch
from steerdiff.train.noisy_clip import NoisyClipLoss, NoisyClipTrainConfig, _trainer, train_noisy_clip
from steerdiff.train.noisy_scores import FRACTIONS, Networks, NoisyReport, measure_noisy
from steerdiff.train.randomness import SampleRandom
from steerdiff.train.scenes import WORDS

from .runs import curve, same, state_of

TEXT = {"context_length": 24, "vocab_size": len(WORDS) + 3, "width": 16, "heads": 2, "layers": 1}
RESNET = ClipConfig(
    embed_dim=16,
    vision_cfg={"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "patch_size": None},
    text_cfg=TEXT,
)
VIT = ClipConfig(
    embed_dim=16,
    vision_cfg={"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    text_cfg=TEXT,
)


def clean(folder: Path, config: ClipConfig = RESNET) -> Path:
    """The file of a CLIP whose images have vectors that differ, as those of a trained one."""
    torch.manual_seed(0)
    network = build_clip(config)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("bn3.weight"):
                tensor.fill_(1.0)
    path = folder / "clean.safetensors"
    save_safetensors(path, network.state_dict(), {"kind": "clip", "clip": vars(config), "words": list(WORDS)})
    return path


def tiny(folder: Path, clip: Path, **changes: Any) -> NoisyClipTrainConfig:
    values: dict[str, Any] = {
        "folder": str(folder),
        "clip": str(clip),
        "noisy": {"hidden": 16, "frequencies": 8},
        "schedule": {"name": "cosine"},
        "steps": 4,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "ema_decay": 0.9,
        "device": "cpu",
        "log_every": 1,
        "checkpoint_every": 2,
    }
    return NoisyClipTrainConfig(**{**values, **changes})


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    clip = clean(tmp_path)
    whole, parts = tiny(tmp_path / "whole", clip), tiny(tmp_path / "parts", clip)
    train_noisy_clip(whole, progress=False)
    train_noisy_clip(dataclasses.replace(parts, steps=2), progress=False)
    train_noisy_clip(parts, resume=True, progress=False)
    expected, actual = state_of(whole), state_of(parts)
    assert same(actual["model"], expected["model"]) and same(actual["ema"], expected["ema"])
    assert curve(parts) == curve(whole)


def test_a_run_gives_a_noisy_encoder_that_says_whom_it_agrees_with(tmp_path: Path) -> None:
    clip = clean(tmp_path, VIT)
    config = tiny(tmp_path / "run", clip, noisy={"time": "token"}, steps=2, data_options={"pairs": 0.0}, image_size=32)
    train_noisy_clip(config, progress=False)
    encoder = steerdiff.load(config.folder)
    assert isinstance(encoder, NoisyEncoder) and encoder.image_size == 32 and encoder.schedule is not None
    assert encoder.schedule.to_dict() == NoiseSchedule.from_dict({"name": "cosine"}).to_dict()
    assert encoder.clip_hash == file_hash(clip) and len(encoder.weights_hash or "") == 64
    assert same(encoder.network.state_dict(), state_of(config)["ema"])
    maps, vector = encoder(torch.zeros(2, 3, 32, 32), torch.tensor([1.0, 2.0]))
    assert [list(one.shape) for one in maps] == [[2, 32, 2, 2]] * 2 and vector.shape == (2, 16)
    assert not encoder.network.training and str(tmp_path) not in str(read_header(encoder.files[0])["clip"])


def test_the_loss_is_the_sum_of_both_directions_at_the_fixed_temperature(tmp_path: Path) -> None:
    teacher = steerdiff.load(clean(tmp_path))
    student, schedule = from_clip(teacher.network), NoiseSchedule.from_dict({"name": "cosine"})
    images, captions = BothSplits(seed=1).batch(range(3))
    random = SampleRandom(0, range(3))
    loss, metrics = NoisyClipLoss(student, teacher, schedule)(Batch(images, captions, random))
    t = (random.uniform("time") * 1000).long()
    alpha_bar = torch.tensor(schedule.alpha_bars)[t].view(3, 1, 1, 1)
    noised = alpha_bar.sqrt() * images + (1 - alpha_bar).sqrt() * random.normal("noise", images.shape[1:])
    a, b = functional.normalize(student(noised.float(), t).vector, dim=1), teacher.image_features(images)
    logits, truth = 100 * a @ b.T, torch.arange(3)
    expected = functional.cross_entropy(logits, truth) + functional.cross_entropy(logits.T, truth)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    anchored, _ = NoisyClipLoss(student, teacher, schedule, anchor=2.0)(Batch(images, captions, random))
    assert anchored.item() == pytest.approx(loss.item() + 2 * (1 - metrics["cosine"].item()), rel=1e-5)
    assert metrics["cosine"].item() == pytest.approx((a * b).sum(1).mean().item(), rel=1e-4)


@pytest.mark.parametrize("config", [RESNET, VIT], ids=["resnet", "vit"])
def test_layers_say_what_learns_beside_the_time(tmp_path: Path, config: ClipConfig) -> None:
    clip = clean(tmp_path, config)
    last = ("layer4.", "attnpool.") if config is RESNET else ("transformer.resblocks.1.", "ln_post.", "proj")
    wanted = {"all": ("",), "last": (*last, "positional"), "time": ("attnpool.positional", "positional")}
    for layers, starts in wanted.items():
        trainer = _trainer(tiny(tmp_path, clip, layers=layers), torch.device("cpu"), World())
        free = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
        expected = {
            name
            for name, _ in trainer.model.named_parameters()
            if name.startswith("time.") or name.removeprefix("visual.").startswith(starts)
        }
        assert free == expected, layers


class Colours:
    """A teacher whose vectors are where an image is bright in which colour, so that images differ."""

    def image_features(self, images: Tensor) -> Tensor:
        coarse = functional.adaptive_avg_pool2d(images, 2).flatten(1) - images.mean((2, 3)).repeat_interleave(4, 1) / 2
        return functional.normalize(functional.pad(coarse, (0, 4)), dim=1)


def test_tuning_teaches_to_tell_noised_images_apart(tmp_path: Path) -> None:
    student = from_clip(steerdiff.load(clean(tmp_path, VIT)).network).train()
    loss = NoisyClipLoss(student, Colours(), NoiseSchedule.from_dict({"name": "cosine"}), anchor=5.0)  # type: ignore[arg-type]
    data = BothSplits(seed=4)
    optimizer = torch.optim.AdamW(student.parameters(), 2e-3)

    def batch(first: int) -> Batch:
        return Batch(*data.batch(range(first, first + 32)), SampleRandom(0, range(first, first + 32)))

    with torch.no_grad():
        before = loss(batch(10_000))[1]
    for step in range(100):
        optimizer.zero_grad()
        loss(batch(32 * step))[0].backward()
        optimizer.step()
    with torch.no_grad():
        after = loss(batch(10_000))[1]
    assert after["right"] > before["right"] + 0.2


def test_the_shipped_noisy_clip_sees_through_noise_where_the_clean_one_does_not() -> None:
    noisy, clip = load_cached("emoji64-noisy-clip", "noisy-clip"), load_cached("emoji64-clip", "clip")
    assert noisy.clip_hash == clip.weights_hash and noisy.schedule is not None
    report = measure_noisy(Networks(noisy_clip=noisy, clip=clip), noisy.schedule, n=64, group=64)
    for what, high in (("clean image", 0.9), ("caption", 0.85)):
        tuned, plain = (report.rates[f"{name}: {what}"] for name in ("noisy CLIP", "un-tuned CLIP"))
        assert all(tuned[share].right > plain[share].right for share in FRACTIONS if 0.1 <= share <= 0.8)
        assert tuned[0.0].value > high and tuned[0.9].value < 0.3
    assert NoisyReport.from_dict(report.to_dict()) == report
    assert report.markdown().splitlines()[0].startswith("| t/T | noisy CLIP: clean image | noisy CLIP: caption |")


def test_an_encoder_that_knows_everything_is_always_right(tmp_path: Path) -> None:
    clip: Clip = steerdiff.load(clean(tmp_path))
    images = BothSplits(seed=2_000_000).batch(range(4))[0]
    truth = clip.feature_maps(images)
    networks = Networks(noisy_clip=lambda x, t: truth, clip=clip)
    report = measure_noisy(networks, NoiseSchedule.from_dict({"name": "linear"}), n=4, group=4)
    assert all(rate.right == 4 for rate in report.rates["noisy CLIP: clean image"].values())
    with pytest.raises(UserError, match="n is 5 and group 4; n must be a multiple of group"):
        measure_noisy(networks, NoiseSchedule.from_dict({"name": "linear"}), n=5, group=4)


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    clip = clean(tmp_path)
    with pytest.raises(UserError, match="compares the images of a batch; set accumulate to 1"):
        tiny(tmp_path, clip, accumulate=2)
    with pytest.raises(UserError, match="temperature is 0; it must be positive"):
        tiny(tmp_path, clip, temperature=0)
    with pytest.raises(UserError, match="anchor is -1; it must be at least 0"):
        tiny(tmp_path, clip, anchor=-1)
    with pytest.raises(UserError, match="noisy has unknown settings when"):
        train_noisy_clip(tiny(tmp_path / "run", clip, noisy={"when": "now"}), progress=False)
    with pytest.raises(UserError, match="clip is 'emoji64', which is no CLIP; give the weights of one"):
        train_noisy_clip(tiny(tmp_path / "run", Path("emoji64")), progress=False)

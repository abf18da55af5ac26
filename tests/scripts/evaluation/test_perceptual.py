"""CLIP score, LPIPS and DINO similarity of random networks against their libraries, called directly."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import lpips
import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.nn import functional

from steerdiff.errors import UserError
from steerdiff.io import save_image, to_uint8
from steerdiff.models import build_clip
from steerdiff.models.published.spec import ClipConfig
from steerdiff.scripts.evaluation.perceptual import clip_score, dino_similarity, lpips_backbone, lpips_distance
from steerdiff.train.scenes import EmojiScenes

from ..conftest import Done

DINO = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def images() -> Tensor:
    return to_uint8(EmojiScenes(0).batch(range(4))[0])


@pytest.fixture(scope="module")
def captions() -> list[str]:
    return EmojiScenes(0).batch(range(4))[1]


def pictures(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


# CLIP score


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP with CLIP's vocabulary, of a seed whose text and image vectors agree for three of four images."""
    torch.manual_seed(2)
    config = ClipConfig(
        embed_dim=16,
        vision_cfg={"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
        quick_gelu=True,
    )
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(build_clip(config).state_dict(), path)
    return path


def direct_cosines(clip_file: Path, images: Tensor, captions: list[str]) -> Tensor:
    clip = open_clip.CLIP(
        16,
        {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8, "head_width": 64},
        {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
        quick_gelu=True,
    ).eval()
    clip.load_state_dict(torch.load(clip_file))
    see = open_clip.image_transform(32, is_train=False)
    seen = clip.encode_image(torch.stack([see(picture) for picture in pictures(images)]))
    return functional.cosine_similarity(seen, clip.encode_text(open_clip.tokenize(captions))).detach()


def test_clip_score_is_a_hundred_times_the_cosine_and_never_negative(
    clip_file: Path, images: Tensor, captions: list[str]
) -> None:
    cosines = direct_cosines(clip_file, images, captions)
    scores = clip_score(clip_file, None, True, "cpu")(images, captions)
    flipped = clip_score(clip_file, None, True, "cpu")
    flipped.clip.network.text_projection.neg_()
    assert (cosines > 0.1).tolist() == [True, True, False, True]
    assert np.allclose(scores, 100 * cosines.clamp(min=0), atol=1e-4)
    assert np.allclose(flipped(images, captions), 100 * (-cosines).clamp(min=0), atol=1e-4)


def test_clip_score_says_what_it_depends_on(clip_file: Path) -> None:
    facts = clip_score(clip_file, None, True, "cpu").facts
    assert len(facts["sha256"]) == 64 and facts["side"] == 32 and "bicubic" in facts["resize"]


def test_a_clip_of_unknown_activation_is_refused(clip_file: Path) -> None:
    with pytest.raises(UserError, match="activation"):
        clip_score(clip_file, None, None, "cpu")


# LPIPS


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """A random AlexNet and its file, whose classifier is small here: LPIPS does not use it."""
    torch.manual_seed(1)
    network = torchvision.models.alexnet(weights=None)
    state = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("features.")}
    path = tmp_path_factory.mktemp("lpips") / "alexnet-owt-7be5be79.pth"
    torch.save({**state, "classifier.6.weight": torch.ones(2, 2)}, path)
    return network, path


def test_lpips_is_that_of_its_package(alexnet: tuple[torch.nn.Module, Path], images: Tensor) -> None:
    network, path = alexnet
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        direct = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    for own, theirs in zip(direct.net.parameters(), network.features.parameters(), strict=True):
        own.data = theirs.data
    unit = images.float() / 127.5 - 1
    expected = direct(unit[:2], unit[2:]).flatten().detach()
    ours = lpips_distance(path, "alex", "cpu")
    assert np.allclose(ours(images[:2], images[2:]), expected, rtol=1e-4) and bool((expected > 1e-3).all())
    assert ours(images, images).abs().max() == 0


def test_lpips_finds_torchvisions_cached_weights_and_fetches_none(
    alexnet: tuple[torch.nn.Module, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert lpips_backbone("alex") is None and lpips_backbone("vgg") is None
    cached = tmp_path / "hub" / "checkpoints" / alexnet[1].name
    cached.parent.mkdir(parents=True)
    cached.symlink_to(alexnet[1])
    assert lpips_backbone("alex") == cached


def test_another_backbone_than_lpips_needs_is_refused(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.ones(2, 2)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="missing"):
        lpips_distance(tmp_path / "a.pth", "alex", "cpu")
    with pytest.raises(UserError, match="no file; give vgg16-"):
        lpips_backbone("vgg", tmp_path / "absent.pth")


# DINO


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """A random vision transformer of timm and its file, with a head that is of no use."""
    torch.manual_seed(2)
    network = timm.create_model(DINO, pretrained=False, num_classes=0).eval()
    path = tmp_path_factory.mktemp("dino") / "dino.pth"
    torch.save({**network.state_dict(), "head.weight": torch.ones(2, 192), "head.bias": torch.ones(2)}, path)
    return network, path


def test_dino_similarity_is_the_cosine_of_timms_vectors(dino: tuple[torch.nn.Module, Path], images: Tensor) -> None:
    network, path = dino
    see = create_transform(**resolve_model_data_config(network), is_training=False)
    vectors = network(torch.stack([see(picture) for picture in pictures(images)]))
    expected = functional.cosine_similarity(vectors[:2], vectors[2:]).detach()
    ours = dino_similarity(path, DINO, "cpu")
    assert np.allclose(ours(images[:2], images[2:]), expected, atol=1e-5)
    assert ours(images, images).numpy() == pytest.approx(np.ones(4))
    assert ours.facts["side"] == 224 and "bicubic" in ours.facts["resize"]


def test_another_network_than_timm_knows_is_refused_with_the_nearest(dino: tuple[torch.nn.Module, Path]) -> None:
    with pytest.raises(UserError, match="did you mean vit_tiny_patch16_224"):
        dino_similarity(dino[1], "vit_tiny_patch16_22", "cpu")
    with pytest.raises(UserError, match="dino.pth"):
        dino_similarity(dino[1], "vit_small_patch16_224.dino", "cpu")


# the command


def save_folder(path: Path, images: Tensor, names: list[str], captions: list[str]) -> Path:
    for image, name, caption in zip(images, names, captions, strict=True):
        save_image(image.float() / 127.5 - 1, path / f"{name}.png", {"prompt": caption})
    return path


@pytest.fixture
def report(
    steerdiff: Callable[..., Done], tmp_path: Path, images: Tensor, captions: list[str]
) -> Callable[..., dict[str, dict[str, object]]]:
    """Compare the first two images, x and y, with the last three, in two folders, and return the rows by metric."""

    def run(names: list[str], *arguments: object) -> dict[str, dict[str, object]]:
        sides = save_folder(tmp_path / "a", images[:2], ["x", "y"], captions[:2])
        others = save_folder(tmp_path / "b", images[1:], names, captions[1:])
        flags = "--generated", sides, "--reference", others, "--out", tmp_path, *arguments
        done = steerdiff("evaluate", "samples", *flags)
        assert done.code == 0, done.err
        return {row["metric"]: row for row in json.loads((tmp_path / "samples.json").read_text())["rows"]}

    return run


def test_the_command_scores_images_with_the_captions_inside_them(
    report: Callable[..., dict[str, dict[str, object]]], clip_file: Path, images: Tensor, captions: list[str]
) -> None:
    row = report(["x", "y", "z"], "--clip", clip_file, "--clip-quick-gelu", "True", "--only", "clip")["clip"]
    scores = 100 * direct_cosines(clip_file, images[:2], captions[:2]).clamp(min=0)
    assert row["value"] == pytest.approx(float(scores.mean()), abs=1e-4) and row["n"] == [2]
    assert row["spread"] == pytest.approx(float(scores.std()) / 2**0.5, abs=1e-4)
    assert row["spread_is"] == "standard error"


def test_the_command_pairs_images_by_their_names(
    report: Callable[..., dict[str, dict[str, object]]],
    alexnet: tuple[torch.nn.Module, Path],
    dino: tuple[torch.nn.Module, Path],
    images: Tensor,
) -> None:
    flags = "--lpips-backbone", alexnet[1], "--dino", dino[1], "--dino-model", DINO, "--only", "lpips,dino"
    rows = report(["y", "x", "a"], *flags)  # sorted, the partner of the first image is the second
    partners = images[[2, 1]]
    distances = lpips_distance(alexnet[1], "alex", "cpu")(images[:2], partners)
    similarities = dino_similarity(dino[1], DINO, "cpu")(images[:2], partners)
    assert rows["lpips"]["value"] == pytest.approx(float(distances.mean()), rel=1e-4)
    assert rows["dino"]["value"] == pytest.approx(float(similarities.mean()), rel=1e-4)


def test_images_without_a_partner_are_named(
    report: Callable[..., dict[str, dict[str, object]]], alexnet: tuple[torch.nn.Module, Path]
) -> None:
    row = report(["x", "z", "a"], "--lpips-backbone", alexnet[1])["lpips"]
    assert row["value"] is None and "1 images have no partner" in str(row["missing"]) and "'y'" in str(row["missing"])

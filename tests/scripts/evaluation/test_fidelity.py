"""torch-fidelity's numbers against closed forms, and its networks as this library calls them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity import feature_extractor_inceptionv3 as inception

from steerdiff.errors import UserError
from steerdiff.io import to_uint8
from steerdiff.scripts.evaluation.fidelity import (
    Features,
    features_of,
    fid,
    inception_network,
    inception_score,
    kid,
    precision_recall,
    recogniser_network,
    statistics_of,
)
from steerdiff.scripts.evaluation.sample_sources import Source, scene_source
from steerdiff.train.benchmark import draw_cases, score_edits
from steerdiff.train.recogniser import reading_order
from steerdiff.train.scenes import OBJECTS, EmojiScenes


def gaussian(n: int, mean: list[float], deviation: list[float]) -> Tensor:
    """Return features whose sample mean and covariance are exactly these."""
    raw = np.random.default_rng(n).standard_normal((n, len(mean)))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    return torch.from_numpy(white * deviation + mean)


def images_of(images: Tensor) -> Source:
    return Source(title="images", n=len(images), size=(64, 64), read=lambda part: images[part])


def seen(source: Source, batch: int = 8) -> Features:
    return features_of(recogniser_network().build("cpu"), source, batch=batch, device="cpu", progress=None)


class Pictures(Dataset[Tensor]):
    def __init__(self, seed: int) -> None:
        self.images = to_uint8(EmojiScenes(seed).batch(range(40))[0])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Tensor:
        return self.images[number]


# closed forms


def test_fid_of_two_gaussians_is_its_closed_form() -> None:
    left, right = gaussian(200, [0, 1, 2], [1, 2, 3]), gaussian(300, [1, 1, 0], [2, 2, 0.5])
    expected = 1 + 4 + (1 - 2) ** 2 + 0 + (3 - 0.5) ** 2
    assert fid(statistics_of(left, "a"), statistics_of(right, "b")) == pytest.approx(expected, rel=1e-9)


def test_kid_of_one_subset_is_the_unbiased_estimate() -> None:
    left, right = gaussian(30, [0, 0, 0], [1, 1, 1]), gaussian(40, [0.5, 0, 0], [1, 2, 1])[:30]
    value, spread = kid(left, right, subsets=1, size=30, seed=1)
    kernel = [(a @ b.T / 3 + 1) ** 3 for a, b in ((left, left), (right, right), (left, right))]
    within = sum((k.sum() - k.diagonal().sum()) / (30 * 29) for k in kernel[:2])
    assert value == pytest.approx(float(within - 2 * kernel[2].mean()), rel=1e-9)
    assert spread == 0


def test_kid_draws_the_same_subsets_from_the_same_seed() -> None:
    left, right = gaussian(50, [0, 0], [1, 1]), gaussian(60, [0, 1], [1, 1])
    first, again = (kid(left, right, subsets=5, size=20, seed=7) for _ in range(2))
    assert first == again != kid(left, right, subsets=5, size=20, seed=8)


def test_precision_and_recall_of_clusters_are_as_drawn() -> None:
    near = gaussian(40, [0, 0], [0.1, 0.1])
    far = near + torch.tensor([100.0, 0.0])
    both = torch.cat([near, far]) + 1e-3
    assert precision_recall(near, both, neighbours=3) == (1.0, 0.5)  # true, but only half of what there is
    assert precision_recall(both, near, neighbours=3) == (0.5, 1.0)
    assert precision_recall(near, far, neighbours=3) == (0.0, 0.0)


def test_inception_score_counts_the_classes_that_are_sure() -> None:
    sure = torch.eye(5).repeat(20, 1) * 100
    assert inception_score(sure, splits=1, seed=0)[0] == pytest.approx(5)
    assert inception_score(torch.zeros(100, 5), splits=1, seed=0)[0] == pytest.approx(1)
    unsure = torch.eye(5)[:2].repeat(50, 1) * 100
    assert inception_score(unsure, splits=1, seed=0)[0] == pytest.approx(2)


# the recogniser in torch-fidelity


def test_all_numbers_are_those_of_torch_fidelity_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    left, right = Pictures(1), Pictures(2)
    network = recogniser_network()
    options = {"isc_splits": 2, "kid_subsets": 3, "kid_subset_size": 20, "rng_seed": 5, "samples_shuffle": True}
    theirs = torch_fidelity.calculate_metrics(
        **{"input1": left, "input2": right, "isc": True, "fid": True, "kid": True, "prc": True, **options},
        feature_extractor=network.registered,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    ours = [seen(images_of(side.images)) for side in (left, right)]
    a, b = (side.features for side in ours)
    assert kid(a, b, subsets=3, size=20, seed=5)[0] == pytest.approx(theirs["kernel_inception_distance_mean"])
    assert precision_recall(a, b, neighbours=3) == pytest.approx((theirs["precision"], theirs["recall"]))
    assert inception_score(ours[0].logits, splits=2, seed=5)[0] == pytest.approx(theirs["inception_score_mean"])
    distance = fid(statistics_of(a, "a"), statistics_of(b, "b"))
    assert distance == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert list(tmp_path.iterdir()) == []


def test_features_are_those_that_the_benchmark_measures_its_kid_in() -> None:
    cases = draw_cases("object", 3, 0)
    images = to_uint8(torch.stack([case.truth for case in cases]))
    assert np.allclose(seen(images_of(images)).features, score_edits(cases, images[:, None]).truths, atol=1e-5)


def test_logits_are_those_of_the_object_in_the_first_place() -> None:
    scenes = EmojiScenes(4, pairs=1.0)
    images = to_uint8(scenes.batch(range(6))[0])
    named = seen(images_of(images)).logits.argmax(1).tolist()
    first = [reading_order(scene.description).things[0][1] for scene in scenes.scenes(range(6))]
    assert [OBJECTS[number] for number in named] == first


def test_features_do_not_depend_on_the_batch() -> None:
    source = scene_source(3, 9)
    assert torch.allclose(seen(source, batch=4).features, seen(source, batch=9).features, atol=1e-5)


def test_images_of_another_size_are_resized_to_the_recognisers() -> None:
    small = to_uint8(EmojiScenes(0).batch(range(2))[0])
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    difference = (seen(images_of(large)).features - seen(images_of(small)).features).abs().max()
    assert difference < 0.2 * seen(images_of(small)).features.abs().max()


def test_features_tell_other_scenes_from_noise() -> None:
    scenes, others = seen(scene_source(1, 30)).features, seen(scene_source(2, 30)).features
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (30, 3, 64, 64), dtype=np.uint8))
    of_noise = seen(images_of(noise)).features
    size = {"subsets": 1, "size": 30, "seed": 0}
    assert kid(scenes, of_noise, **size)[0] > 10 * abs(kid(scenes, others, **size)[0])


# Inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights with the names and shapes of the published one."""
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None)
        torch.manual_seed(0)
        network = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), path)
    return path


def test_inception_gives_the_features_and_logits_of_torch_fidelity(weights: Path) -> None:
    network = inception_network(weights)
    assert network is not None and network.width == 2048
    images = to_uint8(EmojiScenes(0).batch(range(3))[0])
    ours = features_of(network.build("cpu"), images_of(images), batch=2, device="cpu", progress=None)
    direct = inception.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], str(weights))
    features, logits = direct(images)
    assert torch.allclose(ours.features, features.double(), atol=1e-5)
    assert torch.allclose(ours.logits, logits.double(), atol=1e-5)


def test_inception_is_looked_for_in_the_cache_and_never_fetched(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert inception_network() is None
    cached = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    cached.parent.mkdir(parents=True)
    cached.symlink_to(weights)
    network = inception_network()
    assert network is not None and network.file == cached


def test_other_weights_than_inceptions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"layer.weight": torch.ones(2, 2)}, path)
    network = inception_network(path)
    assert network is not None
    with pytest.raises(UserError, match="does not fit Inception"):
        network.build("cpu")
    with pytest.raises(UserError, match="no file; give weights-inception"):
        inception_network(tmp_path / "absent.pth")


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.mkdir, ("hostile-was-run",)


def test_code_in_a_file_of_weights_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": torch.ones(2), "x": Hostile()}, "bad.pth")
    network = inception_network(Path("bad.pth"))
    assert network is not None
    with pytest.raises(UserError):
        network.build("cpu")
    assert not Path("hostile-was-run").exists()

"""LPIPS of a local trunk against its package, gradients where a feature is 0, and the distance in a CLIP's maps."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import lpips
import pytest
import torch
import torchvision
from torch import Tensor

from steerdiff import UserError
from steerdiff.guidance.perceptual import FeatureDistance, clip_distance, lpips_distance, perceptual

from .toys import pictures

ALEX = "alexnet-owt-7be5be79.pth"


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("shelf") / ALEX
    torch.save(torchvision.models.alexnet(weights=None).features.state_dict(prefix="features."), path)
    return path


def test_lpips_is_that_of_its_package(trunk: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        direct = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = torch.load(trunk)
    for own, theirs in zip(direct.net.parameters(), state.values(), strict=True):
        own.data = theirs
    a, b = pictures(2, 64), pictures(2, 64, seed=1)
    ours = lpips_distance("alex", trunk)
    assert ours.name == "LPIPS 0.1 (alex)"
    expected = direct(a, b).flatten()
    assert expected.min() > 1e-4
    torch.testing.assert_close(ours(a, b), expected, rtol=1e-4, atol=1e-6)


def test_the_trunk_is_found_in_the_folder_of_weights(trunk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERDIFF_WEIGHTS", str(trunk.parent))
    a, b = pictures(1, 64), pictures(1, 64, seed=1)
    assert torch.equal(perceptual("lpips-alex")(a, b), lpips_distance("alex", trunk)(a, b))


def test_without_its_trunk_lpips_says_what_to_get_and_where_to_put_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("STEERDIFF_WEIGHTS", raising=False)
    with pytest.raises(UserError, match=f"get https://.*{ALEX} and put the file {ALEX} into the folder that STEERDIFF"):
        lpips_distance("alex")
    with pytest.raises(UserError, match="distance is 'lpips-squeeze'; LPIPS has lpips-alex, lpips-vgg"):
        perceptual("lpips-squeeze")
    with pytest.raises(UserError, match="which is no file; give vgg16-"):
        lpips_distance("vgg", tmp_path / "absent.pth")


def toy(image: Tensor) -> list[Tensor]:
    return [image, torch.cat([image, image.square()], dim=1)[..., ::2, ::2]]


def test_the_formula_is_the_mean_of_squared_differences_of_unit_features() -> None:
    a, b = pictures(2, 8), pictures(2, 8, seed=1)
    expected = torch.zeros(2)
    for f, g in zip(toy(a), toy(b), strict=True):
        for image in range(2):
            places = [
                (f[image, :, y, x] / f[image, :, y, x].norm() - g[image, :, y, x] / g[image, :, y, x].norm()) ** 2
                for y in range(f.shape[2])
                for x in range(f.shape[3])
            ]
            expected[image] += torch.stack(places).sum(1).mean() / 2
    torch.testing.assert_close(FeatureDistance(name="toy", features=toy)(a, b), expected, rtol=1e-5, atol=1e-6)


def test_weights_count_their_channel() -> None:
    a, b = pictures(2, 8), pictures(2, 8, seed=1)
    ones = (torch.full((3,), 0.5), torch.full((6,), 0.5))
    plain = FeatureDistance(name="toy", features=toy)(a, b)
    torch.testing.assert_close(FeatureDistance(name="toy", features=toy, weights=ones)(a, b), plain)
    none = (torch.zeros(3), torch.zeros(6))
    assert not FeatureDistance(name="toy", features=toy, weights=none)(a, b).any()


def test_a_feature_of_zero_has_a_finite_gradient() -> None:
    a = torch.zeros(1, 3, 8, 8, requires_grad=True)
    FeatureDistance(name="toy", features=toy)(a, pictures(1, 8)).sum().backward()
    assert a.grad is not None and torch.isfinite(a.grad).all()


def test_the_gradient_is_that_of_finite_differences() -> None:
    distance = FeatureDistance(name="toy", features=toy)
    a, b = pictures(1, 4), pictures(1, 4, seed=1)
    a.requires_grad_()
    distance(a, b).sum().backward()
    assert a.grad is not None
    for index in ((0, 0, 0, 0), (0, 2, 1, 3)):
        up, down = a.detach().clone(), a.detach().clone()
        up[index] += 1e-2
        down[index] -= 1e-2
        slope = float((distance(up, b) - distance(down, b)) / 2e-2)
        assert float(a.grad[index]) == pytest.approx(slope, rel=0.02, abs=1e-3)


def test_a_distance_in_a_clips_maps_is_zero_for_the_same_image_and_says_that_it_is_not_lpips() -> None:
    clip = SimpleNamespace(name="tiny", feature_maps=lambda image: SimpleNamespace(maps=toy(image), vector=None))
    distance, (a, b) = clip_distance(clip), (pictures(2, 8), pictures(2, 8, seed=1))
    assert distance.name == "feature distance in tiny (not LPIPS)"
    assert not distance(a, a).any() and bool((distance(a, b) > 0.1).all())
    assert torch.equal(perceptual("anything", clip)(a, b), distance(a, b))
    torch.testing.assert_close(distance(a, b)[1:], distance(a[1:], b[1:]))

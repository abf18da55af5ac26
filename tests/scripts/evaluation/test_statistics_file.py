"""Statistics in ``.npz`` files: what is written, what others wrote, and what is refused."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from steerdiff.errors import UserError
from steerdiff.scripts.evaluation.statistics_file import Statistics, open_npz, read_statistics, save_statistics


def covariance(width: int) -> np.ndarray:
    return np.cov(np.random.default_rng(width).standard_normal((3 * width, width)), rowvar=False)


def read(path: Path) -> Statistics:
    statistics = read_statistics(open_npz(path), str(path))
    assert statistics is not None
    return statistics


def test_statistics_that_are_written_are_read_again(tmp_path: Path) -> None:
    mu, sigma, stamp = np.arange(4.0), covariance(4), {"n": 7, "network": {"sha256": "ab"}}
    path = save_statistics(tmp_path / "a.npz", mu, sigma, stamp)
    again = read(path)
    assert np.array_equal(again.mu, mu) and np.array_equal(again.sigma, sigma) and again.stamp == stamp


def test_other_tools_read_the_file_without_pickle(tmp_path: Path) -> None:
    path = save_statistics(tmp_path / "a.npz", np.arange(4.0), covariance(4), {"n": 7})
    with np.load(path, allow_pickle=False) as file:
        assert file["mu"].dtype == file["sigma"].dtype == np.float64
        assert json.loads(str(file["steerdiff"][0])) == {"n": 7}


def test_a_file_of_adm_gives_statistics_and_keeps_its_images_apart(tmp_path: Path) -> None:
    path = tmp_path / "adm.npz"
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(path, arr_0=pixels, mu=np.ones(3), sigma=np.eye(3), mu_s=np.zeros(5), sigma_s=np.eye(5))
    statistics = read(path)
    assert statistics.width == 3 and statistics.stamp is None and np.array_equal(statistics.mu, np.ones(3))


def test_statistics_in_single_precision_become_double(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mu=np.ones(3, np.float32), sigma=covariance(3).astype(np.float32))
    assert read(tmp_path / "a.npz").mu.dtype == np.float64


SKEWED = np.array([[1.0, 0.5], [0.4, 1.0]])
BAD = {
    "one_is_missing": ({"mu": np.ones(2)}, "has mu alone"),
    "shapes_differ": ({"mu": np.ones(2), "sigma": np.eye(3)}, r"mu \[2\] and sigma \[3, 3\]"),
    "not_finite": ({"mu": np.array([1, np.nan]), "sigma": np.eye(2)}, "not finite"),
    "not_symmetric": ({"mu": np.ones(2), "sigma": SKEWED}, "not symmetric"),
    "not_numbers": ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "real numbers"),
    "a_damaged_stamp": ({"mu": np.ones(2), "sigma": np.eye(2), "steerdiff": np.array(["{"])}, "damaged stamp"),
    "an_empty_stamp": ({"mu": np.ones(2), "sigma": np.eye(2), "steerdiff": np.array([], str)}, "damaged stamp"),
    "a_stamp_of_another_kind": ({"mu": np.ones(2), "sigma": np.eye(2), "steerdiff": np.array(["3"])}, "damaged stamp"),
    "python_objects": ({"mu": np.array([{}], object), "sigma": np.eye(1)}, "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_statistics_are_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    arrays, message = BAD[case]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / "bad.npz")
    assert "bad.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez_compressed(whole, mu=np.ones(500), sigma=np.eye(500))
    for name, data in {"cut": whole.read_bytes()[:300], "text": b"hello", "empty": b""}.items():
        (tmp_path / f"{name}.npz").write_bytes(data)
        with pytest.raises(UserError, match=f"{name}.npz cannot be read"):
            open_npz(tmp_path / f"{name}.npz")
    np.save(tmp_path / "single.npy", np.ones(2))
    with pytest.raises(UserError, match="one array"):
        open_npz(tmp_path / "single.npy")
    with zipfile.ZipFile(tmp_path / "archive.npz", "w") as archive:
        archive.writestr("mu.txt", "1 2 3")
    with pytest.raises(UserError, match="holds mu.txt"):
        open_npz(tmp_path / "archive.npz")
    with pytest.raises(UserError, match="not a file"):
        open_npz(tmp_path / "absent.npz")


def test_statistics_are_written_to_npz_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not end in .npz"):
        save_statistics(tmp_path / "a.txt", np.ones(1), np.eye(1), {})

"""Statistics of features in the ``.npz`` form of pytorch-fid, clean-fid and ADM, and a stamp of their origin."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from steerdiff.errors import UserError, require
from steerdiff.io import atomic_write

__all__ = ["Statistics", "open_npz", "read_statistics", "save_statistics"]

_STAMP = "steerdiff"
_DAMAGE = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)
_ASYMMETRY = 1e-5  # of the largest entry: float32 sums of other tools differ by less

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Mean and covariance of features."""

    mu: npt.NDArray[np.float64]  #: [D]
    sigma: npt.NDArray[np.float64]  #: [D, D]
    path: str  #: where they were read
    stamp: Mapping[str, Any] | None = None  #: what steerdiff wrote of their origin; None if others wrote the file

    @property
    def width(self) -> int:
        """Number of features D."""
        return len(self.mu)


def open_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an ``.npz`` file, of which nothing is unpickled.

    Raises:
        UserError: It is missing, damaged or holds Python objects.
    """
    require(path.is_file(), f"{path} is not a file; give an .npz of images or of statistics")
    try:
        loaded = np.load(path, allow_pickle=False)
        require(isinstance(loaded, np.lib.npyio.NpzFile), f"{path} is one array and no .npz; save it with numpy.savez")
        with loaded as file:
            arrays = {name: file[name] for name in file.files}
    except UserError:
        raise
    except _DAMAGE as error:
        raise UserError(f"{path} cannot be read: {error}; it is damaged or no .npz of plain arrays") from error
    foreign = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]  # numpy gives their bytes
    require(not foreign, f"{path} is a zip that holds {', '.join(foreign[:3])}; an .npz holds arrays alone")
    return arrays


def read_statistics(arrays: Arrays, path: str) -> Statistics | None:
    """Return the statistics that ``mu`` and ``sigma`` of a file are; None where it has none.

    ADM's reference files also hold ``mu_s`` and ``sigma_s``, of spatial features, for sFID: they are left alone.

    Raises:
        UserError: One of the two is missing, they do not fit each other, are not finite or ``sigma`` not symmetric, or
            the stamp is damaged.
    """
    given = [name for name in ("mu", "sigma") if name in arrays]
    if not given:
        return None
    require(len(given) == 2, f"{path} has {given[0]} alone; statistics are both mu and sigma")
    kinds = [arrays[name].dtype.kind for name in given]
    require(set(kinds) <= set("fiu"), f"{path} holds mu or sigma of type {arrays['mu'].dtype}; they are real numbers")
    mu, sigma = (np.asarray(arrays[name], np.float64) for name in given)
    fits = mu.ndim == 1 and mu.size > 0 and sigma.shape == (len(mu), len(mu))
    require(fits, f"{path} has mu {list(mu.shape)} and sigma {list(sigma.shape)}; expected [D] and [D, D]")
    finite = bool(np.isfinite(mu).all() and np.isfinite(sigma).all())
    require(finite, f"{path} holds values that are not finite; make the statistics again")
    skew = float(np.abs(sigma - sigma.T).max())
    symmetric = skew <= _ASYMMETRY * float(np.abs(sigma).max())
    require(symmetric, f"{path} has a sigma that is not symmetric (by {skew:.3g}); it is no covariance")
    return Statistics(mu=mu, sigma=sigma, path=path, stamp=_read_stamp(arrays, path))


def _read_stamp(arrays: Arrays, path: str) -> Mapping[str, Any] | None:
    if _STAMP not in arrays:
        return None
    try:
        stamp = json.loads(str(arrays[_STAMP].reshape(-1)[0]))
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} has a damaged stamp ({error}); make the statistics again") from error
    require(isinstance(stamp, dict), f"{path} has a damaged stamp; make the statistics again")
    return dict(stamp)


def save_statistics(
    path: Path, mu: npt.NDArray[np.float64], sigma: npt.NDArray[np.float64], stamp: Mapping[str, Any]
) -> Path:
    """Write ``mu`` [D] and ``sigma`` [D, D] as float64, and the stamp as an array of one JSON text.

    Raises:
        UserError: The path does not end in ``.npz`` or cannot be written.
    """
    require(path.suffix == ".npz", f"{path} does not end in .npz, the form of statistics")
    text = np.array([json.dumps(stamp, sort_keys=True)])
    arrays: dict[str, Any] = {"mu": np.asarray(mu, np.float64), "sigma": np.asarray(sigma, np.float64), _STAMP: text}
    return atomic_write(path, lambda file: np.savez_compressed(file, **arrays))

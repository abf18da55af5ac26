"""Our UNet computes what the official networks compute, from the same weights by the same names."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from steerdiff.models import Control, Taps, build, load_state

from ..helpers import golden_files, golden_weight, load_golden

TOLERANCE = 2e-5  # of the largest value: the official code in float64 is 1e-6 to 2e-6 away from its own float32

FILES = golden_files("adm/unet_*.npz") + golden_files("sd/unet_*.npz")


def relative_error(result: Tensor, expected: Tensor) -> float:
    return float((result - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("path", FILES, ids=lambda path: Path(path).stem)
@torch.no_grad()
def test_the_unet_agrees_with_the_official_one(path):
    arrays, meta = load_golden(path)
    network = build(meta["class"], meta["kwargs"]).eval()
    keys = {name: tuple(shape) for name, shape in dict(meta["keys"]).items()}
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == keys
    weights = {name: golden_weight(name, shape, meta["weight_scale"]) for name, shape in keys.items()}
    load_state(network, {name: torch.as_tensor(value, dtype=torch.float32) for name, value in weights.items()})
    given = {name[3:]: torch.from_numpy(value) for name, value in arrays.items() if name.startswith("in.")}
    conditions = {name: given[name] for name in ("context", "y") if name in given}
    taps = Taps(h=True)
    outputs = {"out": network(given["x"], given["t"], control=Control(taps=taps), **conditions)}
    if "out.mid" in arrays:
        outputs["out.mid"] = taps.bottleneck
    if "out.frac" in arrays:
        outputs["out.frac"] = network(given["x"], given["t_frac"], **conditions)
    for name, output in outputs.items():
        assert relative_error(output, torch.from_numpy(arrays[name])) <= TOLERANCE, name


def test_golden_networks_are_there():
    assert len(FILES) >= 21

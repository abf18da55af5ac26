"""Our networks compute what the official ones compute, from the official weights by their own names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.models import Autoencoder, Control, EncoderUNet, Taps, build, load_state, upsampled

from ..helpers import golden_files, golden_weight, load_golden

TOLERANCE = 1e-5  # of the largest value: the official code in float64 is 1e-6 to 2e-6 away from its own float32

UNETS = [
    path
    for pattern in ("adm/unet_*", "adm/sr_*", "ddpm/model_*", "sd/unet_*", "sd/diffusers_unet_*")
    for path in golden_files(pattern)
]
CLASSIFIERS = golden_files("adm/classifier_*")
AUTOENCODERS = golden_files("sd/vae_*") + golden_files("sd/diffusers_vae_*")
#: Classes whose names of weights are ours too.
NAMED_AS_OURS = ("UNetModel", "SuperResModel", "EncoderUNetModel", "ldm ")


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def close(result: Tensor, expected: Any) -> bool:
    expected = torch.from_numpy(expected)
    return float((result - expected).abs().max() / expected.abs().max()) <= TOLERANCE


def arguments(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What the official class was built with, which a golden file says in one of four ways."""
    if "config.model" in meta:
        return {**meta["config.model"], "image_size": meta["config.data.image_size"]}
    if "ddconfig" in meta:
        return {"ddconfig": meta["ddconfig"], "embed_dim": meta["embed_dim"]}
    return meta["config"] if "config" in meta else meta["kwargs"]


def official(meta: Mapping[str, Any]) -> torch.nn.Module:
    """Our network for the class and the weights that a golden file stands for."""
    network = build(meta["class"], arguments(meta)).eval()
    shapes = {name: tuple(shape) for name, shape in meta["keys"].items()}
    if meta["class"].startswith(NAMED_AS_OURS):
        assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == shapes
    weights = {name: golden_weight(name, shape, meta["weight_scale"]) for name, shape in shapes.items()}
    load_state(network, {name: torch.as_tensor(value, dtype=torch.float32) for name, value in weights.items()})
    return network


def inputs(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name[3:]: torch.from_numpy(value) for name, value in arrays.items() if name.startswith("in.")}


@each(UNETS)
@torch.no_grad()
def test_the_unet_agrees_with_the_official_one(path):
    arrays, meta = load_golden(path)
    network, given = official(meta), inputs(arrays)
    conditions = {name: given[name] for name in ("context", "y") if name in given}
    if "low_res" in given:
        conditions["concat"] = upsampled(given["low_res"], given["x"].shape[2:])
    taps = Taps(h=True)
    outputs = {"out": network(given["x"], given["t"], control=Control(taps=taps), **conditions)}
    if "out.mid" in arrays:
        outputs["out.mid"] = taps.bottleneck
    if "out.frac" in arrays:
        outputs["out.frac"] = network(given["x"], given["t_frac"], **conditions)
    assert set(outputs) == {name for name in arrays if name.startswith("out")}
    assert [name for name, output in outputs.items() if not close(output, arrays[name])] == []


@each(CLASSIFIERS)
def test_the_classifier_and_its_gradient_agree_with_the_official_ones(path):
    arrays, meta = load_golden(path)
    network, given = official(meta), inputs(arrays)
    assert isinstance(network, EncoderUNet)
    x = given["x"].requires_grad_()
    logits = network(x, given["t"])
    log_prob = logits.log_softmax(dim=1)[range(len(x)), given["y"]]
    (grad_x,) = torch.autograd.grad(log_prob.sum(), x)
    outputs = {"out": logits, "out.log_prob": log_prob, "out.grad_x": grad_x}
    assert set(outputs) == {name for name in arrays if name.startswith("out")}
    assert [name for name, output in outputs.items() if not close(output.detach(), arrays[name])] == []


@each(AUTOENCODERS)
@torch.no_grad()
def test_the_autoencoder_agrees_with_the_official_one(path):
    arrays, meta = load_golden(path)
    network, given = official(meta), inputs(arrays)
    assert isinstance(network, Autoencoder)
    outputs = {"out.moments": network.moments(given["x"]), "out.decoded": network.decode(given["z"])}
    assert set(outputs) == {name for name in arrays if name.startswith("out")}
    assert [name for name, output in outputs.items() if not close(output, arrays[name])] == []


def test_golden_networks_are_there():
    assert len(UNETS) >= 30 and len(CLASSIFIERS) >= 7 and len(AUTOENCODERS) >= 6


def test_a_state_dict_of_another_network_is_refused_by_name():
    _, ddpm = load_golden(golden_files("ddpm/model_eps")[0])
    _, other = load_golden(golden_files("ddpm/model_two_blocks")[0])
    network = build(ddpm["class"], arguments(ddpm))
    weights = {name: torch.zeros(shape) for name, shape in other["keys"].items()}
    with pytest.raises(UserError, match=r"does not fit this architecture: \d+ left over: down.0.block.1.conv1.bias, "):
        load_state(network, weights)

"""Published weights do what they should on real images: `STEERDIFF_WEIGHTS=folder make test-weights`.

Each checkpoint found is loaded by its preset and asked about images that were noised by a known noise: a wrong order of
heads, a wrong parameterisation or scale, or swapped tensors all make the answer unlike that noise.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import steerdiff
from steerdiff.guidance import Model
from steerdiff.guidance.noisy_classifier import NoisyClassifier
from steerdiff.io import save_image
from steerdiff.methods import DDIMInversion
from steerdiff.samplers import Noise

from .finding import FOLDER, find, pictures, present, scenes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OUT = Path(os.environ.get("OUT", "out")) / "weights"

if FOLDER is None:
    pytest.skip("STEERDIFF_WEIGHTS names no folder with published weights", allow_module_level=True)


@pytest.fixture(scope="module", params=present("adm", "ddpm", "latent", "classifier"))
def loaded(request: pytest.FixtureRequest) -> Any:
    return steerdiff.load(find(request.param), request.param, device=DEVICE)


def diffusion(loaded: Any) -> Model:
    if not isinstance(loaded, Model):
        pytest.skip("no diffusion model")
    return loaded


def extra_of(model: Model, images: Tensor) -> Tensor | None:
    """What the network sees beside the state, from the images themselves."""
    if model.extra.kind == "low_res":
        side = model.extra.low_res_size
        return model.low_res_input(torch.nn.functional.interpolate(images, size=(side, side), mode="area"))
    if model.extra.kind == "inpainting":
        mask = torch.zeros(1, 1, *model.size)
        mask[..., : model.size[0] // 2, :] = 1
        return model.inpainting_input(images, mask)
    return model.depth_input(images.mean(1, keepdim=True)) if model.extra.kind == "depth" else None


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@torch.no_grad()
@pytest.mark.parametrize(("share", "least"), [(0.1, 0.5), (0.4, 0.9), (0.8, 0.97)])
def test_the_network_names_the_noise_in_a_real_image(loaded: Any, share: float, least: float) -> None:
    model = diffusion(loaded)
    images = pictures(model.size).to(DEVICE)
    x0 = model.encode(images)
    level = model.schedule.level(round(share * (model.schedule.T - 1)))
    eps = Noise(7, like=x0)()
    label = 0 if model.num_classes is not None else None
    denoise = model.denoiser(y=label, extra=extra_of(model, images), clip="none")
    assert correlation(denoise(model.schedule.q_sample(x0, level, eps), level).eps, eps) > least


@torch.no_grad()
def test_the_first_stage_gives_real_images_back(loaded: Any) -> None:
    model = diffusion(loaded)
    if model.autoencoder is None:
        pytest.skip("a pixel model")
    images = pictures(model.size).to(DEVICE)
    error = (model.decode(model.encode(images)) - images).square().mean()
    assert -10 * math.log10(float(error) / 4) > 20


@torch.no_grad()
def test_an_inverted_image_comes_back(loaded: Any) -> None:
    model = diffusion(loaded)
    if model.extra.kind != "plain" or model.num_classes is not None:
        pytest.skip("inversion runs on models that need no label and no further input")
    images = pictures(model.size, count=1).to(DEVICE)
    back = DDIMInversion(steps=40, t0=0.5)(model, images)
    reference = model.decode(model.encode(images))
    error = (back - reference).square().mean()
    assert -10 * math.log10(float(error) / 4) > 20


@torch.no_grad()
def test_samples_are_finite_and_saved_to_be_looked_at(loaded: Any) -> None:
    model = diffusion(loaded)
    images = pictures(model.size, count=1).to(DEVICE)
    label = 207 if model.num_classes == 1000 else 0 if model.num_classes is not None else None
    prompt = "a photograph of an astronaut riding a horse" if model.text is not None else None
    drawn = model.sample(prompt, y=label, steps=20, solver="ddim", spacing="trailing", extra=extra_of(model, images))
    assert bool(drawn.isfinite().all()) and float(drawn.std()) > 0.05
    save_image(drawn, OUT / f"{model.name}.png", {"weights": model.name, "sha256": model.weights_hash})


def test_a_classifier_has_an_opinion_and_a_gradient(loaded: Any) -> None:
    if not isinstance(loaded, NoisyClassifier):
        pytest.skip("no classifier")
    x = pictures((loaded.image_size, loaded.image_size)).to(DEVICE).requires_grad_()
    logits = loaded(x, torch.zeros(len(x), device=DEVICE))
    (gradient,) = torch.autograd.grad(logits.log_softmax(1)[:, 0].sum(), x)
    assert logits.shape == (len(x), loaded.num_classes) and float(logits.std()) > 0.5
    assert bool(gradient.isfinite().all()) and float(gradient.abs().max()) > 0


@torch.no_grad()
@pytest.mark.parametrize("name", present("clip"))
def test_a_clip_finds_the_caption_of_a_picture(name: str) -> None:
    clip = steerdiff.load(find(name), name, device=DEVICE)
    examples = scenes(6)
    images = torch.stack([example.image for example in examples]).to(DEVICE)
    texts = [f"a picture of {example.caption}" for example in examples]
    seen, said = clip.image_features(images), clip.text_features(texts)
    assert int(((seen @ said.T).argmax(1).cpu() == torch.arange(6)).sum()) >= 4  # one by chance

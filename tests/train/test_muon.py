from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from steerdiff.errors import UserError
from steerdiff.train.diffusion import build_model
from steerdiff.train.muon import _STEPS, Muon, orthogonalize
from steerdiff.train.optimizers import make_optimizers, rate_factor

from .runs import tiny_config


def matrix(rows: int, columns: int, spectrum: Tensor) -> Tensor:
    """A matrix of these singular values, in float64."""
    generator = torch.Generator().manual_seed(0)
    k = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, k, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns, k, generator=generator, dtype=torch.float64))[0]
    return (left * spectrum.double()) @ right.T


def plain_newton_schulz(x: Tensor) -> Tensor:
    """The published iteration on X itself (Jordan et al. 2024), for wide matrices."""
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def steps_on_numbers(values: Tensor) -> Tensor:
    """What the iteration makes of singular values, in exact arithmetic."""
    for a, b, c in _STEPS:
        values = a * values + b * values**3 + c * values**5
    return values


def test_the_polynomials_take_small_and_large_singular_values_near_one() -> None:
    values = steps_on_numbers(torch.logspace(math.log10(0.003), 0, 10_000, dtype=torch.float64))
    assert values.min() > 0.8 and values.max() < 1.21
    assert steps_on_numbers(torch.tensor(1e-6, dtype=torch.float64)) < 1e-3  # noise directions are not blown up


@pytest.mark.parametrize("condition", [1e1, 1e3, 1e6, 1e100])
@pytest.mark.parametrize("shape", [(96, 96), (96, 120), (96, 300), (300, 96), (128, 1152)])
def test_singular_values_follow_the_polynomials(shape: tuple[int, int], condition: float) -> None:
    spectrum = torch.logspace(0, -math.log10(condition), min(shape), dtype=torch.float64)
    x = matrix(*shape, spectrum)
    values = torch.linalg.svdvals(orthogonalize(x[None].float())[0]).double()
    expected = steps_on_numbers(spectrum / spectrum.norm()).sort(descending=True).values
    # Rounding of the Gram matrix, 1e-7, grows by the square of the steps' slopes at 0, 9e4, in the weakest directions.
    assert (values - expected).abs().max() < 0.01


def test_both_forms_of_the_iteration_agree() -> None:
    x = matrix(40, 90, torch.linspace(0.01, 1, 40))[None]
    direct = x / x.norm()
    for a, b, c in _STEPS:
        gram = direct @ direct.mT
        direct = a * direct + (b * gram + c * gram @ gram) @ direct
    torch.testing.assert_close(orthogonalize(x), direct)


def test_singular_vectors_stay() -> None:
    x = matrix(20, 50, torch.linspace(0.2, 1, 20))
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    core = left.mT @ orthogonalize(x[None])[0] @ right.mT
    assert (core - torch.diag(core.diagonal())).abs().max() < 1e-10


def test_a_zero_matrix_stays_zero() -> None:
    assert not orthogonalize(torch.zeros(2, 8, 16)).any()


def test_one_step_follows_the_formula_for_a_convolution() -> None:
    weight = nn.Parameter(torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)))
    before, grads = weight.detach().clone(), []
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    momentum, expected = torch.zeros(8, 36), before.reshape(8, 36)
    for step in range(2):
        grads.append(torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(step + 1)))
        weight.grad = grads[-1].clone()
        optimizer.step()
        flat = grads[-1].reshape(8, 36)
        momentum = 0.9 * momentum + 0.1 * flat
        update = orthogonalize((0.1 * flat + 0.9 * momentum)[None])[0]
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 0.2 * math.sqrt(36) * update
    torch.testing.assert_close(weight.detach().reshape(8, 36), expected, rtol=1e-4, atol=1e-5)


def test_updates_have_the_size_of_adamw() -> None:
    for shape in [(64, 64), (32, 128), (16, 8, 3, 3)]:
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        Muon([weight], lr=1.0).step()
        assert 0.1 < weight.detach().square().mean().sqrt() < 0.25  # AdamW's usual root mean square is 0.2 to 0.4


def test_memory_format_does_not_change_the_step() -> None:
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(torch.ones(8, 4, 3, 3).contiguous(memory_format=layout))
        gradient = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
        weight.grad = gradient.contiguous(memory_format=layout)
        Muon([weight], lr=0.1).step()
        results.append(weight.detach())
    torch.testing.assert_close(results[0], results[1])


def test_vectors_are_refused() -> None:
    with pytest.raises(UserError, match=r"shapes \[\[5\]\].*AdamW"):
        Muon([nn.Parameter(torch.zeros(5))])


def test_muon_gets_the_inner_matrices_and_adamw_the_rest(tmp_path: Path) -> None:
    model = build_model(tiny_config(tmp_path))
    adamw, muon = make_optimizers(model, kind="muon", learning_rate=1e-3, weight_decay=0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    to_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    to_adamw = {names[id(p)]: group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    assert to_muon.isdisjoint(to_adamw) and len(to_muon) + len(to_adamw) == len(names)
    for name in (
        "unet.input_blocks.0.0.weight",
        "unet.out.2.weight",
        "unet.time_embed.0.weight",
        "text.embedding.weight",
    ):
        assert to_adamw[name] == 0.1
    for name in ("unet.input_blocks.1.0.in_layers.2.weight", "text.layers.0.qkv.weight"):
        assert name in to_muon
    assert to_adamw["unet.out.0.weight"] == 0 and to_adamw["text.norm.bias"] == 0


@pytest.mark.parametrize(
    ("step", "decay", "expected"),
    [
        (0, "none", 0.1),
        (9, "none", 1.0),
        (99, "none", 1.0),
        (80, "linear", 1.0),
        (90, "linear", 0.5),
        (99, "linear", 0.05),
        (90, "cosine", 0.5),
        (85, "cosine", 0.5 + 0.5 * math.cos(math.pi / 4)),
    ],
)
def test_learning_rate_rises_stays_and_falls(step: int, decay: str, expected: float) -> None:
    factor = rate_factor(step, steps=100, warmup_steps=10, decay=decay, decay_steps=20)  # type: ignore[arg-type]
    assert factor == pytest.approx(expected)

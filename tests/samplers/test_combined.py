"""Sums of images: the expression's bits, in every layout and place, its gradients, and nothing else touched."""

from __future__ import annotations

import platform
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from steerdiff.samplers.combined import combined, plus

X86 = platform.machine().lower() in ("x86_64", "amd64")
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "half of the channels": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "transposed": lambda x: x.mT.contiguous().mT,
}


def images(count: int, shape: tuple[int, ...] = (3, 3, 5, 7), dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(count)]


@pytest.mark.skipif(not X86, reason="elsewhere a compiler may fuse the product into the sum")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", [1, 7, 64])
def test_a_sum_has_the_bits_of_its_expression(side: int, dtype: torch.dtype, layout: str) -> None:
    x, y, z = images(3, (2, 3, side, side), dtype)
    y = LAYOUTS[layout](y)
    kept = [one.clone() for one in (x, y, z)]
    assert torch.equal(combined((0.3, x), (-1.7, y), (0.999, z)), 0.3 * x + -1.7 * y + 0.999 * z)
    assert torch.equal(plus(y, -0.3, x), y - 0.3 * x)
    assert all(torch.equal(one, before) for one, before in zip((x, y, z), kept, strict=True))


@pytest.mark.parametrize("factor", [0.7, torch.tensor([0.7, -0.2, 3.0]).reshape(3, 1, 1, 1)])
def test_an_image_has_the_same_bits_alone_and_in_a_batch(factor: float | Tensor) -> None:
    x, y = images(2)
    whole = combined((factor, x), (0.1, y), (factor, y))
    for i in range(3):
        own = factor if isinstance(factor, float) else factor[i : i + 1]
        row, other = x[i : i + 1], y[i : i + 1]
        assert torch.equal(combined((own, row), (0.1, other), (own, other)), whole[i : i + 1])


def test_factors_of_one_tensor_are_added_before_anything_is_multiplied() -> None:
    x, y = images(2)
    assert torch.equal(combined((0.1, x), (0.7, y), (0.2, x)), combined((0.1 + 0.2, x), (0.7, y)))
    by_image = torch.tensor([0.5, 0.25, 2.0]).reshape(3, 1, 1, 1)
    assert torch.equal(combined((by_image, x), (0.2, x)), (by_image + 0.2) * x)
    assert not torch.equal(combined((0.1, x), (0.7, y), (0.2, x.clone())), combined((0.1 + 0.2, x), (0.7, y)))


def test_gradients_are_those_of_the_expression() -> None:
    x, y, z = (image.requires_grad_() for image in images(3, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda *xyz: combined(*zip((0.3, -2.0, 1.0), xyz, strict=True)), (x, y, z))
    assert torch.autograd.gradcheck(lambda x, y: plus(x, -0.4, y), (x, y))


def test_what_was_imported_without_gradients_serves_where_they_are_kept() -> None:
    x, y = images(2)
    y.requires_grad_()
    with torch.inference_mode():
        combined((1.0, x), (2.0, x))
    combined((1.0, x), (2.0, y)).sum().backward()
    assert y.grad is not None and torch.all(y.grad == 2)


def test_wider_and_broader_terms_make_a_wider_and_broader_sum() -> None:
    narrow, wide = images(1)[0], images(1, (1, 3, 5, 7), torch.float64)[0]
    for terms in (((0.5, narrow), (0.25, wide)), ((0.5, wide), (0.25, narrow))):
        found = combined(*terms)
        assert found.dtype == torch.float64 and found.shape == narrow.shape
        assert torch.allclose(found, terms[0][0] * terms[0][1].double() + terms[1][0] * terms[1][1].double())

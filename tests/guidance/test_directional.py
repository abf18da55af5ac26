"""Directional losses: unit directions, flips, averages, and the values at the ends."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from steerdiff import UserError
from steerdiff.guidance.directional import (
    GENERAL_TEMPLATES,
    directional_cosine,
    directional_loss,
    filled,
    text_direction,
)


class Texts:
    """Unit vectors that depend on the text alone."""

    def text_features(self, texts: Sequence[str]) -> Tensor:
        rows = [torch.randn(16, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
        return functional.normalize(torch.stack(rows), dim=-1)


def test_the_direction_has_length_one_and_flips_with_the_texts() -> None:
    there, back = (text_direction(Texts(), *pair, GENERAL_TEMPLATES) for pair in (("cat", "dog"), ("dog", "cat")))
    assert float(there.norm()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(there, -back)


def test_templates_are_averaged_before_the_direction_is_scaled() -> None:
    templates = ("a {}", "two of {}", "{} here")
    clip = Texts()
    parts = [clip.text_features([filled(t, "cat"), filled(t, "owl")]) for t in templates]
    mean = torch.stack([after - before for before, after in parts]).mean(0)
    expected = mean / mean.norm()
    torch.testing.assert_close(text_direction(clip, "cat", "owl", templates), expected)
    assert not torch.allclose(text_direction(clip, "cat", "owl"), expected, atol=0.05)


def test_articles_follow_the_word_that_is_filled_in() -> None:
    assert filled("a {} cat on a blue background", "orange") == "an orange cat on a blue background"
    assert filled("An {} cat", "red") == "A red cat"
    assert filled("the {}, not a cat", "owl") == "the owl, not a cat"


def test_the_loss_is_zero_along_the_direction_log_two_across_it_and_large_against_it() -> None:
    source, direction = functional.normalize(torch.randn(1, 16).double(), dim=-1), torch.zeros(16).double()
    direction[0] = 1
    across = torch.zeros(16).double()
    across[1] = 1
    step = 1e-3
    free = source - source[:, :2].sum() * 0  # an edit may point anywhere in a small neighbourhood

    def cosine_of(move: Tensor) -> tuple[float, float]:
        edited = functional.normalize(free + step * move, dim=-1)
        unit = functional.normalize(edited - source, dim=-1)[0]
        along = directional_loss(edited, source, unit)
        against = directional_loss(edited, source, -unit)
        return float(along), float(against)

    for move in (direction, across):
        along, against = cosine_of(move)
        assert along == pytest.approx(0, abs=2e-4) and against > 8
    edited = torch.tensor([[1.0, 0.1, 0.0]])
    orthogonal = torch.tensor([0.0, 0.0, 1.0])
    assert float(directional_loss(edited, torch.tensor([[1.0, 0.0, 0.0]]), orthogonal)) == pytest.approx(math.log(2))


def test_each_image_is_compared_with_its_own_source_and_lengths_do_not_matter() -> None:
    edited, source = torch.randn(3, 8), torch.randn(3, 8)
    direction = functional.normalize(torch.randn(8), dim=0)
    together = directional_cosine(edited, source, direction)
    assert together.shape == (3,) and bool((together.abs() <= 1).all())
    for k in range(3):
        alone = directional_cosine(edited[k : k + 1], source[k : k + 1], direction)
        torch.testing.assert_close(together[k : k + 1], alone)
    torch.testing.assert_close(directional_cosine(7 * edited, 0.1 * source, direction), together)


def test_the_gradient_is_that_of_finite_differences_and_points_where_that_of_the_papers_loss_does() -> None:
    torch.manual_seed(0)
    edited = functional.normalize(torch.randn(1, 6), dim=-1).requires_grad_()
    source, direction = functional.normalize(torch.randn(1, 6), dim=-1), functional.normalize(torch.randn(6), dim=0)
    (ours,) = torch.autograd.grad(directional_loss(edited, source, direction).sum(), edited)
    (papers,) = torch.autograd.grad((1 - directional_cosine(edited, source, direction)).sum(), edited)
    cosine = float(directional_cosine(edited, source, direction))
    torch.testing.assert_close(ours, papers / (1 + cosine), rtol=1e-4, atol=1e-6)
    step, numeric = 1e-2, torch.zeros(6)
    for k in range(6):
        shift = torch.zeros(1, 6)
        shift[0, k] = step
        ends = [float(directional_loss(edited + sign * shift, source, direction)) for sign in (1, -1)]
        numeric[k] = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(ours[0], numeric, rtol=2e-2, atol=2e-3)


def test_an_image_that_did_not_move_has_cosine_zero_and_a_finite_gradient() -> None:
    source = torch.randn(1, 8)
    edited = source.clone().requires_grad_()
    loss = directional_loss(edited, source, functional.normalize(torch.randn(8), dim=0))
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert float(loss) == pytest.approx(math.log(2), abs=1e-3)
    assert edited.grad is not None and torch.isfinite(edited.grad).all()


@pytest.mark.parametrize(
    ("source", "target", "templates", "message"),
    [
        ("", "dog", ("{}",), "source_text is empty; say what the image shows"),
        ("cat", " ", ("{}",), "target_text is empty"),
        ("cat", "cat", ("{}",), "source_text and target_text are both 'cat'; give two different texts"),
        ("cat", "dog", ("{}", "a photo"), r"the templates \['a photo'\] have no {}; mark where the words go"),
    ],
)
def test_texts_that_say_no_direction_are_named(
    source: str, target: str, templates: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        text_direction(Texts(), source, target, templates)

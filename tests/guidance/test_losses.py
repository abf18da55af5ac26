"""Similarities in CLIP features: what each one sees and does not see, and that no image knows of another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from steerdiff import UserError
from steerdiff.guidance.losses import (
    content_similarity,
    gram,
    image_similarity,
    structure_similarity,
    style_similarity,
    text_similarity,
)
from steerdiff.models.clip_towers import ClipFeatures
from steerdiff.samplers import Noise

SHAPES = ((4, 6, 6), (5, 3, 3))
WIDTH = 7


def features(count: int = 3, seed: int = 0) -> ClipFeatures:
    maps = tuple(Noise(seed + 100 * j, (count, *shape))().double() for j, shape in enumerate(SHAPES, 1))
    return ClipFeatures(maps, Noise(seed, (count, WIDTH))().double())


def one(value: ClipFeatures, i: int) -> ClipFeatures:
    return ClipFeatures(tuple(part[i : i + 1] for part in value.maps), value.vector[i : i + 1])


def shuffled(value: ClipFeatures) -> ClipFeatures:
    """The same features at other places, one order for all channels and images."""
    maps = []
    for part in value.maps:
        order = torch.randperm(part[0, 0].numel(), generator=torch.Generator().manual_seed(3))
        maps.append(part.flatten(2)[:, :, order].reshape(part.shape))
    return ClipFeatures(tuple(maps), value.vector)


KINDS: dict[str, Callable[[ClipFeatures, ClipFeatures], Tensor]] = {
    "content": content_similarity,
    "structure": structure_similarity,
    "style": style_similarity,
}
X, Y = features(seed=0), features(seed=50)


def test_text_and_content_are_cosines_of_vectors_that_need_not_have_length_one() -> None:
    expected = torch.nn.functional.cosine_similarity(X.vector, Y.vector)
    torch.testing.assert_close(content_similarity(X, Y), expected)
    torch.testing.assert_close(text_similarity(X, Y.vector * 7), expected)
    torch.testing.assert_close(
        text_similarity(X, Y.vector[:1]), torch.nn.functional.cosine_similarity(X.vector, Y.vector[:1])
    )


def test_structure_is_the_papers_sum_of_mean_squares() -> None:
    for i in range(3):
        expected = 0.0
        for ours, theirs in zip(X.maps, Y.maps, strict=True):
            c, h, w = ours.shape[1:]
            expected -= float((ours[i] - theirs[i]).norm() ** 2) / (c * h * w)
        assert float(structure_similarity(X, Y)[i]) == pytest.approx(expected)


def test_style_of_one_image_is_the_official_formula() -> None:
    for i in range(3):
        expected = 0.0
        for ours, theirs in zip(X.maps, Y.maps, strict=True):
            c, h, w = ours.shape[1:]
            a, b = ((part[i].reshape(c, -1) / (c * h * w) ** 0.5) for part in (ours, theirs))
            expected -= 1e10 / len(SHAPES) * float((a @ a.T - b @ b.T).square().mean())
        assert float(style_similarity(X, Y)[i]) == pytest.approx(expected)
        assert float(style_similarity(one(X, i), one(Y, i), mixes_batch=True)) == pytest.approx(expected)


def test_the_gram_matrix_of_a_batch_as_in_the_official_code_couples_its_images() -> None:
    b = X.vector.shape[0]
    expected = 0.0
    for ours, theirs in zip(X.maps, Y.maps, strict=True):
        rows = [part.reshape(b * part.shape[1], -1) / part.numel() ** 0.5 for part in (ours, theirs)]
        grams = [part @ part.T for part in rows]
        expected -= 1e10 / len(SHAPES) * float((grams[0] - grams[1]).square().mean())
    mixed = style_similarity(X, Y, mixes_batch=True)
    assert float(mixed.sum()) == pytest.approx(expected)
    alone = torch.cat([style_similarity(one(X, i), one(Y, i), mixes_batch=True) for i in range(b)])
    assert float((mixed - alone).abs().min()) > 0.01 * float(alone.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_each_image_of_a_batch_has_the_similarity_it_has_alone(kind: str) -> None:
    together = KINDS[kind](X, Y)
    assert together.shape == (3,)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], KINDS[kind](one(X, i), one(Y, i)))
    torch.testing.assert_close(KINDS[kind](X, one(Y, 1)), KINDS[kind](X, features_of_one(Y, 1, 3)))


def features_of_one(value: ClipFeatures, i: int, count: int) -> ClipFeatures:
    single = one(value, i)
    return ClipFeatures(tuple(part.expand(count, -1, -1, -1) for part in single.maps), single.vector.expand(count, -1))


def test_style_does_not_see_where_features_are_and_structure_does() -> None:
    torch.testing.assert_close(style_similarity(shuffled(X), Y), style_similarity(X, Y))
    assert float((structure_similarity(shuffled(X), Y) - structure_similarity(X, Y)).abs().min()) > 0.01
    assert style_similarity(shuffled(X), X).abs().max() < 1e-15 * 1e10
    assert structure_similarity(shuffled(X), X).max() < -0.1


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_most_like_itself(kind: str) -> None:
    best = 1.0 if kind == "content" else 0.0
    torch.testing.assert_close(KINDS[kind](X, X), torch.full((3,), best, dtype=torch.float64))
    assert (KINDS[kind](X, Y) < best).all()


@pytest.mark.parametrize("kind", ["structure", "style"])
def test_layers_choose_maps_and_all_are_the_sum_or_the_mean_of_each(kind: str) -> None:
    single = torch.stack([image_similarity(kind, X, Y, [j]) for j in (0, -1)])  # type: ignore[arg-type]
    whole = image_similarity(kind, X, Y)  # type: ignore[arg-type]
    torch.testing.assert_close(whole, single.sum(0) if kind == "structure" else single.mean(0))
    assert not torch.allclose(single[0], single[1])


def test_half_precision_maps_have_gram_matrices_in_float32() -> None:
    maps = X.maps[0].bfloat16()
    assert gram(maps).dtype == torch.float32
    torch.testing.assert_close(gram(maps), gram(maps.float()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: text_similarity(X, Y.vector[:, :3]),
            r"the text's features are \[3, 3\] and the images' \[3, 7\]; give",
        ),
        (lambda: text_similarity(X, Y.vector[:2]), r"the text's features are \[2, 7\] and the images' \[3, 7\]"),
        (lambda: structure_similarity(X, Y, [2]), r"layers are \[2\]; this encoder has 2 maps, from 0 to 1"),
        (lambda: style_similarity(X, Y, (0, -3)), r"layers are \[0, -3\]; this encoder has 2 maps"),
        (lambda: structure_similarity(ClipFeatures((), X.vector), X), "this encoder gives no feature maps"),
        (lambda: image_similarity("shape", X, Y), "the image loss is 'shape'; known are content, structure, style"),
    ],
)
def test_bad_features_and_layers_get_a_clear_error(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()

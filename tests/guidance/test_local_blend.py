"""Local blend against the official notebooks' masks and states, and where its limits leave nothing to blend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from steerdiff import UserError
from steerdiff.guidance.local_blend import LocalBlend
from steerdiff.models.control import Site, Taps
from steerdiff.samplers import CLEAN, Level, Move, Noise, Step

from ..helpers import golden_files, load_golden

FILES = golden_files("p2p/local_blend*")
GOLDEN = pytest.mark.parametrize("path", FILES, ids=lambda path: Path(path).stem)


def taps_of(weights: Tensor, maps: Tensor, calls: int = 1) -> Taps:
    """Taps that have kept ``maps`` [rows, layers, h, w, L] of one call for each layer."""
    cells = (maps.shape[2], maps.shape[3])
    taps = Taps(weights=weights, cells=cells)
    for layer in range(maps.shape[1]):
        site = Site(f"layer{layer}", "cross", "up", 4)
        taps.sums[site] = torch.einsum("bkl,bhwl->bkhw", weights, maps[:, layer]).flatten(2)
    taps.calls = calls
    return taps


def golden(path: Path, *names: str, **fields: Any) -> tuple[LocalBlend, Tensor, dict[str, Any]]:
    arrays, meta = load_golden(path)
    weights = torch.stack([torch.from_numpy(arrays[name]).reshape(2, -1) for name in names], 1)
    maps = torch.from_numpy(arrays["in.maps"])[:, :, 0]
    fields = {"threshold": meta["th"][0], "subtract_threshold": meta["th"][1], **fields}
    blend = LocalBlend(taps=taps_of(weights, maps, 7), source=(0,), target=(1,), **fields)
    return blend, torch.from_numpy(arrays["in.x"]), arrays


def after(blend: LocalBlend, x: Tensor, index: int = 0) -> Tensor:
    move = Move(here=Level(5.0, 0.5), there=CLEAN, index=index, total=20)
    return blend(Step(x), move, Noise(0, like=x))


@GOLDEN
@pytest.mark.parametrize(
    ("out", "names", "variant"),
    [
        ("v1", ("in.alpha",), "p2p"),
        ("v2", ("in.alpha",), "null-text"),
        ("v2_sub", ("in.alpha", "in.sub"), "null-text"),
    ],
)
def test_masks_and_states_equal_those_of_the_official_notebooks(
    path: Path, out: str, names: tuple[str, ...], variant: str
) -> None:
    blend, x, arrays = golden(path, *names, variant=variant)
    expected = torch.from_numpy(arrays[f"out.{out}_mask"])[-1:].bool()
    assert 0 < expected.float().mean() < 1
    assert torch.equal(blend.mask(x.shape[2], x.shape[3]), expected)
    torch.testing.assert_close(after(blend, x), torch.from_numpy(arrays[f"out.{out}"]), rtol=0, atol=1e-6)


def test_golden_blends_are_there() -> None:
    assert len(FILES) == 2


@GOLDEN
def test_maps_that_are_not_widened_change_less(path: Path) -> None:
    wide, x, _ = golden(path, "in.alpha")
    narrow, _, _ = golden(path, "in.alpha", variant="ldm")
    masks = [blend.mask(x.shape[2], x.shape[3]) for blend in (wide, narrow)]
    assert 0 < masks[1].sum() < masks[0].sum()


def test_one_looked_at_cell_frees_itself_and_its_neighbours_in_either_row() -> None:
    maps = torch.zeros(4, 2, 4, 4, 3)
    maps[0, 0, 0, 0, 1] = 1.0  # the source of the first pair, in one of two layers
    maps[3, :, 3, 2, 1] = 0.2  # the target of the second pair
    weights = torch.zeros(4, 1, 3)
    weights[:, 0, 1] = 1
    pairs: dict[str, Any] = {"source": (0, 1), "target": (2, 3)}
    first, second = LocalBlend(taps=taps_of(weights, maps), **pairs).mask(4, 4)[:, 0]
    assert first.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert second.nonzero().tolist() == [[2, 1], [2, 2], [2, 3], [3, 1], [3, 2], [3, 3]]
    narrow = LocalBlend(taps=taps_of(weights, maps), variant="ldm", **pairs).mask(8, 8)[1, 0]
    assert narrow.nonzero().tolist() == [[6, 4], [6, 5], [7, 4], [7, 5]]


@GOLDEN
def test_a_threshold_of_one_returns_the_source_and_one_below_zero_the_edit(path: Path) -> None:
    none, x, _ = golden(path, "in.alpha", threshold=1.0)
    every, _, _ = golden(path, "in.alpha", threshold=-1.0)
    assert torch.equal(after(none, x), x[:1].expand(2, -1, -1, -1))
    assert torch.equal(after(every, x), x)


def test_words_that_nobody_looks_at_free_nothing() -> None:
    blend = LocalBlend(taps=taps_of(torch.zeros(2, 1, 3), torch.rand(2, 1, 4, 4, 3)), source=(0,), target=(1,))
    assert not blend.mask(8, 8).any()


@GOLDEN
def test_blending_begins_after_the_given_number_of_moves(path: Path) -> None:
    blend, x, _ = golden(path, "in.alpha", start=3)
    assert torch.equal(after(blend, x, index=2), x)
    assert not torch.equal(after(blend, x, index=3), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "p3p"}, "variant is 'p3p'; known are p2p, ldm, null-text"),
        ({"target": (1, 2)}, "pairs 1 source rows with 2 target rows"),
        ({"start": -1}, "start is -1"),
        ({"taps": Taps(weights=torch.zeros(2, 3, 5), cells=(2, 2))}, "reads one or two word maps on one grid"),
        ({"taps": Taps(weights=torch.zeros(2, 1, 5))}, "reads one or two word maps on one grid"),
    ],
)
def test_what_cannot_be_blended_is_an_error(change: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"taps": Taps(weights=torch.zeros(2, 1, 5), cells=(2, 2)), "source": (0,), "target": (1,)}
    with pytest.raises(UserError, match=message):
        LocalBlend(**{**fields, **change})

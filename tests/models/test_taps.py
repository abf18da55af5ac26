"""Taps: looking changes nothing, word maps are what was asked for and no more, and they follow the edits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.models import AttentionEdit, Control, Taps, UNet, UNetConfig

LENGTH = 6
CONFIG = UNetConfig(
    model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_at=(1, 2), num_heads=4, context_dim=16
)
EDIT = AttentionEdit(
    source=(0,),
    target=(1,),
    mapper=torch.eye(LENGTH)[:, [0, 2, 1, 3, 4, 5]][None],
    equalizer=torch.tensor([[1, 1, 3.0, 1, -1, 1]]),
)


@pytest.fixture(scope="module")
def network() -> UNet:
    torch.manual_seed(0)
    unet = UNet(CONFIG).eval().requires_grad_(False)
    for parameter in unet.parameters():
        if not parameter.any():
            parameter.normal_(std=0.1)
    return unet


def inputs(rows: int = 3, height: int = 8, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 3, height, width, generator=generator)
    return x, torch.full((rows,), 401.0), torch.randn(rows, LENGTH, 16, generator=generator)


def weights(rows: int = 3, words: int = 2) -> Tensor:
    return (torch.rand(rows, words, LENGTH, generator=torch.Generator().manual_seed(2)) > 0.5).float()


@pytest.mark.parametrize("edit", [None, EDIT], ids=["plain", "edited"])
def test_looking_changes_no_bit(network: UNet, edit: AttentionEdit | None) -> None:
    taps = Taps(h=True, kinds=("self", "cross"), weights=weights())
    out = network(*inputs(), control=Control(edit=edit, taps=taps))
    assert torch.equal(out, network(*inputs(), control=Control(edit=edit)))
    assert taps.maps and taps.sums and taps.bottleneck is not None


@pytest.mark.parametrize("edit", [None, EDIT], ids=["plain", "edited"])
def test_word_maps_are_the_weighed_whole_maps_summed_over_calls(network: UNet, edit: AttentionEdit | None) -> None:
    taps = Taps(kinds=("cross",), weights=weights())
    expected: dict[Any, Tensor] = {}
    for scale in (1.0, 0.5):
        x, t, context = inputs()
        network(scale * x, t, context, control=Control(edit=edit, taps=taps))
        for site, maps in taps.maps.items():
            words = torch.einsum("bhnl,bkl->bkn", maps, weights()) / maps.shape[1]
            expected[site] = expected.get(site, 0) + words
    assert taps.calls == 2 and set(taps.sums) == set(expected) and len(expected) == 7
    for site, sums in taps.sums.items():
        torch.testing.assert_close(sums, expected[site], rtol=0, atol=1e-6)
    taps.clear()
    assert not taps.sums and not taps.maps and taps.calls == 0


def test_an_edited_row_shows_its_edited_map(network: UNet) -> None:
    words = torch.eye(LENGTH).expand(2, LENGTH, LENGTH)
    taps = Taps(weights=words)
    network(*inputs(), control=Control(edit=EDIT, taps=taps))
    first = next(iter(taps.sums.values()))  # the first attention: both rows still see what they would without the edit
    torch.testing.assert_close(first[1], first[0][[0, 2, 1, 3, 4, 5]] * EDIT.equalizer[0][:, None])


def test_only_what_was_asked_for_is_kept(network: UNet) -> None:
    taps = Taps(weights=weights(2, 3), cells=(4, 8))
    network(*inputs(), control=Control(taps=taps))
    assert not taps.maps
    assert {site.factor for site in taps.sums} == {2} and {site.kind for site in taps.sums} == {"cross"}
    assert all(sums.shape == (2, 3, 32) and sums.dtype == torch.float32 for sums in taps.sums.values())


def test_fewer_rows_than_the_batch_are_the_first_ones(network: UNet) -> None:
    few, all_of_them = Taps(weights=weights(3)[:1]), Taps(weights=weights(3))
    for taps in (few, all_of_them):
        network(*inputs(), control=Control(edit=EDIT, taps=taps))
    for site, sums in few.sums.items():
        torch.testing.assert_close(sums, all_of_them.sums[site][:1], rtol=0, atol=1e-6)


def test_the_average_weighs_attentions_alike_and_is_a_probability(network: UNet) -> None:
    taps = Taps(weights=torch.ones(3, 1, LENGTH))
    for _ in range(3):
        network(*inputs(), control=Control(taps=taps))
    for cells in ((8, 16), (4, 8)):
        torch.testing.assert_close(taps.averaged(cells), torch.ones(3, 1, *cells))
    taps = Taps(weights=weights(), cells=(4, 8))
    network(*inputs(), control=Control(taps=taps))
    maps = torch.stack(list(taps.sums.values()))
    assert len(maps) > 1
    torch.testing.assert_close(taps.averaged(), maps.mean(0).reshape(3, 2, 4, 8))
    up = [site for site in taps.sums if site.place == "up"]
    kept = torch.stack([taps.sums[site] for site in up]).mean(0).reshape(3, 2, 4, 8)
    torch.testing.assert_close(taps.averaged(sites=up), kept)
    assert not torch.allclose(taps.averaged(), kept)


def test_cells_are_laid_out_row_by_row(network: UNet) -> None:
    taps = Taps(kinds=("cross",), weights=weights(), cells=(4, 8))
    network(*inputs(), control=Control(taps=taps))
    site = next(site for site in taps.sums if site.place == "mid")
    whole = torch.einsum("bhnl,bkl->bkn", taps.maps[site], weights()) / 4
    torch.testing.assert_close(taps.averaged(sites=[site])[:, :, 1, 2], whole[:, :, 8 + 2])


def test_word_maps_hold_no_gradient(network: UNet) -> None:
    x, t, context = inputs()
    taps = Taps(weights=weights())
    out = network(x.requires_grad_(), t, context, control=Control(taps=taps))
    assert out.requires_grad and not any(sums.requires_grad for sums in taps.sums.values())


def test_word_maps_that_cannot_be_kept_are_named(network: UNet) -> None:
    with pytest.raises(UserError, match=r"weights of the taps are \[2, 6\]; give \[B, K, L\]"):
        Taps(weights=torch.ones(2, 6))
    with pytest.raises(UserError, match=r"cells is \(4, 8\), the grid of word maps, and no word is asked for"):
        Taps(cells=(4, 8))
    for taps, message in [
        (Taps(weights=weights(4)), "weigh words for 4 rows, and the network sees 3"),
        (Taps(weights=torch.ones(3, 1, 77)), "weigh 77 tokens, and the text has 6"),
        (
            Taps(weights=weights(), cells=(8, 8)),
            r"of 8 x 8 cells are kept of no attention here; .* of \[32, 128\] cells",
        ),
        (Taps(weights=weights(), max_cells=16), "word maps of any grid are kept of no attention"),
    ]:
        with pytest.raises(UserError, match=message):
            network(*inputs(), control=Control(taps=taps))
    for twice in ({"checkpoints": True}, {"keeps_plain": True, "h_shift": torch.zeros(1, 1, 1, 1)}):
        with pytest.raises(UserError, match="run attentions twice, which word maps would count twice"):
            Control(taps=Taps(weights=weights()), **twice)


def test_an_average_of_nothing_is_named(network: UNet) -> None:
    with pytest.raises(UserError, match=r"kept on every grid; say which one: cells=\(height, width\)"):
        Taps(weights=weights()).averaged()
    taps = Taps(weights=weights())
    network(*inputs(), control=Control(taps=taps))
    with pytest.raises(UserError, match=r"no word map was kept on a grid of 8 x 8; .* \(there are \[32, 128\] cells\)"):
        taps.averaged((8, 8))

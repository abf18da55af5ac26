"""The methods with the shipped weights, on edits whose true answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import steerdiff
from steerdiff.guidance import Model
from steerdiff.methods import ILVR, SDG, DDIMInversion, RePaint, SDEdit
from steerdiff.methods.sdg import PRESETS
from steerdiff.train.recogniser import Recogniser, load_recogniser
from steerdiff.train.scenes import EditPair, EmojiScenes

EDITS = 6


@pytest.fixture(scope="module")
def model() -> Model:
    return steerdiff.load("emoji64")


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return load_recogniser()


@pytest.fixture(scope="module")
def pairs() -> list[EditPair]:
    """Edits of single objects, fixed before any result was seen."""
    scenes = EmojiScenes(123, "train", pairs=0.0)
    return [scenes.edit_pair(number, "object") for number in range(EDITS)]


def stacked(pairs: list[EditPair]) -> tuple[Tensor, Tensor, list[str]]:
    """Sources [B, 3, 64, 64], boxes around what changes [B, 1, 64, 64] and the targets' captions."""
    masks = torch.zeros(len(pairs), 1, 64, 64)
    for row, pair in enumerate(pairs):
        _, ys, xs = torch.nonzero(pair.mask, as_tuple=True)
        masks[row, :, ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = 1
    return torch.stack([pair.source.image for pair in pairs]), masks, [pair.target.caption for pair in pairs]


def named_right(recogniser: Recogniser, images: Tensor, pairs: list[EditPair]) -> int:
    """How many images show the target's object, as the recogniser sees it."""
    wanted = [pair.target.scene.items[0].object for pair in pairs]
    seen = [sighting.things[0][1] for sighting in recogniser.read(images.clamp(-1, 1))]
    return sum(a == b for a, b in zip(seen, wanted, strict=True))


def test_samples_show_what_their_captions_say(model: Model, recogniser: Recogniser, pairs: list[EditPair]) -> None:
    images = model.sample([pair.target.caption for pair in pairs], steps=12, seed=0)
    assert named_right(recogniser, images, pairs) >= 4


def test_repaint_fills_the_hole_with_what_the_prompt_says(
    model: Model, recogniser: Recogniser, pairs: list[EditPair]
) -> None:
    image, mask, prompts = stacked(pairs)
    filled = RePaint(steps=15, jump_length=5, jump_n_sample=2)(model, image, mask, prompt=prompts, seed=0)
    assert torch.equal(filled * (1 - mask), image * (1 - mask))
    assert named_right(recogniser, filled, pairs) >= 4


def test_sdedit_redraws_inside_the_mask_only(model: Model, recogniser: Recogniser, pairs: list[EditPair]) -> None:
    image, mask, prompts = stacked(pairs)
    edit = SDEdit(t0=0.95, repeats=1, steps=12, clip="clip")
    edited = edit(model, image, mask, prompt=prompts, seed=0)
    assert torch.equal(edited * (1 - mask), image * (1 - mask))
    assert named_right(recogniser, edited, pairs) >= 4


def test_sdedit_stays_nearer_to_its_input_from_lower_times(model: Model, pairs: list[EditPair]) -> None:
    image, _, prompts = stacked(pairs[:3])
    distances = []
    for t0 in (0.2, 0.5, 0.9):
        edited = SDEdit(t0=t0, repeats=1, steps=10, clip="clip")(model, image, prompt=prompts[:3], seed=0)
        distances.append((edited - image).square().mean().item())
    assert distances == sorted(distances) and distances[0] < 0.5 * distances[-1]


def test_ilvr_takes_the_colours_of_the_reference(model: Model, pairs: list[EditPair]) -> None:
    image, _, prompts = stacked(pairs[:3])
    edit = ILVR(steps=10, downsample=8, range_t=0, final_projection=True)
    drawn = edit(model, image, prompt=prompts[:3], seed=0)
    assert torch.allclose(drawn.mean((2, 3)), image.mean((2, 3)), atol=0.02)


def test_exact_inversion_and_back_returns_the_scene(model: Model, pairs: list[EditPair]) -> None:
    image, _, _ = stacked(pairs[:2])
    captions = [pair.source.caption for pair in pairs[:2]]
    plain, exact = (
        10 * torch.log10(4 / (edit(model, image, prompt=captions) - image).square().mean((1, 2, 3)))
        for edit in (DDIMInversion(steps=25), DDIMInversion(steps=25, fixed_point=3))
    )  # peak signal-to-noise ratios in decibels
    assert plain.min() > 12 and exact.min() > 20 and bool((exact > plain + 5).all())


@pytest.mark.slow
def test_sdg_follows_the_text_with_the_noisy_clip_and_not_with_the_clean_one(
    model: Model, recogniser: Recogniser
) -> None:
    """The backgrounds that texts ask for, of a model that is not told them."""
    colours = ["red", "blue", "green", "yellow", "pink", "gray"]
    prompts = [f"a flat cat on a {colour} background" for colour in colours]
    noisy = SDG(text_weight=700.0, image_weight=0.0, steps=15)
    found = {}
    for clip in ("emoji64-noisy-clip", "emoji64-clip"):
        images = replace(noisy, noisy_clip=clip)(model, prompt=prompts, seed=3)
        seen = [sighting.colour for sighting in recogniser.read(images.clamp(-1, 1))]
        found[clip] = sum(a == b for a, b in zip(seen, colours, strict=True))
    assert found["emoji64-noisy-clip"] >= 4 > found["emoji64-clip"]


def silhouettes(images: Tensor) -> Tensor:
    """Where images differ from their upper left corner, [B, H, W]."""
    return (images - images[:, :, :1, :1]).abs().amax(1) > 0.4


@pytest.mark.slow
def test_sdg_keeps_the_layout_of_its_reference(model: Model) -> None:
    """Flat becomes 3d or the reverse, in the same outline, of a model that is told the text and sees no image."""
    scenes = EmojiScenes(123, "train", pairs=0.0)
    pairs = [scenes.edit_pair(number, "style") for number in range(EDITS)]
    image, prompts = torch.stack([pair.source.image for pair in pairs]), [pair.target.caption for pair in pairs]
    told = replace(PRESETS["emoji64-told"], steps=12)
    overlap = []
    for method in (told, replace(told, image_weight=0.0)):
        drawn, given = silhouettes(method(model, image, prompt=prompts, seed=1)), silhouettes(image)
        overlap.append(float(((drawn & given).sum((1, 2)) / (drawn | given).sum((1, 2))).mean()))
    assert overlap[0] > overlap[1] + 0.08

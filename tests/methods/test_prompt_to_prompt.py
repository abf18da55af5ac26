"""Prompt-to-Prompt: edits that change nothing, limits that are plain runs, and edits of drawn and of real images."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from steerdiff import UserError
from steerdiff.guidance import Model
from steerdiff.guidance.loading import load_model
from steerdiff.methods.negative_prompt import NegativePromptInversion
from steerdiff.methods.prompt_to_prompt import PRESETS, PromptToPrompt
from steerdiff.samplers import DDIM, DDPM, Noise, integrate
from steerdiff.train.benchmark import draw_cases
from steerdiff.train.recogniser import load_recogniser

from .. import published_files as files
from ..guidance.toys import Recording, formula_model, pictures, tiny_text_model

#: Prompts that are the same edit nothing, which is what several tests compare with.
pytestmark = pytest.mark.filterwarnings("ignore:the target is the prompt")
SIZE = 8
SMALL = PromptToPrompt(steps=5, guidance=3.0, self_cells=16, blend_factor=2)
IDENTICAL = {"prompt": "a red cat", "target": "a red cat"}
SWAP = {"prompt": "a red cat", "target": "a red dog"}
LONGER = {"prompt": "a cat", "target": "a red cat"}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_text_model(SIZE)


def plain(model: Model, method: PromptToPrompt, prompts: list[str], seeds: list[int]) -> Tensor:
    """The same run without a control."""
    path, noise = model.path(method.steps, method.spacing), Noise(seeds, (len(seeds), 3, SIZE, SIZE))
    return integrate(model.denoiser(prompts, scale=method.guidance), method.solver, path, noise(), noise=noise)


@pytest.mark.parametrize(
    "fields",
    [
        {"pairing": "replace"},
        {"pairing": "refine"},
        {"pairing": "reweight", "reweight": ("red=1",)},
        {"blend_words": ("red",), "subtract_words": ("cat",)},
        {"solver": DDPM()},
        {"guidance": 1.0},
    ],
)
def test_identical_prompts_give_the_source_bit_for_bit(model: Model, fields: dict[str, Any]) -> None:
    source, edited = replace(SMALL, **fields).pair(model, **IDENTICAL, seed=[3, 5])
    assert torch.equal(source, edited)


@pytest.mark.parametrize("texts", [SWAP, LONGER])
def test_without_any_window_both_images_are_plain_runs_from_one_noise(model: Model, texts: dict[str, str]) -> None:
    off = replace(SMALL, cross_replace_steps=0.0, self_replace_steps=0.0)
    pair = torch.cat(off.pair(model, **texts, seed=[3]))
    assert torch.equal(pair, plain(model, off, [texts["prompt"], texts["target"]], [3, 3]))


@pytest.mark.parametrize("fields", [{}, {"reweight": ("red=4",)}, {"blend_words": ("red",)}, {"solver": DDPM()}])
def test_no_edit_alters_the_source(model: Model, fields: dict[str, Any]) -> None:
    method = replace(SMALL, **fields)
    source, edited = method.pair(model, **SWAP, seed=[3])
    assert torch.equal(source, plain(model, method, [SWAP["prompt"], SWAP["target"]], [3, 3])[:1])
    assert not torch.equal(source, edited)


def test_factors_of_one_over_a_refinement_are_the_refinement(model: Model) -> None:
    bare = SMALL(model, **LONGER, seed=1)
    assert torch.equal(replace(SMALL, reweight=("red=1", "cat=1"))(model, **LONGER, seed=1), bare)
    assert not torch.equal(replace(SMALL, reweight=("red=2",))(model, **LONGER, seed=1), bare)


def test_reweighting_alone_is_a_replacement_with_every_word_in_its_place(model: Model) -> None:
    alone = replace(SMALL, pairing="reweight")(model, **SWAP, seed=1)
    assert torch.equal(alone, replace(SMALL, pairing="replace")(model, **SWAP, seed=1))
    assert not torch.equal(alone, plain(model, SMALL, ["a red dog"], [1]))


def test_a_factor_needs_no_target(model: Model) -> None:
    source, edited = replace(SMALL, reweight=("cat=-2",)).pair(model, prompt="a red cat", seed=1)
    assert torch.equal(source, SMALL.pair(model, **IDENTICAL, seed=1)[0]) and not torch.equal(source, edited)


def test_local_blend_lies_between_the_source_and_the_edit(model: Model) -> None:
    source, edited = SMALL.pair(model, **SWAP, seed=1)
    words = ("cat", "dog")
    all_of_it = replace(SMALL, blend_words=words, blend_threshold=-1.0)(model, **SWAP, seed=1)
    none_of_it = replace(SMALL, blend_words=words, blend_threshold=1.0)(model, **SWAP, seed=1)
    assert torch.equal(all_of_it, edited) and torch.equal(none_of_it, source)
    some = replace(SMALL, blend_words=words, blend_threshold=0.97)(model, **SWAP, seed=1)
    kept = (some == source).all(1)
    assert 0 < kept.float().mean() < 1


def test_words_scheduled_to_nothing_are_free_and_to_everything_as_by_default(model: Model) -> None:
    base = replace(SMALL, self_replace_steps=0.0)
    everything = replace(base, cross_replace_steps=0.0, word_steps=("a=0.8", "red=0.8", "dog=0.8"))
    nothing = replace(base, word_steps=("a=0", "red=0:0", "dog=0"))
    edited, free = base(model, **SWAP, seed=1), replace(base, cross_replace_steps=0.0)(model, **SWAP, seed=1)
    assert not torch.equal(everything(model, **SWAP, seed=1), free)
    for part in (everything(model, **SWAP, seed=1), nothing(model, **SWAP, seed=1)):  # both marks are left
        assert not torch.equal(part, edited)


def test_several_edits_of_one_source_run_in_one_batch_as_they_do_alone(model: Model) -> None:
    targets, seeds = ["a red dog", "a cat", "a dog a cat"], [4, 4, 9]
    sources, edited = SMALL.pair(model, prompt="a red cat", target=targets, seed=seeds)
    torch.testing.assert_close(sources[0], sources[1], rtol=0, atol=2e-5)
    for k, target in enumerate(targets):
        alone = SMALL(model, prompt="a red cat", target=target, seed=seeds[k])
        torch.testing.assert_close(edited[k : k + 1], alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("inversion", ["null-text", "negative-prompt", "ddim"])
def test_a_real_image_is_inverted_and_edited(
    model: Model, inversion: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERDIFF_CACHE", str(tmp_path))
    image = pictures(2, SIZE) * 0.9
    method = replace(SMALL, inversion=inversion, inner_steps=2)
    same = method.pair(model, image, **IDENTICAL)
    assert torch.equal(*same)
    source, edited = method.pair(model, image, **SWAP)
    assert torch.equal(source, same[0]) and not torch.equal(source, edited)


def test_the_source_of_a_real_image_is_its_reconstruction(model: Model) -> None:
    image = pictures(1, SIZE) * 0.9
    method = replace(SMALL, inversion="negative-prompt", steps=20, fixed_point=4)
    source, _ = method.pair(model, image, **SWAP)
    inversion = NegativePromptInversion(steps=20, guidance=3.0, fixed_point=4)
    torch.testing.assert_close(source, inversion(model, image, prompt=SWAP["prompt"]), rtol=0, atol=2e-5)
    assert (source - image).abs().max() < 0.05


def test_the_empty_prompt_is_edited_no_more_than_in_the_official_code(model: Model) -> None:
    """The rows of guidance's other branch come after all that are edited and stay as they are."""
    rows = Recording(model.network)
    replace(SMALL, steps=2)(replace(model, network=rows), **SWAP, seed=1)
    assert rows.rows == [4, 4]
    neutral = replace(SMALL, guidance=1.0)
    assert not torch.equal(neutral(model, **SWAP, seed=1), plain(model, neutral, ["a red dog"], [1]))


@pytest.mark.parametrize("version", [1, 2])
def test_stable_diffusion_is_edited_in_its_latents(
    version: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERDIFF_CACHE", str(tmp_path))
    described = files.tiny_sd(version, predicts_v=version == 2)
    files.write_single_file(tmp_path / "sd.safetensors", described)
    sd = load_model(tmp_path / "sd.safetensors", described)
    texts = {"prompt": "a cat, sitting on a mat", "target": "a rhinoceros, sitting on a red mat"}
    method = replace(SMALL, steps=4, self_cells=None, blend_words=("cat", "rhinoceros"), inner_steps=1)
    source, edited = method.pair(sd, **texts, seed=2)
    assert source.shape == edited.shape == (1, 3, 32, 32) and not torch.equal(source, edited)
    real = method.pair(sd, pictures(1, 32) * 0.9, **texts)
    assert not torch.equal(*real)
    assert torch.equal(*replace(method, blend_words=()).pair(sd, prompt="a cat", target="a cat", seed=2))


def test_the_shipped_model_swaps_objects_of_given_pictures_and_keeps_more_than_without_attention_control() -> None:
    """The first three cases of a draw that chose no setting. Outside of what changes 0.075 and 0.110 were measured."""
    shipped, cases = load_model("emoji64"), draw_cases("object", 3, seed=21)
    image, changed = (torch.stack([getattr(case, name) for case in cases]) for name in ("image", "changed"))
    texts: dict[str, Any] = {
        "prompt": [case.source_text for case in cases],
        "target": [case.target_text for case in cases],
    }

    def outside(edited: Tensor) -> Tensor:
        """Root mean square difference from the picture, by case."""
        kept = 1 - changed
        return (((edited - image).square() * kept).sum((1, 2, 3)) / (3 * kept.sum((1, 2, 3)))).sqrt()

    source, edited = PRESETS["emoji64"].pair(shipped, image, **texts)
    seen = [sighting.things[0][1] for sighting in load_recogniser().read(edited.clamp(-1, 1))]
    assert all(name in case.target_text.split() for name, case in zip(seen, cases, strict=True))
    assert float((source - image).square().mean().sqrt()) < 0.05
    free = replace(PRESETS["emoji64"], cross_replace_steps=0.0, self_replace_steps=0.0)
    assert float(outside(edited).mean()) < 0.85 * float(outside(free(shipped, image, **texts)).mean())


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (
            {"pairing": "replace"},
            LONGER,
            "has 2 words .* 3; to replace, give prompts with as many words, or use refine",
        ),
        ({"reweight": ("dig=2",)}, SWAP, r"'dig' is not in the prompt 'a red dog' \(nearest: dog\)"),
        ({"word_steps": ("cat=0.2",)}, SWAP, "'cat' is not in the prompt 'a red dog'"),
        ({"blend_words": ("cow",)}, SWAP, "'cow' is not in the prompt"),
        ({"blend_words": ("cat",), "blend_factor": 4}, SWAP, "word maps of 2 x 2 cells are kept of no attention here"),
        ({"cross_cells": 3, "self_replace_steps": 0.0}, SWAP, "the attention edit touches none"),
        ({}, {"prompt": ["a cat", "a dog", "a cat"], "target": ["a dog"] * 2}, "2 prompts .* give one, or 3"),
        ({}, {**SWAP, "image": torch.zeros(1, 3, SIZE, 7)}, r"image is \[1, 3, 8, 7\]"),
        ({"solver": DDPM()}, {**SWAP, "image": torch.zeros(1, 3, SIZE, SIZE)}, "edited by DDIM: leave it out"),
        (
            {"inversion": "negative-prompt"},
            {**SWAP, "negative": "a dog", "image": torch.zeros(1, 3, SIZE, SIZE)},
            "takes the image's prompt for the negative one",
        ),
    ],
)
def test_what_cannot_be_edited_is_an_error_before_anything_is_drawn(
    model: Model, change: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    rows = Recording(model.network)
    with pytest.raises(UserError, match=message):
        replace(SMALL, **change)(replace(model, network=rows), **{"seed": 0, **arguments})
    assert rows.rows in ([], [4])  # the network itself says what its grids are


def test_a_model_without_words_and_conditions_are_refused(model: Model) -> None:
    with pytest.raises(UserError, match="plain reads no words"):
        SMALL(formula_model(lambda x, t: x, SIZE, name="plain"))
    with pytest.raises(UserError, match="give texts"):
        SMALL(model, prompt=model.condition("a cat"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="there is no prompt whose words are edited"):
        SMALL(model)


def test_prompts_that_say_the_same_are_a_warning_unless_a_word_is_re_weighted(model: Model) -> None:
    with pytest.warns(UserWarning, match="nothing is edited"):
        SMALL(model, **IDENTICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SMALL(model, **SWAP)
        replace(SMALL, reweight=("cat=2",))(model, prompt="a red cat")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"guidance": 0.0}, "guidance is 0"),
        ({"inner_steps": -1}, "inner_steps is -1"),
        ({"fixed_point": -1}, "fixed_point is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"cross_replace_steps": 1.5}, "cross_replace_steps is 1.5; give a fraction"),
        ({"self_replace_steps": (0.6, 0.2)}, r"self_replace_steps is \(0.6, 0.2\); give a fraction"),
        ({"self_replace_steps": (0.0, 0.2, 0.6)}, r"self_replace_steps is \(0.0, 0.2, 0.6\); give a fraction"),
        ({"inversion": "exact"}, "inversion is 'exact'; known are null-text, negative-prompt, ddim"),
        ({"blend_variant": "own"}, "blend_variant is 'own'; known are p2p, ldm, null-text"),
        ({"blend_factor": 0}, "blend_factor is 0"),
        ({"blend_start": 2.0}, "blend_start is 2.0"),
        ({"subtract_words": ("cat",)}, "give blend_words too"),
        ({"reweight": ("cat",)}, "reweight has the entry 'cat'"),
        ({"reweight": ("cat=much",)}, "reweight of 'cat' is 'much'; give a number"),
        ({"word_steps": ("cat=0:1:2",)}, "word_steps of 'cat' is '0:1:2'"),
    ],
)
def test_a_setting_out_of_range_is_an_error_when_it_is_made(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PromptToPrompt(**fields)


def test_presets_hold_the_published_settings() -> None:
    official = PRESETS["p2p"]
    assert (official.steps, official.guidance, official.solver) == (50, 7.5, DDIM())
    assert (official.cross_replace_steps, official.self_replace_steps, official.blend_threshold) == (0.8, 0.4, 0.3)
    assert PRESETS["paper"].self_replace_steps == 0
    ldm = PRESETS["ldm"]  # of 32 x 32 latents: self-attention of 16 x 16 cells, and maps of as many
    assert (ldm.guidance, ldm.self_cells, 32 // ldm.blend_factor, ldm.blend_variant) == (5.0, 16 * 16, 16, "ldm")

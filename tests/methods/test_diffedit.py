"""DiffEdit: where the mask lies, what it does not depend on, and what is kept outside it, on exact models."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import steerdiff
from steerdiff import UserError
from steerdiff.guidance import Model
from steerdiff.guidance.loading import load_model
from steerdiff.methods import DDIMInversion, DiffEdit
from steerdiff.methods.diffedit import PRESETS
from steerdiff.methods.text_difference import TextPair, cells_above
from steerdiff.samplers import DDIM, Denoiser, Move, Noise, NoiseSchedule, Step
from steerdiff.train.benchmark import draw_cases

from .. import published_files as files
from ..guidance.toys import Recording, formula_model, half_mask, pictures, tiny_text_model

SIZE = 8
SIGNS = torch.tensor([1.0, -1.0, 0.5]).reshape(3, 1, 1)  # what is said moves the colours apart
QUICK = DiffEdit(steps=6, guidance=3.0, noises=3)


class Saying:
    """A text encoder of two words: the state is how much of "cat" and of "dog" is said."""

    def tokenize(self, texts: list[str]) -> tuple[Tensor, None]:
        return torch.tensor([[int(word in text.split()) for word in ("cat", "dog")] for text in texts]), None

    def __call__(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        return ids[:, None, :].float()


def place() -> Tensor:
    """Where "cat" is drawn, [1, 1, 8, 8]: the upper left quarter."""
    where = torch.zeros(1, 1, SIZE, SIZE)
    where[..., :4, :4] = 1
    return where


def network(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """A cat changes the noise in its place, a dog everywhere but a quarter as much, each the more, the more noise."""
    cat, dog = context[:, 0, 0, None, None, None], context[:, 0, 1, None, None, None]
    said = cat * place() + 0.25 * dog
    return 0.3 * x + said * SIGNS * (0.1 * x.abs() + 0.001 * t.reshape(-1, 1, 1, 1))


def model(run: Any = network) -> Model:
    return formula_model(run, SIZE, NoiseSchedule.linear(100), text=Saying())


# the mask


def test_the_mask_is_where_the_texts_disagree() -> None:
    image = pictures(2, SIZE)
    found = QUICK.mask(model(), image, target="a cat")
    assert torch.equal(found, place().expand(2, 1, SIZE, SIZE))
    assert torch.equal(QUICK.mask(model(), image, prompt="a cat"), found)  # one text alone is against the empty one
    assert torch.equal(QUICK.mask(model(), image, prompt="a cat", target=""), found)


def test_the_difference_is_the_mean_over_draws_and_channels_of_exact_predictions() -> None:
    image = pictures(2, SIZE)
    level = model().schedule.level(49)  # 0.5 of 100 times
    draw, expected = Noise(5, like=image).fork("mask"), torch.zeros(2, 1, SIZE, SIZE)
    for _ in range(3):
        noised = model().schedule.q_sample(image, level, draw())
        expected += place() * (SIGNS.abs() * (0.1 * noised.abs() + 0.001 * 49)).mean(1, keepdim=True) / 3
    found = QUICK.difference(model(), image, prompt="a dog", target="a dog cat", seed=5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_variance_of_the_difference_falls_as_one_over_the_number_of_noises() -> None:
    image = torch.zeros(1, 3, SIZE, SIZE).expand(64, -1, -1, -1)
    variance = []
    for noises in (1, 16):
        difference = DiffEdit(noises=noises).difference(model(), image, target="a cat")[..., :4, :4]
        variance.append(float(difference.var()))  # of n = 64 * 16 independent cells
    tolerance = 5 * 2 * (2 / 1023) ** 0.5  # of the logarithm of a ratio of two sample variances, about Gaussian
    assert abs(torch.tensor(variance[0] / variance[1] / 16).log()) < tolerance


@pytest.mark.parametrize("size", [1e-6, 1 / 3, 7.0, 1e5])
@pytest.mark.parametrize("clamp", [None, 1.5, 3.0])
def test_the_mask_does_not_depend_on_the_size_of_the_difference(clamp: float | None, size: float) -> None:
    difference = pictures(3, 16)[:, :1].abs().square()
    free = cells_above(difference, clamp, 0.5)
    assert 0.01 < float(free.mean()) < 0.99
    assert torch.equal(cells_above(size * difference, clamp, 0.5), free)


def test_clamp_and_threshold_are_those_of_the_clamped_and_rescaled_map() -> None:
    difference = pictures(2, 16)[:, :1].abs().square()
    largest = 3 * difference.mean((1, 2, 3), keepdim=True)
    rescaled = difference.minimum(largest) / largest
    assert torch.equal(cells_above(difference, 3.0, 0.5), (rescaled > 0.5).float())
    assert torch.equal(cells_above(difference, 3.0, 0.5), (difference > 1.5 * largest / 3).float())
    shares = [float(cells_above(difference, 3.0, threshold).mean()) for threshold in (0.25, 0.5, 0.75)]
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[2]


def test_images_of_a_batch_have_their_own_masks() -> None:
    images, texts = pictures(3, SIZE), ["a cat", "a dog", "a cat dog"]
    images[1] *= 0.01
    method = DiffEdit(noises=2, clamp=1.8)
    together = method.difference(model(), images, prompt="", target=texts, seed=[4, 9, 2])
    for k, seed in enumerate((4, 9, 2)):
        alone = method.difference(model(), images[k : k + 1], target=texts[k], seed=seed)
        torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=1e-6)
        assert torch.equal(cells_above(alone, 1.8, 0.5), cells_above(together, 1.8, 0.5)[k : k + 1])


def test_the_same_text_gives_an_empty_mask_and_is_refused_before_the_network_is_called() -> None:
    calls = Recording(lambda x, t, context: network(x, t, context) + 1e-6 * torch.rand_like(x))  # as rounding does
    image = pictures(2, SIZE)
    with pytest.warns(UserWarning, match="the mask found is empty for image 0, empty for image 1; change clamp"):
        assert not QUICK.mask(model(calls), image, prompt="a cat", target="a  cat").any()
    calls.rows.clear()
    with pytest.raises(UserError, match="the texts before and after say the same, so that the mask is empty"):
        QUICK(model(calls), image, prompt="a cat", target="a  cat")
    with pytest.raises(UserError, match="the texts before and after say the same"):
        QUICK(model(calls), image)
    assert calls.rows == []


def test_some_masks_may_be_empty_and_all_may_not() -> None:
    image = pictures(2, SIZE)
    with pytest.warns(UserWarning, match="the mask found is empty for image 1; change clamp"):
        result = QUICK(model(), image, prompt=["", "a dog"], target=["a cat", "a dog"])
    assert torch.equal(result[1], image[1]) and not torch.equal(result[0], image[0])
    with pytest.raises(UserError, match="the mask found is empty for image 0, empty for image 1; change clamp"):
        DiffEdit(steps=6, clamp=9.0)(model(), image, target="a dog")  # everywhere about the same
    with pytest.raises(UserError, match="the mask found is everything for image 0, everything for image 1"):
        DiffEdit(steps=6, clamp=0.1)(model(), image, target="a dog")


def test_labels_are_compared_with_their_null() -> None:
    def labelled(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return 0.3 * x + 0.1 * y.reshape(-1, 1, 1, 1) * place()

    labels = formula_model(labelled, SIZE, NoiseSchedule.linear(100), num_classes=3, null_class=0)
    image = pictures(1, SIZE)
    two, one = labels.condition(y=2), labels.condition(y=1)
    assert torch.equal(QUICK.mask(labels, image, prompt=two), place())
    assert torch.equal(QUICK.mask(labels, image, prompt=one, target=two), place())
    with pytest.raises(UserError, match="the texts before and after say the same"):
        QUICK(labels, image, prompt=two, target=labels.condition(y=2))


def test_texts_differ_by_their_tokens_and_states_by_their_numbers() -> None:
    tiny = tiny_text_model()
    state = tiny.condition("a cat")
    texts = ["a cat", "a dog"]
    assert TextPair.of(tiny, "a cat", texts, 2).differ.flatten().tolist() == [False, True]
    assert TextPair.of(tiny, state, tiny.condition("a cat"), 2).differ.flatten().tolist() == [False, False]
    assert TextPair.of(tiny, state, "a dog", 1).differ.flatten().tolist() == [True]
    assert TextPair.of(tiny, None, "", 1).differ.flatten().tolist() == [False]


# the edit


class Watched:
    """DDIM that keeps what it is given at each level."""

    order = 1

    def __init__(self) -> None:
        self.seen = list[tuple[str, float, Tensor]]()

    def step(self, denoise: Denoiser, x: Tensor, move: Move, state: None, noise: Noise) -> Step:
        self.seen.append((move.kind, move.here.t, x))
        return DDIM().step(denoise, x, move, state, noise)


def test_outside_the_mask_every_state_is_the_encoded_one_of_its_level() -> None:
    image, mask, solver = pictures(2, SIZE), half_mask(SIZE), Watched()
    result = DiffEdit(steps=6, guidance=3.0, solver=solver)(model(), image, mask, prompt="a dog", target="a cat")
    kept = (mask == 0).expand_as(image)
    up = {t: x for kind, t, x in solver.seen if kind == "invert"}
    down = [(t, x) for kind, t, x in solver.seen if kind == "denoise"]
    assert len(up) == len(down) >= 4
    for t, x in down[1:]:
        assert torch.equal(x[kept], up[t][kept])
        assert not torch.equal(x[~kept], up[t][~kept])
    assert torch.equal(result[kept], image[kept])
    assert not torch.equal(result[~kept], image[~kept])


def test_the_ports_end_with_the_state_one_level_up() -> None:
    image, mask, solver = pictures(2, SIZE), half_mask(SIZE), Watched()
    method = DiffEdit(steps=6, guidance=3.0, solver=solver, lag=1)
    result = method(model(), image, mask, target="a cat")
    kept = (mask == 0).expand_as(image)
    second = [x for kind, _, x in solver.seen if kind == "invert"][1]  # the state after one step up
    assert torch.equal(result[kept], second[kept]) and not torch.equal(result[kept], image[kept])


def test_a_mask_of_nothing_is_the_image_and_of_everything_is_encoding_and_decoding() -> None:
    image, method = pictures(2, SIZE), DiffEdit(steps=6, guidance=1.0, t0=0.8, clip="none")
    nothing, everything = torch.zeros(1, 1, SIZE, SIZE), torch.ones(1, 1, SIZE, SIZE)
    with pytest.warns(UserWarning, match="the mask is empty, so that nothing may change"):
        assert torch.equal(method(model(), image, nothing, target="a cat"), image)
    trip = DDIMInversion(steps=6, t0=0.8, spacing="log_snr")
    expected = trip(model(), image, prompt="", target="a cat")
    assert torch.equal(method(model(), image, everything, target="a cat"), expected)


def test_no_encoding_returns_the_image() -> None:
    image = pictures(2, SIZE)
    assert torch.equal(DiffEdit(steps=6, t0=0)(model(), image, target="a cat"), image)


def test_the_way_there_and_back_without_a_text_errs_less_with_more_steps() -> None:
    image, everything = pictures(2, SIZE), torch.ones(1, 1, SIZE, SIZE)
    errors = list[float]()
    for steps in (5, 20, 80):
        back = DiffEdit(steps=steps, guidance=1.0, spacing="respaced", clip="none")(model(), image, everything)
        errors.append(float((back - image).abs().mean()))
    assert errors == sorted(errors, reverse=True) and errors[2] < errors[0] / 4


def test_the_image_is_encoded_without_a_text_unless_asked_for() -> None:
    said = list[tuple[int, list[float]]]()

    def listening(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        said.append((x.shape[0], context.flatten().tolist()))
        return network(x, t, context)

    image, mask = pictures(1, SIZE), half_mask(SIZE)
    method = DiffEdit(steps=4, t0=1.0, spacing="respaced", guidance=3.0)
    method(model(listening), image, mask, prompt="a dog", target="a cat")
    assert said[:3] == [(1, [0.0, 0.0])] * 3  # three moves up
    assert said[3:] == [(2, [1.0, 0.0, 0.0, 0.0])] * 3  # guided down, the target first
    said.clear()
    told = DiffEdit(steps=4, t0=1.0, spacing="respaced", encoding="prompt", encoding_guidance=2.0)
    told(model(listening), image, mask, prompt="a dog", target="a cat")
    assert said[:3] == [(2, [0.0, 1.0, 0.0, 0.0])] * 3


def test_a_found_mask_and_the_same_mask_given_edit_alike() -> None:
    image = pictures(2, SIZE)
    found = QUICK.mask(model(), image, target="a cat", seed=3)
    assert torch.equal(QUICK(model(), image, target="a cat", seed=3), QUICK(model(), image, found, target="a cat"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"t0": 1.5}, r"t0 is 1.5; it must lie in \[0, 1\]"),
        ({"noises": 0}, "noises is 0; it must be at least 1"),
        ({"strength": 0}, r"strength is 0; it must lie in \(0, 1\]"),
        ({"clamp": 0.0}, "clamp is 0.0; it must be above 0, or None"),
        ({"threshold": 1.0}, r"threshold is 1.0; it must lie in \[0, 1\)"),
        ({"encoding": "text"}, "encoding is 'text'; known are empty, prompt"),
        ({"lag": 2}, "lag is 2; it must be 0 or 1"),
    ],
)
def test_a_setting_out_of_range_is_an_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DiffEdit(**values)


def test_a_network_that_breaks_is_named_before_a_mask_is_made_of_it() -> None:
    broken = model(lambda x, t, context: x * torch.nan)
    with pytest.raises(UserError, match="the network's prediction at t = 49 is not finite"):
        QUICK(broken, pictures(1, SIZE), target="a cat")


# other models


def test_stable_diffusion_keeps_the_latents_outside_a_mask_on_its_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = files.tiny_sd(1)
    files.write_single_file(tmp_path / "sd.safetensors", described)
    sd = load_model(tmp_path / "sd.safetensors", described)
    image, method = pictures(1, 32), DiffEdit(steps=4, guidance=2.0, noises=2, clamp=2.0, spacing="compvis")
    found = method.mask(sd, image, prompt="a cat", target="a large dog")
    cells = sd.fit_mask(found)
    assert cells.shape == (1, 1, 16, 16) and 0 < float(cells.mean()) < 1
    assert torch.equal(cells.repeat_interleave(2, -1).repeat_interleave(2, -2), found)  # constant on whole cells
    monkeypatch.setattr(Model, "decode", lambda self, x: x)
    latent = method(sd, image, prompt="a cat", target="a large dog")
    kept = (cells == 0).expand_as(latent)
    assert torch.equal(latent[kept], sd.encode(image)[kept])
    assert not torch.equal(latent[~kept], sd.encode(image)[~kept])


def test_the_shipped_model_finds_what_changes_and_keeps_the_rest() -> None:
    """Two edits fixed before any result was seen, of cases that chose no setting."""
    shipped = steerdiff.load("emoji64")
    cases = [draw_cases(task, 1, seed=21)[0] for task in ("object", "colour")]
    image, changed = (torch.stack([getattr(case, name) for case in cases]) for name in ("image", "changed"))
    texts: dict[str, Any] = {
        "prompt": [case.source_text for case in cases],
        "target": [case.target_text for case in cases],
    }
    preset = replace(PRESETS["emoji64"], noises=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = preset.mask(shipped, image, **texts, seed=5)
    overlap = (found * changed).sum((1, 2, 3)) / ((found + changed) > 0).sum((1, 2, 3))
    assert float(overlap.min()) > 0.5
    with pytest.warns(UserWarning, match="the mask found is empty for image 1"):  # what is most of a picture
        assert bool(DiffEdit(noises=4).mask(shipped, image, **texts, seed=5)[0].any())

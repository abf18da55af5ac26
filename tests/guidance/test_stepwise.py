"""A denoiser for each step: windows of edits, unconditional texts by step, intervals; and where it has no answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.guidance import Condition, Model
from steerdiff.guidance.stepwise import Stepwise, stepwise
from steerdiff.models import AttentionEdit, Control, Taps
from steerdiff.samplers import DDIM, DPM2, Denoiser, Level, Move, Noise, Path, Prediction, integrate

from .toys import tiny_text_model

STEPS = 4


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_text_model()


def start(model: Model, rows: int = 2) -> Tensor:
    return Noise(3, (1, 3, 8, 8))().repeat(rows, 1, 1, 1)


def run(denoise: Denoiser, path: Path, x: Tensor) -> Tensor:
    return integrate(denoise, DDIM(), path, x)


def edited(model: Model, prompts: list[str], edit: AttentionEdit | None) -> Denoiser:
    control = None if edit is None else Control(edit=edit)
    return model.denoiser(prompts, scale=3.0, clip="none", control=control)


def test_one_denoiser_at_every_step_is_that_denoiser(model: Model) -> None:
    path, seen = model.path(STEPS), []
    denoise = model.denoiser("a red cat", scale=2.0)

    def choose(index: int) -> Denoiser:
        seen.append(index)
        return denoise

    chosen = stepwise(path, choose)
    assert seen == list(range(STEPS))
    assert torch.equal(run(chosen, path, start(model)), run(denoise, path, start(model)))


def test_each_move_is_answered_by_its_own(model: Model) -> None:
    path, asked = model.path(STEPS), []

    def choose(index: int) -> Denoiser:
        def denoise(x: Tensor, level: Level) -> Prediction:
            asked.append((index, level))
            return Prediction(x, x)

        return denoise

    run(stepwise(path, choose), path, start(model))
    assert asked == [(move.index, move.here) for move in path]
    asked.clear()
    up = path.inverted()
    run(stepwise(up, choose), up, start(model))
    assert asked == [(move.index, move.here) for move in up]


def test_a_window_of_edits_is_the_edit_first_and_the_plain_run_from_there(model: Model) -> None:
    path, prompts = model.path(STEPS), ["a red cat", "a red dog"]
    edit = AttentionEdit(source=(0,), target=(1,), self_tokens=64)
    with_edit, plain = edited(model, prompts, edit), edited(model, prompts, None)
    x = start(model)
    result = run(stepwise(path, lambda index: with_edit if index < 2 else plain), path, x)
    assert torch.equal(result, run(plain, path[2:], run(with_edit, path[:2], x)))
    assert not torch.allclose(result, run(with_edit, path, x), atol=1e-4)
    assert not torch.allclose(result, run(plain, path, x), atol=1e-4)


def test_a_word_s_schedule_under_guidance_keeps_the_source_and_what_is_identical(model: Model) -> None:
    path, prompts = model.path(STEPS), ["a red cat", "a red cat", "a red dog"]
    gates = torch.rand(STEPS, 2, 6, generator=torch.Generator().manual_seed(0))
    edits = [AttentionEdit(source=(0, 0), target=(1, 2), gate=gate, self_tokens=64) for gate in gates]
    result = run(stepwise(path, lambda index: edited(model, prompts, edits[index])), path, start(model, 3))
    plain = run(edited(model, prompts, None), path, start(model, 3))
    assert torch.equal(result[1], result[0]) and torch.equal(result[:2], plain[:2])
    assert not torch.allclose(result[2], plain[2], atol=1e-4)


def test_word_maps_under_guidance_are_those_of_the_conditional_rows(model: Model) -> None:
    prompts, path = ["a red cat", "a dog"], model.path(STEPS)
    words = torch.eye(6).expand(2, 6, 6)
    guided, plain = Taps(weights=words), Taps(weights=words)
    for taps, scale in ((guided, 3.0), (plain, 1.0)):
        denoise = model.denoiser(prompts, scale=scale, control=Control(taps=taps))
        denoise(start(model), path.start)
    assert guided.calls == plain.calls == 1
    torch.testing.assert_close(guided.averaged((4, 4)), plain.averaged((4, 4)), rtol=0, atol=1e-6)


def test_an_unconditional_text_for_each_step_is_its_run_in_pieces(model: Model) -> None:
    path, x = model.path(STEPS), start(model, 1)
    empty = model.condition("")
    nulls = [Condition(context=empty.context + 0.3 * k, context_mask=empty.context_mask) for k in range(STEPS)]
    denoisers = [model.denoiser("a cat", negative=null, scale=4.0) for null in nulls]
    result = run(stepwise(path, denoisers.__getitem__), path, x)
    for index, denoise in enumerate(denoisers):
        x = run(denoise, path[index : index + 1], x)
    assert torch.equal(result, x)


def test_moves_of_fresh_noise_ask_for_no_denoiser(model: Model) -> None:
    top, middle, low, end = model.path(3).levels
    down, up = Move(here=top, there=low), Move(here=low, there=middle, kind="renoise")
    path = Path.from_moves([down, up, Move(here=middle, there=low), Move(here=low, there=end)], T=model.schedule.T)
    seen: list[int] = []

    def choose(index: int) -> Denoiser:
        seen.append(index)
        return model.denoiser()

    assert list(stepwise(path, choose).denoisers) == [top.t, middle.t, low.t]
    assert seen == [0, 2, 3]


def test_a_path_that_comes_back_to_a_level_is_an_error(model: Model) -> None:
    path = model.path(STEPS).with_jumps(jump_length=2, jump_n_sample=2)
    with pytest.raises(
        UserError, match=r"starts two moves from t = [\d.]+; a denoiser for each step needs a path without"
    ):
        stepwise(path, lambda index: model.denoiser())


def test_a_level_without_a_denoiser_is_named(model: Model) -> None:
    denoise = stepwise(model.path(STEPS), lambda index: model.denoiser())
    with pytest.raises(UserError, match=r"no denoiser for t = .*, only for \d+.*; run the path it was made for"):
        integrate(denoise, DDIM(), model.path(STEPS + 1), start(model))
    with pytest.raises(UserError, match="with a solver that asks at its levels only, such as ddim"):
        integrate(denoise, DPM2(), model.path(STEPS), start(model))
    with pytest.raises(UserError, match="has no levels"):
        Stepwise(denoisers={})

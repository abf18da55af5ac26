"""Null-text and negative-prompt inversion: the way up, what tuning does and leaves alone, and walking down again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import steerdiff
from steerdiff import UserError
from steerdiff.guidance import Condition, Model
from steerdiff.guidance.loading import load_model
from steerdiff.methods import DDIMInversion, NegativePromptInversion, NullTextInversion, null_text
from steerdiff.methods.null_text import PivotalDDIM, climbed, descent
from steerdiff.models import Control
from steerdiff.samplers import DDIM, Denoiser, Level, NetworkDenoiser, Noise, NoiseSchedule, Record
from steerdiff.samplers import Path as MovePath
from steerdiff.samplers.conventions import DiffusersTimes
from steerdiff.samplers.loop import integrate, trajectory
from steerdiff.train.benchmark import draw_cases

from .. import published_files as files
from ..guidance.toys import Recording, formula_model, pictures, tiny_text_model
from ..helpers import eps_fn, load_golden
from .helpers import close

GOLDEN = Path(__file__).parents[1] / "golden" / "p2p" / "ddim_inversion_50.npz"
SMALL = NullTextInversion(steps=5, guidance=3.0, inner_steps=4, learning_rate=0.1, stop=0.0, stop_rise=0.0)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STEERDIFF_CACHE", str(tmp_path))


def image(count: int = 1) -> Tensor:
    return pictures(count, 8) * 0.8


def error(result: Tensor, expected: Tensor) -> list[float]:
    return (result - expected).square().flatten(1).mean(1).tolist()


def states_of(denoise: Denoiser, solver: Any, path: MovePath, x: Tensor) -> list[Record]:
    with torch.no_grad():
        return list(trajectory(denoise, solver, path, x))


def test_the_way_up_of_the_official_code_is_reproduced() -> None:
    arrays, meta = load_golden(GOLDEN)
    path = DiffusersTimes(alpha_one=False)(NoiseSchedule.scaled_linear(), meta["num_inference_steps"])
    denoise = NetworkDenoiser(network=eps_fn)
    states = climbed(denoise, path, torch.from_numpy(arrays["in.x"]), fixed_point=1)
    close(torch.stack(states[-2::-1]), arrays["out.up"], 2e-5)


def by_the_letter(model: Model, x: Tensor, prompt: str, method: NullTextInversion) -> tuple[Tensor, list[Tensor]]:
    """Algorithm 1 for one image, eps by eps: the state at its end and the text states of each step."""
    network: Callable[..., Tensor] = model.network
    (cond, null), T = model.branches(prompt), model.schedule.T
    path = descent(model, method.steps, method.spacing)

    def eps(x: Tensor, level: Level, context: Tensor, mask: Tensor) -> Tensor:
        v = network(x, torch.full((1,), float(level.t)), context=context, context_mask=mask)
        return level.alpha_bar**0.5 * v + (1 - level.alpha_bar) ** 0.5 * x

    def move(x: Tensor, e: Tensor, here: Level, there: Level) -> Tensor:
        x0 = (x - (1 - here.alpha_bar) ** 0.5 * e) / here.alpha_bar**0.5
        return there.alpha_bar**0.5 * x0 + (1 - there.alpha_bar) ** 0.5 * e

    pivots = [x]
    for there, here in zip(path.levels[-2::-1], path.levels[:0:-1], strict=True):
        told = (cond.context, cond.context_mask)
        pivots.append(move(pivots[-1], eps(pivots[-1], here, *told), here, there))
    assert len(path) < T
    x, states, found = pivots.pop(), null.context.clone(), []
    for i, (here, there) in enumerate(zip(path.levels, path.levels[1:], strict=False)):
        pivot, wanted = pivots.pop(), eps(x, here, cond.context, cond.context_mask)
        states = states.detach().clone().requires_grad_(True)
        adam = torch.optim.Adam([states], lr=method.rate(i / len(path)))
        for _ in range(method.inner_steps):
            plain = eps(x, here, states, null.context_mask)
            loss = (move(x, plain + method.guidance * (wanted - plain), here, there) - pivot).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            if float(loss.detach()) < method.bound(i / len(path)):
                break
        plain = eps(x, here, states.detach(), null.context_mask)
        x = move(x, plain + method.guidance * (wanted - plain), here, there)
        found.append(states.detach())
    return x, found


def in_double() -> Model:
    model = tiny_text_model()
    for part in (model.network, model.text):
        part.double()  # type: ignore[union-attr]  # both are modules
    return model


def test_the_algorithm_is_that_of_the_paper() -> None:
    model, method, x = in_double(), replace(SMALL, stop=0.004), image().double()  # some steps stop early
    expected, states = by_the_letter(model, x, "a cat", method)
    found = method.invert(model, x, prompt="a cat")
    assert isinstance(found.uncond, tuple) and len(found.uncond) == len(states) == 5
    for ours, theirs in zip(found.uncond, states, strict=True):
        torch.testing.assert_close(ours.context, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(method(model, x, prompt="a cat"), expected, rtol=0, atol=1e-8)


def test_rates_and_bounds_are_the_official_ones_at_50_steps() -> None:
    method = NullTextInversion()
    assert [method.rate(i / 50) for i in range(50)] == pytest.approx([1e-2 * (1 - i / 100) for i in range(50)])
    assert [method.bound(i / 50) for i in range(50)] == pytest.approx([1e-5 + 2e-5 * i for i in range(50)])


def test_published_times_are_stable_diffusion_s() -> None:
    model = formula_model(lambda x, t: x, 8, NoiseSchedule.scaled_linear())
    path = descent(model, 50, NullTextInversion().spacing)
    assert [level.t for level in path.levels] == [*range(981, 0, -20), 0]
    assert path.end.alpha_bar == model.schedule.alpha_bar(0)


def test_more_updates_come_closer_under_guidance_that_plain_inversion_does_not_survive() -> None:
    model = tiny_text_model()
    errors = [error(replace(SMALL, inner_steps=n)(model, image(2), prompt="a cat"), image(2)) for n in (0, 2, 8)]
    assert all(none > few > many for none, few, many in zip(*errors, strict=True))
    assert sum(errors[2]) < 0.85 * sum(errors[0])


def test_no_step_ends_further_from_its_pivot_than_without_tuning() -> None:
    model, method = tiny_text_model(), replace(SMALL, learning_rate=0.02)
    solver, plain, path, pivots = parts(model, method, "a cat")
    records = states_of(plain, solver, path, pivots[0])
    uncond, x = solver._first(1), pivots[0]
    falls = []
    for record in records:
        cond, noise = plain(x, record.move.here), Noise(0, like=x)
        before, after = (float(solver.losses(cond, one, x, record.move, noise)) for one in (uncond, record.step.state))
        assert after <= before
        falls.append(after < 0.999 * before)
        uncond, x = record.step.state, record.step.x
    assert sum(falls) >= 4


def parts(model: Model, method: NullTextInversion, prompt: str) -> tuple[PivotalDDIM, Denoiser, MovePath, list[Tensor]]:
    """The solver of a run, its denoiser, its path and the pivots."""
    (cond, uncond), path = model.branches(prompt), descent(model, method.steps, method.spacing)
    plain = model.denoiser(cond, negative=cond, clip="none")
    pivots = climbed(plain, path, image(), fixed_point=method.fixed_point)
    solver = PivotalDDIM(settings=method, model=model, cond=cond, uncond=uncond, pivots=tuple(pivots[1:]))
    return solver, plain, path, pivots


def test_walking_down_again_repeats_the_tuning_run_bit_for_bit() -> None:
    model = tiny_text_model()
    solver, plain, path, pivots = parts(model, SMALL, "a cat")
    tuned = states_of(plain, solver, path, pivots[0])
    found = SMALL.invert(model, image(), prompt="a cat")
    again = states_of(found.denoiser(model, "a cat"), DDIM(), found.path, found.latent)
    assert len(again) == len(tuned) == 5
    for one, other in zip(tuned, again, strict=True):
        assert torch.equal(one.step.x, other.step.x)
    assert torch.equal(SMALL(model, image(), prompt="a cat"), again[-1].step.x)


def test_without_updates_it_is_plain_inversion_and_plain_guidance() -> None:
    model, method = tiny_text_model(), replace(SMALL, inner_steps=0)
    latent = DDIMInversion(steps=5, spacing="compvis").invert(model, image(), prompt="a cat")
    found = method.invert(model, image(), prompt="a cat")
    assert torch.equal(found.latent, latent)
    guided = model.denoiser("a cat", scale=3.0, clip="none")
    by_hand = integrate(guided, DDIM(), model.path(5, "compvis"), latent)
    assert torch.equal(method(model, image(), prompt="a cat"), by_hand)


@pytest.mark.parametrize("spacing", ["compvis", "log_snr"])  # the second ends clean, where the image cannot stand
@pytest.mark.parametrize("fixed_point", [0, 3])
def test_without_guidance_both_are_the_round_trip_of_ddim_inversion(spacing: Any, fixed_point: int) -> None:
    model, given = tiny_text_model(), {"steps": 5, "spacing": spacing, "fixed_point": fixed_point}
    up = DDIMInversion(**given).invert(model, image(), prompt="a cat")
    down = model.path(5, spacing) if spacing == "compvis" else model.path(5, spacing)[:-1]
    expected = integrate(model.denoiser("a cat", clip="none"), DDIM(), down, up)
    for method in (NullTextInversion(**given, guidance=1.0), NegativePromptInversion(**given)):
        assert torch.equal(method.invert(model, image(), prompt="a cat").latent, up)
        assert torch.equal(method(model, image(), prompt="a cat"), expected)


def test_an_image_that_is_done_stays_as_it_is_while_another_is_tuned() -> None:
    model, both = tiny_text_model(), pictures(2, 8) * torch.tensor([0.9, 0.1]).reshape(2, 1, 1, 1)
    first, many = (replace(SMALL, steps=2, inner_steps=n).invert(model, both, prompt="a cat").uncond for n in (1, 6))
    (cond, uncond), path = model.branches("a cat"), descent(model, 2, SMALL.spacing)
    plain = model.denoiser(cond, negative=cond, clip="none")
    pivots = climbed(plain, path, both)
    solver = PivotalDDIM(settings=SMALL, model=model, cond=cond, uncond=uncond, pivots=tuple(pivots[1:]))
    with torch.no_grad():
        move = path[0]
        losses = solver.losses(plain(pivots[0], move.here), solver._first(2), pivots[0], move, Noise(0, like=both))
    between = float(losses.mean())
    assert float(losses.min()) < 0.9 * between
    done = int(losses.argmin())
    mixed = replace(SMALL, steps=2, inner_steps=6, stop=between).invert(model, both, prompt="a cat").uncond
    contexts = [context(one, 0) for one in (first, many, mixed)]
    assert torch.equal(contexts[2][done], contexts[0][done])
    assert not torch.equal(contexts[0][done], contexts[1][done])
    torch.testing.assert_close(contexts[2][1 - done][0], contexts[1][1 - done][0], rtol=0, atol=0.6)
    assert not torch.equal(contexts[2][1 - done], contexts[0][1 - done])


def context(uncond: Any, index: int) -> Tensor:
    found = uncond[index].context
    assert isinstance(found, Tensor)
    return found


def test_a_step_costs_one_call_for_the_prompt_one_for_each_update_and_one_of_both_branches() -> None:
    network = Recording(tiny_text_model().network)
    model = tiny_text_model(network=network)
    replace(SMALL, steps=4, inner_steps=3).invert(model, image(2), prompt="a cat")
    assert network.rows == [2] * 4 + ([2] * 4 + [4]) * 4
    network.rows.clear()
    replace(SMALL, steps=4, stop=1e6).invert(model, image(2), prompt="a cat")  # below the bound at once: one update
    assert network.rows == [2] * 4 + [2, 2, 4] * 4


def test_a_second_inversion_is_read_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tuned, method = tiny_text_model(), list[int](), replace(SMALL, steps=2, inner_steps=1)
    step = PivotalDDIM.step
    monkeypatch.setattr(PivotalDDIM, "step", lambda self, *rest: [step(self, *rest), tuned.append(1)][0])
    first = method.invert(model, image(), prompt="a cat")
    assert len(tuned) == 2
    again = method.invert(model, image(), prompt="a cat")
    assert len(tuned) == 2
    assert torch.equal(first.latent, again.latent)
    assert all(torch.equal(context(first.uncond, i), context(again.uncond, i)) for i in range(2))
    method.invert(model, image(), prompt="a dog")
    method.invert(model, image() * 0.9, prompt="a cat")
    method.invert(model, image(), prompt="a cat", negative="red")
    method.invert(tiny_text_model(schedule=NoiseSchedule.linear(100)), image(), prompt="a cat")
    assert len(tuned) == 10


def test_tuning_works_where_no_gradients_are_kept() -> None:
    expected = SMALL(tiny_text_model(), image(), prompt="a cat")
    model = tiny_text_model(network=Recording(tiny_text_model().network))  # no module: nothing is cached
    with torch.inference_mode():
        torch.testing.assert_close(SMALL(model, image() * 1.0, prompt="a cat"), expected, rtol=0, atol=1e-6)


def test_negative_prompt_inversion_guides_from_the_source_to_the_target() -> None:
    model, method = tiny_text_model(), NegativePromptInversion(steps=5, guidance=3.0)
    found = method.invert(model, image(), prompt="a cat")
    edited = method(model, image(), prompt="a cat", target="a dog")
    guided = model.denoiser("a dog", negative="a cat", scale=3.0, clip="none")
    assert torch.equal(edited, integrate(guided, DDIM(), found.path, found.latent))
    same = method(model, image(), prompt="a cat", target="a cat")
    torch.testing.assert_close(same, method(model, image(), prompt="a cat"), rtol=0, atol=1e-5)


def test_a_target_is_guided_by_the_tuned_states() -> None:
    model = tiny_text_model()
    found = SMALL.invert(model, image(), prompt="a cat")
    x = found.latent
    for move, uncond in zip(found.path, found.uncond, strict=True):  # type: ignore[arg-type]  # a tuple here
        denoise = model.denoiser("a dog", negative=uncond, scale=3.0, clip="none")
        x = DDIM().step(denoise, x, move, None, Noise(0, like=x)).x
    assert torch.equal(SMALL(model, image(), prompt="a cat", target="a dog"), x)
    assert not torch.equal(SMALL(model, image(), prompt="a cat"), x)


def test_rows_of_an_inversion_may_be_named_again_for_several_edits_of_an_image() -> None:
    model = tiny_text_model()
    found = SMALL.invert(model, image(2), prompt=["a cat", "a dog"])
    three = found.rows([1, 1, 0])
    assert torch.equal(three.latent, found.latent[[1, 1, 0]])
    assert torch.equal(context(three.uncond, 2), context(found.uncond, 2)[[1, 1, 0]])
    prompts = ["a dog", "a red dog", "a cat"]
    drawn = integrate(three.denoiser(model, prompts), DDIM(), three.path, three.latent)
    both = SMALL(model, image(2), prompt=["a cat", "a dog"])
    torch.testing.assert_close(drawn[[2, 0]], both, rtol=0, atol=2e-5)
    with pytest.raises(UserError, match=r"rows are \[0, 2\]; 2 images were inverted"):
        found.rows([0, 2])
    single = NegativePromptInversion(steps=5).invert(model, image(2), prompt="a cat").rows([1, 0, 1])
    assert isinstance(single.uncond, Condition) and single.uncond.rows == 1


def test_controls_may_differ_from_move_to_move() -> None:
    seen: list[Any] = []

    def network(x: Tensor, t: Tensor, **told: Any) -> Tensor:
        seen.append(told.get("control"))
        return 0.1 * x

    model = tiny_text_model(network=network)
    controls = [Control(h_shift=torch.zeros(1)) for _ in range(5)]
    found = NegativePromptInversion(steps=5).invert(model, image(), prompt="a cat")
    for each in (found, replace(found, uncond=None), replace(found, uncond=(model.condition("red"),) * 5)):
        seen.clear()
        integrate(each.denoiser(model, "a dog", control=lambda i: controls[i]), DDIM(), found.path, found.latent)
        assert seen == controls
        seen.clear()
        integrate(each.denoiser(model, "a dog", control=controls[2]), DDIM(), found.path, found.latent)
        assert seen == [controls[2]] * 5


@pytest.mark.parametrize("version", [1, 2])
def test_both_run_on_a_latent_model_of_stable_diffusion_s_layout(version: Any, tmp_path: Path) -> None:
    described = files.tiny_sd(version, predicts_v=version == 2)
    files.write_single_file(tmp_path / "sd.safetensors", described)
    model = load_model(tmp_path / "sd.safetensors", described)
    given = pictures(2, 32) * 0.5
    method = replace(SMALL, steps=2)
    errors = []
    for n in (0, 3):
        found = replace(method, inner_steps=n).invert(model, given, prompt="a cat")
        end = integrate(found.denoiser(model, "a cat"), DDIM(), found.path, found.latent)
        errors.append(error(end, model.encode(given)))
        assert found.latent.shape == end.shape == (2, 4, 16, 16)
    assert all(after < before for before, after in zip(*errors, strict=True))
    result = NegativePromptInversion(steps=2)(model, given, prompt="a cat", target="a dog")
    assert result.shape == given.shape and float(result.abs().max()) <= 1


def test_labels_alone_cannot_be_tuned_but_their_inversion_can_be_negative() -> None:
    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return 0.1 * x + 0.01 * y.reshape(-1, 1, 1, 1)

    model = formula_model(network, 8, num_classes=3, null_class=3, name="labelled")
    label = model.condition(y=1)
    with pytest.raises(UserError, match="labelled is told no text whose states could be tuned; use negative-prompt"):
        SMALL(model, image(), prompt=label)
    assert NegativePromptInversion(steps=5)(model, image(), prompt=label).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NullTextInversion(inner_steps=-1), "inner_steps is -1; give a number of updates"),
        (lambda: NullTextInversion(learning_rate=0.0), "learning_rate is 0.0; it must be positive"),
        (lambda: NullTextInversion(final_rate=2.0), r"final_rate is 2.0; it must lie in \[0, 1\]"),
        (lambda: NullTextInversion(stop_rise=-1.0), "stop is 1e-05 and stop_rise -1.0; the bound must stay"),
        (lambda: NullTextInversion(fixed_point=-1), "fixed_point is -1; give a number of iterations"),
        (lambda: NegativePromptInversion(fixed_point=-1), "fixed_point is -1; give a number of iterations"),
    ],
)
def test_settings_out_of_range_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_prompts_that_are_not_as_many_as_the_images_are_an_error_before_anything_runs() -> None:
    network = Recording(tiny_text_model().network)
    model = tiny_text_model(network=network)
    for method in (SMALL, NegativePromptInversion(steps=5)):
        with pytest.raises(UserError, match="2 prompts or labels were given for 3 images"):
            method(model, image(3), prompt=["a cat", "a dog"])
    assert network.rows == []


def test_guidance_spoils_the_shipped_model_s_inversion_and_tuning_mends_it() -> None:
    """A case fixed before any result was seen, which chose no setting."""
    model, case = steerdiff.load("emoji64"), draw_cases("object", 1, seed=21)[0]
    method, x = replace(null_text.PRESETS["emoji64"], steps=4), case.image[None]
    (plain,), (tuned,) = (error(replace(method, inner_steps=n)(model, x, prompt=case.source_text), x) for n in (0, 4))
    assert tuned < 0.8 * plain

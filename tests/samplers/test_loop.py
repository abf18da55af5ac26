"""The one loop: constraints, history, callbacks, checks, interrupts, and batches that equal their images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steerdiff.errors import UserError
from steerdiff.samplers import (
    DDIM,
    DDPM,
    SOLVERS,
    Denoiser,
    DPMSolver2M,
    Interrupted,
    Level,
    Move,
    NetworkDenoiser,
    Noise,
    NoiseSchedule,
    NonFiniteError,
    Path,
    Prediction,
    Record,
    Recorder,
    Step,
    integrate,
    trajectory,
)

from ..helpers import learned_fn

SCHEDULE = NoiseSchedule.linear()
PATH = Path.respaced(SCHEDULE, 12)
DENOISE = NetworkDenoiser(network=learned_fn, learns_variance=True, clip="clip")
TRAVEL = Path.respaced(SCHEDULE, 12).with_jumps(3, 2)


def start(batch: int = 2, seed: int = 1) -> Tensor:
    return Noise(seed, (batch, 3, 4, 4))()


@pytest.mark.parametrize("name", sorted(SOLVERS))
@settings(derandomize=True, deadline=None, max_examples=5)
@given(seeds=st.lists(st.integers(0, 99), min_size=2, max_size=3, unique=True), travels=st.booleans())
def test_image_of_a_batch_equals_the_image_alone(name: str, seeds: list[int], travels: bool) -> None:
    path = TRAVEL if travels else PATH

    def run(seed: list[int]) -> Tensor:
        noise = Noise(seed, (len(seed), 3, 4, 4))
        return integrate(DENOISE, SOLVERS[name](), path, noise.fork("start")(), noise=noise)

    assert torch.equal(run(seeds), torch.cat([run([seed]) for seed in seeds]))


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_an_image_does_not_depend_on_its_batch_or_on_who_looks_at_the_predictions(name: str) -> None:
    denoise = NetworkDenoiser(network=lambda x, t: learned_fn(x, t)[:, :3])  # of eps, unclipped: x0 is implied

    def run(seed: list[int], callback: Recorder | None = None) -> Tensor:
        noise = Noise(seed, (len(seed), 3, 4, 4))
        return integrate(denoise, SOLVERS[name](), PATH, noise.fork("start")(), noise=noise, callback=callback)

    watched = Recorder(keeps_x0=True)
    whole = run([1, 5, 8], watched)
    assert torch.equal(whole, run([1, 5, 8])) and len(watched.images) == len(PATH)
    assert torch.equal(whole, torch.cat([run([seed]) for seed in (1, 5, 8)]))


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "dpm++3m", "dpm++2s", "dpm++sde", "dpm++2m-sde", "unipc"])
def test_the_move_to_the_clean_level_returns_the_predicted_image_itself(name: str) -> None:
    denoise = NetworkDenoiser(network=lambda x, t: learned_fn(x, t)[:, :3])
    *_, last = trajectory(denoise, SOLVERS[name](), PATH, start(), noise=Noise(0, like=start()))
    assert last.move.there.clean and last.step.prediction is not None
    assert torch.equal(last.step.x, last.step.prediction.x0)


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "euler"])
def test_solvers_that_only_add_images_never_compute_an_x0(name: str) -> None:
    denoise = NetworkDenoiser(network=lambda x, t: learned_fn(x, t)[:, :3])
    records = list(trajectory(denoise, SOLVERS[name](), PATH, start()))
    assert not any("x0" in vars(record.step.prediction) for record in records)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_solver_keeps_the_dtype_of_the_state(name: str) -> None:
    results = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = start().to(dtype)
        results[dtype] = integrate(DENOISE, SOLVERS[name](), PATH, x, noise=Noise(3, like=x))
        assert results[dtype].dtype == dtype
    torch.testing.assert_close(results[torch.float32].double(), results[torch.float64], atol=1e-4, rtol=1e-4)


def test_half_precision_state_is_carried_in_float32() -> None:
    seen = set()

    def denoise(x: Tensor, level: Level) -> Prediction:
        seen.add(x.dtype)
        return DENOISE(x, level)

    integrate(denoise, DDIM(), PATH, start().bfloat16())
    assert seen == {torch.float32}


def test_a_path_cut_in_two_gives_the_whole() -> None:
    noise, again = Noise(4, (2, 3, 4, 4)), Noise(4, (2, 3, 4, 4))
    whole = integrate(DENOISE, DDPM(), PATH, start(), noise=noise)
    half = integrate(DENOISE, DDPM(), PATH[:5], start(), noise=again)
    assert torch.equal(integrate(DENOISE, DDPM(), PATH[5:], half, noise=again), whole)


def test_renoise_moves_draw_noise_and_ask_no_network() -> None:
    calls: list[float] = []

    def denoise(x: Tensor, level: Level) -> Prediction:
        calls.append(level.t)
        return DENOISE(x, level)

    records: list[Record] = []
    integrate(denoise, DDIM(), TRAVEL, start(), noise=Noise(5, (2, 3, 4, 4)), callback=records.append)
    assert len(calls) == sum(move.kind == "denoise" for move in TRAVEL)
    assert [record.step.prediction is None for record in records] == [move.kind == "renoise" for move in TRAVEL]
    before, up = next(pair for pair in zip(records, records[1:], strict=False) if pair[1].move.kind == "renoise")
    z = Noise(5, (2, 3, 4, 4))()
    expected = (1 - up.move.beta) ** 0.5 * before.step.x + up.move.beta**0.5 * z
    torch.testing.assert_close(up.step.x, expected)


def test_constraints_act_in_order_after_every_move_and_see_the_move() -> None:
    seen: list[tuple[str, int, str]] = []

    def double(step: Step, move: Move, noise: Noise) -> Tensor:
        seen.append(("double", move.index, move.kind))
        return 2 * step.x

    def add(step: Step, move: Move, noise: Noise) -> Tensor:
        seen.append(("add", move.index, move.kind))
        return step.x + 1

    records: list[Record] = []
    plain = integrate(DENOISE, DDIM(), PATH[:1], start())
    x = integrate(DENOISE, DDIM(), PATH[:1], start(), constraints=[double, add], callback=records.append)
    assert torch.equal(x, 2 * plain + 1)
    assert torch.equal(records[0].step.x, x)
    seen.clear()
    integrate(DENOISE, DDIM(), TRAVEL, start(), constraints=[double, add], noise=Noise(0, like=start()))
    assert seen == [(name, move.index, move.kind) for move in TRAVEL for name in ("double", "add")]


class Look:
    """A constraint that never edits."""

    resets_history: ClassVar[bool] = False

    def __call__(self, step: Step, move: Move, noise: Noise) -> Tensor:
        return step.x


class Touch(Look):
    resets_history: ClassVar[bool] = True


def first_order(path: Path, **arguments: Any) -> Tensor:
    """Where 2M goes when it never has a history, which is DDIM's way."""
    return integrate(DENOISE, DDIM(), path, start(), **arguments)


def test_history_is_dropped_when_a_constraint_edits_and_kept_when_it_says_so() -> None:
    plain = integrate(DENOISE, DPMSolver2M(), PATH, start())
    assert torch.equal(integrate(DENOISE, DPMSolver2M(), PATH, start(), constraints=[Look()]), plain)
    reset = integrate(DENOISE, DPMSolver2M(), PATH, start(), constraints=[Look(), Touch()])
    unknown = integrate(DENOISE, DPMSolver2M(), PATH, start(), constraints=[lambda step, move, noise: step.x])
    assert torch.equal(reset, unknown)
    assert not torch.allclose(reset, plain, atol=1e-3)
    torch.testing.assert_close(reset, first_order(PATH), atol=1e-4, rtol=1e-4)


MULTISTEP = ["dpm++2m", "dpm++3m", "dpm++2m-sde", "dpm++3m-sde", "unipc", "lms", "plms"]


@pytest.mark.parametrize("name", MULTISTEP)
def test_history_of_every_multistep_solver_ends_where_a_constraint_acts(name: str) -> None:
    solver = SOLVERS[name]()

    def touch(step: Step, move: Move, noise: Noise) -> Tensor:
        return step.x

    def run(constraints: list[Any]) -> Tensor:
        return integrate(DENOISE, solver, PATH, start(), constraints=constraints, noise=Noise(3, like=start()))

    x, noise = start(), Noise(3, like=start())
    for move in PATH:
        x = solver.step(DENOISE, x, move, None, noise).x
    assert torch.equal(run([touch]), x)
    assert not torch.equal(run([]), x)


def test_history_is_dropped_after_a_renoise_move() -> None:
    states: list[Any] = []

    class Watched(DPMSolver2M):
        def step(self, denoise: Denoiser, x: Tensor, move: Move, state: Any, noise: Noise) -> Step:
            states.append((move.index, state is None))
            return super().step(denoise, x, move, state, noise)

    integrate(DENOISE, Watched(), TRAVEL, start(), noise=Noise(0, like=start()))
    fresh = {index for index, none in states if none}
    after_up = {move.index for move in TRAVEL if move.index and TRAVEL[move.index - 1].kind == "renoise"}
    assert fresh == {0} | {index for index in after_up if TRAVEL[index].kind == "denoise"}


def test_callback_sees_every_move_once_with_its_number() -> None:
    records: list[Record] = []
    x = integrate(DENOISE, DDIM(), PATH, start(), callback=records.append)
    assert [(record.index, record.total, record.move) for record in records] == [(i, 12, PATH[i]) for i in range(12)]
    assert torch.equal(records[-1].step.x, x)


def test_recorder_keeps_every_few_images_and_the_last() -> None:
    images, predictions = Recorder(every=5), Recorder(every=5, keeps_x0=True)
    x = integrate(DENOISE, DDIM(), PATH, start(), callback=images)
    integrate(DENOISE, DDIM(), PATH, start(), callback=predictions)
    assert [move.index for move in images.moves] == [4, 9, 11]
    assert torch.equal(images.images[-1], x)
    assert torch.equal(predictions.images[-1], x)  # the last move returns its own prediction
    assert not torch.equal(predictions.images[0], images.images[0])
    travelled = Recorder(keeps_x0=True)
    integrate(DENOISE, DDIM(), TRAVEL, start(), callback=travelled, noise=Noise(0, like=start()))
    assert {move.kind for move in travelled.moves} == {"denoise"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_image_is_reported_with_the_first_bad_step(bad: float) -> None:
    def denoise(x: Tensor, level: Level) -> Prediction:
        prediction = DENOISE(x, level)
        return replace(prediction, x0=prediction.x0 * bad) if level.t < 600 else prediction

    first = next(move for move in PATH if move.here.t < 600)
    message = rf"after step {first.index + 1} of 12 \(denoise, t = {first.here.t:g} to {first.there.t:g}\)"
    with pytest.raises(NonFiniteError, match=message):
        integrate(denoise, DDIM(), PATH, start())


def test_one_bad_pixel_of_one_image_is_noticed() -> None:
    def spoil(step: Step, move: Move, noise: Noise) -> Tensor:
        x = step.x.clone()
        x[1, 2, 3, 3] = float("nan")
        return x

    with pytest.raises(NonFiniteError, match="after step 12 of 12"):
        integrate(
            DENOISE, DDIM(), PATH, start(), constraints=[lambda s, m, n: spoil(s, m, n) if m.index == 11 else s.x]
        )


def test_interrupt_keeps_the_image_of_the_last_whole_move() -> None:
    def denoise(x: Tensor, level: Level) -> Prediction:
        if level.t < 600:
            raise KeyboardInterrupt
        return DENOISE(x, level)

    with pytest.raises(Interrupted, match="interrupted after 5 moves") as caught:
        integrate(denoise, DDIM(), PATH, start(), progress="sampling")
    assert caught.value.index == 5
    assert torch.equal(caught.value.x, integrate(DENOISE, DDIM(), PATH[:5], start()))
    resumed = integrate(DENOISE, DDIM(), PATH[caught.value.index :], caught.value.x)
    assert torch.equal(resumed, integrate(DENOISE, DDIM(), PATH, start()))


def test_interrupt_in_a_callback_counts_the_move_it_followed() -> None:
    def stop(record: Record) -> None:
        if record.index == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        integrate(DENOISE, DDIM(), PATH, start(), callback=stop)
    assert isinstance(caught.value, Interrupted)
    assert caught.value.index == 4


def test_progress_bar_shows_its_label_and_silence_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    integrate(DENOISE, DDIM(), PATH, start())
    silent = capsys.readouterr()
    assert (silent.out, silent.err) == ("", "")
    integrate(DENOISE, DDIM(), PATH, start(), progress="paint")
    assert "paint" in capsys.readouterr().err


def test_integrate_keeps_no_gradients_and_a_trajectory_does() -> None:
    factor = torch.tensor(0.5, requires_grad=True)

    def denoise(x: Tensor, level: Level) -> Prediction:
        return Prediction.from_output(factor * x, x, level)

    assert not integrate(denoise, DDIM(), PATH, start()).requires_grad
    *_, last = trajectory(denoise, DDIM(), PATH, start())
    last.step.x.sum().backward()
    assert factor.grad is not None
    assert factor.grad.isfinite()


def test_input_is_left_as_it_was() -> None:
    x = start()
    integrate(DENOISE, DDPM(), PATH, x, noise=Noise(0, like=x))
    assert torch.equal(x, start())


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_a_run_on_a_gpu_is_the_run_on_the_cpu_and_never_waits(name: str) -> None:
    x, solver = start().double(), SOLVERS[name]()
    expected = integrate(DENOISE, solver, PATH, x, noise=Noise(3, like=x))
    on_gpu = x.cuda()
    noise = Noise(3, like=on_gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        records = list(trajectory(DENOISE, solver, PATH, on_gpu, noise=noise))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(records[-1].step.x.cpu(), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            lambda: integrate(DENOISE, DDPM(), PATH, start()),
            r"draws noise but was given none; pass noise=Noise\(seed, like",
        ),
        (lambda: integrate(DENOISE, DDIM(), TRAVEL, start()), "draws noise but was given none"),
        (lambda: integrate(DENOISE, DDIM(), PATH, start()[0]), r"x is \[3, 4, 4\] torch.float32; a run starts from"),
        (lambda: integrate(DENOISE, DDIM(), PATH, start().long()), r"torch.int64; a run starts from a floating-point"),
        (lambda: integrate(DENOISE, DDIM(), PATH, start()[:0]), r"x is \[0, 3, 4, 4\]"),
        (lambda: integrate(DENOISE, DDIM(), PATH, start() / 0), "x holds NaN or infinite values before the first step"),
        (lambda: Recorder(every=0), "every is 0; it must be at least 1"),
    ],
)
def test_bad_runs_get_a_clear_error(run: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run()


def test_a_constraint_that_forks_noise_without_any_is_told_so() -> None:
    def reference(step: Step, move: Move, noise: Noise) -> Tensor:
        return step.x + noise.fork("reference")()

    with pytest.raises(UserError, match="was given none"):
        integrate(DENOISE, DDIM(), PATH, start(), constraints=[reference])

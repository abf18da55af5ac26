"""DDIM inversion: the error of the round trip, and what removes it or adds to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from steerdiff import UserError
from steerdiff.guidance import Model
from steerdiff.guidance.settings import Spacing
from steerdiff.methods import DDIMInversion
from steerdiff.methods.invert import FixedPointInversion
from steerdiff.samplers import DDIM, DPMSolver2M, Level, Move, Noise, NoiseSchedule, Prediction

from ..guidance.toys import Recording, formula_model, gaussian_eps, pictures, tiny_text_model

SCHEDULE = NoiseSchedule.linear(1000)


def gaussian(std: float = 0.5) -> Model:
    return formula_model(gaussian_eps(SCHEDULE, 0.3, std), 8, SCHEDULE)


def in_double(count: int = 2) -> Tensor:
    return pictures(count, 8).double()


def error(method: DDIMInversion, model: Model, image: Tensor) -> float:
    return float((method(model, image) - image).abs().max())


def test_the_error_of_the_round_trip_falls_as_one_over_the_steps() -> None:
    steps = [20, 40, 80, 160, 320]
    errors = [error(DDIMInversion(steps=n), gaussian(), in_double()) for n in steps]
    slope = np.polyfit(np.log(steps[1:]), np.log(errors[1:]), 1)[0]
    assert abs(slope + 1) < 0.15


def test_a_solver_of_second_order_comes_back_closer_at_the_same_cost() -> None:
    first, second = (
        error(DDIMInversion(steps=40, spacing="log_snr", solver=solver), gaussian(), in_double())
        for solver in (DDIM(), DPMSolver2M())
    )
    assert second < 0.1 * first


@pytest.mark.parametrize("t0", [0.3, 1.0])
@pytest.mark.parametrize("steps", [10, 30])
def test_fixed_point_iterations_make_the_round_trip_exact(steps: int, t0: float) -> None:
    explicit = error(DDIMInversion(steps=steps, t0=t0), gaussian(), in_double())
    implicit = error(DDIMInversion(steps=steps, t0=t0, fixed_point=25), gaussian(), in_double())
    assert implicit < 1e-5 < 1e-2 < explicit


@pytest.mark.parametrize(("spacing", "clean"), [("compvis", False), ("diffusers-ddim", False), ("respaced", True)])
def test_the_way_down_makes_every_move_of_the_way_up(spacing: Spacing, clean: bool) -> None:
    """A path that ends with some noise has no move into the clean image, which alone may be left out."""
    network = Recording(gaussian_eps(SCHEDULE, 0.3, 0.5))
    model = formula_model(network, 8, SCHEDULE)
    path, method = model.path(10, spacing), DDIMInversion(steps=10, spacing=spacing, fixed_point=25)
    assert path.end.clean == clean
    latent = method.invert(model, in_double())
    network.rows.clear()
    back = method.reconstruct(model, latent)
    assert len(network.rows) == len(path.inverted()) == 10 - clean
    assert float((back - in_double()).abs().max()) < 1e-5


def test_acceleration_converges_where_plain_iteration_is_slow() -> None:
    stds = torch.logspace(-3, 0.3, 64, dtype=torch.float64).reshape(1, 1, 8, 8)  # from flat to lively pixels
    here, there = Level(0.0, 0.99), Level(1.0, 0.95)

    def eps_slope(level: Level) -> Tensor:
        return (1 - level.alpha_bar) ** 0.5 / (level.alpha_bar * stds**2 + 1 - level.alpha_bar)

    def denoise(x: Tensor, level: Level) -> Prediction:
        return Prediction(x, eps_slope(level) * x)

    x = Noise(0, like=stds)() * (here.alpha_bar * stds**2 + 1 - here.alpha_bar).sqrt()
    move = Move(here=here, there=there, kind="invert")
    found = FixedPointInversion(iterations=10).step(denoise, x, move, None, Noise(0, like=x)).x
    a = (there.alpha_bar / here.alpha_bar) ** 0.5
    b = (1 - there.alpha_bar) ** 0.5 - a * (1 - here.alpha_bar) ** 0.5
    exact = a * x / (1 - b * eps_slope(there))
    assert float((found - exact).abs().max()) < 5e-5  # plain iteration: 3e-4


def test_a_few_iterations_help_on_a_random_network_too() -> None:
    model, image = tiny_text_model(schedule=SCHEDULE), pictures(2, 8) * 0.8
    errors = [error(DDIMInversion(steps=8, fixed_point=n), model, image) for n in (0, 3, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * errors[0]


def test_the_way_up_reaches_the_noise_that_the_probability_flow_names() -> None:
    model, image = gaussian(), in_double()
    latent = DDIMInversion(steps=1000).invert(model, image)
    low, high = SCHEDULE.alpha_bar(0), SCHEDULE.alpha_bar(999)
    stretch = ((high * 0.25 + 1 - high) / (low * 0.25 + 1 - low)) ** 0.5
    exact = high**0.5 * 0.3 + (image - low**0.5 * 0.3) * stretch  # the image counts as the lowest level
    torch.testing.assert_close(latent, exact, rtol=0, atol=2e-2)


def test_a_share_of_the_way_costs_that_share_of_the_calls() -> None:
    network = Recording(gaussian_eps(SCHEDULE))
    model = formula_model(network, 8, SCHEDULE)
    DDIMInversion(steps=50, t0=0.5).invert(model, pictures(1, 8))
    assert len(network.rows) == 24  # 25 of the 50 levels, so 24 moves between them
    network.rows.clear()
    DDIMInversion(steps=50, t0=0.5, fixed_point=3).invert(model, pictures(1, 8))
    assert len(network.rows) == 72


def test_a_target_prompt_edits_and_its_absence_reconstructs() -> None:
    model, image = tiny_text_model(), pictures(1, 8) * 0.8
    method = DDIMInversion(steps=12, t0=0.6, fixed_point=8)
    same, edited = method(model, image, prompt="a cat"), method(model, image, prompt="a cat", target="a dog")
    assert float((same - image).abs().max()) < 0.3 * float((edited - image).abs().max())
    by_hand = method.reconstruct(model, method.invert(model, image, prompt="a cat"), prompt="a dog")
    assert torch.equal(edited, by_hand)


def test_fixed_points_are_only_for_the_way_up() -> None:
    move = Move(here=SCHEDULE.level(10), there=SCHEDULE.level(5))
    with pytest.raises(UserError, match="a fixed-point inversion only moves up, not by 'denoise'; use DDIM"):
        FixedPointInversion().step(gaussian().denoiser(), pictures(1, 8), move, None, Noise(0, like=pictures(1, 8)))
    with pytest.raises(UserError, match="iterations is 0; it must be at least 1"):
        FixedPointInversion(iterations=0)


def test_one_step_cannot_be_inverted() -> None:
    with pytest.raises(UserError, match="cannot be inverted; use at least 2 steps"):
        DDIMInversion(steps=1)(gaussian(), pictures(1, 8))
